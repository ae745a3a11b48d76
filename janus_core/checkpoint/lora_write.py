"""Writes a trained LoRA in two layouts: as ComfyUI's loaders read it, and as peft does."""

import json
import re
from pathlib import Path

import torch

from ..files import write_text
from ..janus import Janus
from .lora_read import COMFYUI_PREFIX, PEFT_CONFIG, PEFT_PREFIX, PEFT_WEIGHTS
from .read import Checkpoint
from .transformers_layout import transformers_name
from .write import save_tensors


def save_lora(model: torch.nn.Module, like: Checkpoint, folder: str | Path) -> Path:
    """Writes the LoRA that peft injected into a model, in bfloat16.

    `lora.safetensors` is for ComfyUI. The folder `peft` is for `PeftModel.from_pretrained`, on transformers'
    JanusForConditionalGeneration for Janus and Janus-Pro. transformers has no JanusFlow: the names of its LoRA are the
    original implementation's, which are also those of `janus_core`.

    Args:
        model: a Janus or JanusFlow whose language model has LoRA layers, all of one rank and one alpha.
        like: the checkpoint that the model was built from.

    Returns:
        The file for ComfyUI.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = Path(folder)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    matrices, alphas = {}, {}
    for name, module in layers.items():
        adapter = next(iter(module.lora_A))
        matrices[f"{name}.lora_A.weight"] = _stored(module.lora_A[adapter].weight)
        matrices[f"{name}.lora_B.weight"] = _stored(module.lora_B[adapter].weight)
        alphas[name] = float(module.lora_alpha[adapter])
    ranks = {len(tensor) for key, tensor in matrices.items() if key.endswith(".lora_A.weight")}
    if len(ranks) != 1 or len(set(alphas.values())) != 1:
        raise ValueError("A LoRA of one rank and one alpha is needed.")

    converted = transformers_name if like.family == Janus.family else str
    save_tensors({PEFT_PREFIX + converted(key): tensor for key, tensor in matrices.items()},
                 folder / "peft" / PEFT_WEIGHTS[0], {"format": "pt"})  # fmt: skip
    config = _peft_config(layers, ranks.pop(), alphas[name], like)
    write_text(folder / "peft" / PEFT_CONFIG, json.dumps(config, indent=2) + "\n")
    comfyui = {COMFYUI_PREFIX + key: tensor for key, tensor in matrices.items()}
    comfyui |= {f"{COMFYUI_PREFIX}{name}.alpha": torch.tensor(alpha) for name, alpha in alphas.items()}
    save_tensors(comfyui, folder / "lora.safetensors", {"format": "pt"})
    return folder / "lora.safetensors"


def _stored(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu", torch.bfloat16)


def _peft_config(layers, rank: int, alpha: float, like: Checkpoint) -> dict:
    """adapter_config.json. Its pattern finds the layers under transformers' names as well as the original ones."""
    kinds = sorted({re.sub(r"^.*\.layers\.\d+\.", "", name) for name in layers})
    kinds = "|".join(re.escape(kind) for kind in kinds)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(like.path),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf"(.*\.)?language_model\.(model\.)?layers\.\d+\.({kinds})",
        "inference_mode": True,
    }
