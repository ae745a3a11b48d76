"""Checkpoints of a few hundred kilobytes, made on the spot, and what can be told of a loaded one."""

import hashlib
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer

from demo.recipe import new_models
from janus_core.checkpoint import (
    build_model,
    build_vq,
    check_checkpoint,
    detect_family,
    quantized_layers,
    read_checkpoint,
    save_folder,
)
from janus_core.networks.vq import VQModel, VQParams
from janus_core.operations.quantized import operations_over
from janus_core.prompt import PromptEncoder

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "data" / "goldens" / "ar-a" / "tokenizer.json"
FAMILIES = ("janus", "janusflow")
VQ = VQParams(16, codebook_dim=8, z_channels=32, channels=(32, 32), res_blocks=1, base_channels=32)
SIZES = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "layers": 3,
        "heads": 2,
        "head_dim": 16,
        "max_positions": 512,
    },
    "siglip": {"width": 32, "mlp_width": 48, "layers": 2, "heads": 2, "patch_size": 8, "tokens": 4},
    "uvit": {
        "latent_channels": 4,
        "channels": 16,
        "decoder_channels": 16,
        "encoder_blocks": 2,
        "decoder_blocks": 2,
        "kernel": 2,
        "stride": 2,
        "padding": 0,
        "upsamples": 1,
    },
}


@cache
def tiny(family: str):
    """A checkpoint of random float32 weights; its images have 16 x 16 pixels."""
    torch.manual_seed(0)
    vq = VQModel(VQ) if family == "janus" else None
    model = new_models.new_model(family, SIZES, 640, vq)
    checkpoint = new_models.new_checkpoint(model, Tokenizer.from_file(str(TOKENIZER)), vq=vq)
    checkpoint.tensors = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors.items()}
    return checkpoint


def write_tiny(family: str, folder: Path) -> Path:
    """Saves the tiny checkpoint as a folder in the original layout."""
    save_folder(tiny(family), folder, torch.float32)
    return folder


def digest(path: Path) -> str:
    """A hash of all that a checkpoint is loaded to: dimensions, weights, and how prompts are read.

    Raises:
        JanusError: it cannot be loaded.
    """
    detected = detect_family(path)
    checkpoint = read_checkpoint(path)
    check_checkpoint(checkpoint)
    quantized = bool(quantized_layers(checkpoint.tensors))
    model = build_model(checkpoint, operations_over(torch.nn) if quantized else torch.nn, dtype=torch.float32)
    prompts = PromptEncoder.of(checkpoint)
    parts = [repr(model.params), checkpoint.family, str(detected), prompts.user, str(prompts.special_ids.tolist())]
    parts += [str(prompts.ids("a" * 60 + "!").tolist())]  # on which some regular expressions take for ever
    parts += [str(prompts.generation_ids("a red circle").tolist()), str(prompts.question_ids("What?", 4).ids.tolist())]
    modules = [model] if checkpoint.family == "janusflow" else [model, build_vq(checkpoint, dtype=torch.float32)]
    total = hashlib.sha256("|".join(parts).encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            total.update(name.encode())
            total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
