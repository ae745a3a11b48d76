"""Fine-tuning any checkpoint on a folder of captioned pictures: all weights of a stage, or a LoRA."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from .. import image
from ..checkpoint import build_model, build_vq, read_checkpoint
from ..errors import CheckpointError
from ..janusflow import JanusFlow
from ..networks.vq import latent_to_tokens
from ..prompt import PromptEncoder
from ..vae import load_vae
from . import stages
from .folder_data import FolderBatches, native_picture, read_folder
from .loop import LoopSettings, train
from .model_runs import write
from .unified import JanusFlowObjective, JanusObjective

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA_PREFIX = "diffusion_model."  # where ComfyUI keeps the network of a MODEL


def finetune(config: dict, folder: Path) -> Path:
    """Fine-tunes as configs/finetune.json says.

    Returns:
        The folder of the fine-tuned checkpoint; with `lora` the file of the LoRA.
    """
    torch.manual_seed(config["seed"])
    checkpoint = read_checkpoint(config["checkpoint"])
    family = checkpoint.family
    model = build_model(checkpoint, dtype=torch.float32)
    prompts = PromptEncoder.of(checkpoint)
    captioned = read_folder(config["pictures"])
    size = model.params.siglip.image_size
    pixels = torch.stack([image.to_pixels(native_picture(path, size)) for path, _ in captioned])
    vq = None
    with torch.no_grad():
        if family == JanusFlow.family:
            if not config.get("vae"):
                raise CheckpointError("JanusFlow is trained on latents: name its VAE in the config.")
            vae = load_vae(config["vae"])
            codes = torch.cat([vae.encode(one[None]) for one in pixels])
            image_tokens = model.image_tokens(*codes.shape[-2:])
        else:
            vq = build_vq(checkpoint, dtype=torch.float32)
            codes = torch.cat([latent_to_tokens(vq.encode(one[None]), vq.codebook(one)) for one in pixels])
            image_tokens = codes.shape[1]

    lora = config.get("lora")
    if lora:
        add_lora(model, **lora)
    else:
        stages.freeze(model, config["stage"])
    if family == JanusFlow.family:
        objective = JanusFlowObjective(model, 0.0 if lora else config.get("repa", 1.0))
    else:
        objective = JanusObjective(model)
    batch_at = FolderBatches(
        prompts,
        [caption for _, caption in captioned],
        pixels,
        codes,
        image_tokens,
        model.params.siglip.tokens,
        config["rows"],
        config.get("ratio", stages.RATIOS[3][:2]),
        config["seed"],
    )
    settings = LoopSettings(**config.get("loop", {}), seed=config["seed"])
    train(objective, batch_at, settings, folder / "run")
    if lora:
        save_file(lora_tensors(model), folder / "lora.safetensors", metadata={"format": "pt"})
        return folder / "lora.safetensors"
    write(model, checkpoint, vq, folder / "checkpoint")
    return folder / "checkpoint"


def add_lora(model: nn.Module, rank: int = 16, alpha: float | None = None, targets=ATTENTION):
    """Freezes a model and adds a LoRA (arXiv 2106.09685) to the language model's layers with these names."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    pattern = r"language_model\.model\.layers\.\d+\..*\.(" + "|".join(targets) + ")"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=pattern), model)


def lora_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA of a model in peft's names behind ComfyUI's prefix, each layer's alpha beside it, bfloat16."""
    from peft.tuners.lora import LoraLayer

    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            key = LORA_PREFIX + name
            tensors[f"{key}.lora_A.weight"] = module.lora_A["default"].weight
            tensors[f"{key}.lora_B.weight"] = module.lora_B["default"].weight
            tensors[f"{key}.alpha"] = torch.tensor(float(module.lora_alpha["default"]))
    return {name: tensor.detach().cpu().to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
