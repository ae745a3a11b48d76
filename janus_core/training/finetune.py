"""Fine-tuning any checkpoint on a folder of captioned images: all weights of a stage, or a LoRA."""

from pathlib import Path

import torch
from torch import nn

from .. import image
from ..checkpoint import build_model, build_vq, quantized_layers, read_checkpoint, save_lora
from ..checkpoint.write import save_model
from ..errors import CheckpointError, TrainingError
from ..janusflow import JanusFlow
from ..networks.vq import latent_to_tokens
from ..prompt import PromptEncoder
from ..vae import load_vae
from . import stages
from .folder_data import FolderBatches, read_folder, square_image
from .loop import LoopSettings, train
from .unified import JanusFlowObjective, JanusObjective

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def finetune(config: dict, folder: Path) -> Path:
    """Fine-tunes as configs/finetune.json says.

    Returns:
        The folder of the fine-tuned checkpoint; with `lora` the file of the LoRA.

    Raises:
        CheckpointError: the checkpoint cannot be read or trained, or the VAE of a JanusFlow is not named.
        ImageError: an image or a caption is missing or cannot be read.
        TrainingError: a loss is not finite, or the folder's state is of another run.
        OutputError: the result cannot be written.
    """
    torch.manual_seed(config["seed"])
    checkpoint = read_checkpoint(config["checkpoint"])
    if quantized_layers(checkpoint.tensors):
        raise CheckpointError(f"{checkpoint.path} has 8-bit weights, which cannot be trained: use the original one.")
    model = build_model(checkpoint, dtype=torch.float32)
    prompts = PromptEncoder.of(checkpoint)
    flow = checkpoint.family == JanusFlow.family
    paths, captions = zip(*read_folder(config["images"]))
    size = model.params.siglip.image_size
    pixels = torch.stack([image.to_pixels(square_image(path, size)) for path in paths])
    vq = None
    with torch.no_grad():
        if flow:
            if not config.get("vae"):
                raise CheckpointError("JanusFlow is trained on latents: name its VAE in the config.")
            vae = load_vae(config["vae"], channels=model.params.uvit.latent_channels)
            codes = torch.cat([vae.encode(one[None]) for one in pixels])
            image_tokens = model.image_tokens(*codes.shape[-2:])
        else:
            vq = build_vq(checkpoint, dtype=torch.float32)
            codes = torch.cat([latent_to_tokens(vq.encode(one[None]), vq.codebook(one)) for one in pixels])
            image_tokens = codes.shape[1]

    lora = {name: value for name, value in (config.get("lora") or {}).items() if value is not None}
    if lora:
        add_lora(model, **lora)
    else:
        stages.freeze(model, config["stage"])
    if flow:
        objective = JanusFlowObjective(model, 0.0 if lora else {"repa": 1.0, **config}["repa"] or 0.0)
    else:
        objective = JanusObjective(model)
    batch_at = FolderBatches(
        prompts,
        captions,
        pixels,
        codes,
        image_tokens,
        model.params.siglip.tokens,
        config["rows"],
        config.get("ratio") or stages.RATIOS[3][:2],
        config["seed"],
    )
    settings = LoopSettings(**config["loop"], seed=config["seed"])
    train(objective, batch_at, settings, folder / "run")
    if lora:
        return save_lora(model, checkpoint, folder)
    save_model(model, checkpoint, vq, folder / "checkpoint")
    return folder / "checkpoint"


def add_lora(model: nn.Module, rank: int = 16, alpha: float | None = None, targets=ATTENTION):
    """Freezes a model and adds a LoRA (arXiv 2106.09685) to the language model's layers with these names."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainingError("Training a LoRA needs peft: run `pip install peft`.") from None

    model.requires_grad_(False)
    pattern = r"language_model\.model\.layers\.\d+\..*\.(" + "|".join(targets) + ")"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=pattern), model)
