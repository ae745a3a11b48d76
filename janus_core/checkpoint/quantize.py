"""Weight-only quantisation of the language model, in the tensors that ComfyUI's quantised checkpoints have.

A quantised layer has its `weight` in fewer bits, a `weight_scale` that it is multiplied by, and `comfy_quant`, JSON as
bytes that names the format (ComfyUI's QUANTIZATION.md).
"""

import json
from dataclasses import dataclass, replace

import torch

from ..errors import CheckpointError

SCALE, NOTE = "weight_scale", "comfy_quant"
LANGUAGE_MODEL = "language_model.model.layers."


@dataclass(frozen=True)
class Format:
    """ComfyUI's name of a format, its storage dtype, and whether every output channel has a scale of its own."""

    name: str
    dtype: torch.dtype
    per_channel: bool


FORMATS = {
    "int8": Format("int8_tensorwise", torch.int8, per_channel=True),
    "fp8_e4m3fn": Format("float8_e4m3fn", torch.float8_e4m3fn, per_channel=False),
}
READABLE = ("int8_tensorwise", "float8_e4m3fn", "float8_e5m2")


@torch.no_grad()
def quantize_weight(weight: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a weight to the nearest values of a format, symmetric around zero.

    Args:
        weight: [out, in].

    Returns:
        The weight in the format's dtype, and its scale: float32 [out, 1] per channel, else a scalar.
    """
    weight = weight.float()
    largest = weight.abs().amax(1, keepdim=True) if format.per_channel else weight.abs().amax()
    is_float = format.dtype.is_floating_point
    limit = (torch.finfo if is_float else torch.iinfo)(format.dtype).max
    scale = (largest / limit).clamp(min=1e-12)
    scaled = weight / scale
    if not is_float:
        scaled = scaled.round()
    return scaled.clamp(-limit, limit).to(format.dtype), scale


def quantized(checkpoint, weight_dtype: str):
    """A checkpoint whose language model's linear layers are quantised; embeddings, heads and encoders stay as they are.

    Layers that already are quantised are kept.

    Args:
        weight_dtype: a key of FORMATS.

    Raises:
        CheckpointError: it is none.
    """
    if weight_dtype not in FORMATS:
        raise CheckpointError(f"Weights cannot be kept as {weight_dtype}: {', '.join(FORMATS)} are the choices.")
    format = FORMATS[weight_dtype]
    settings = {"format": format.name}
    if format.dtype.is_floating_point:
        settings["full_precision_matrix_mult"] = True  # ComfyUI would else clip activations to the format's range
    note = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    tensors = dict(checkpoint.tensors)
    for name, weight in checkpoint.tensors.items():
        layer = name.removesuffix(".weight")
        is_linear = name.startswith(LANGUAGE_MODEL) and weight.dim() == 2 and layer != name
        if is_linear and f"{layer}.{NOTE}" not in tensors:
            tensors[name], tensors[f"{layer}.{SCALE}"] = quantize_weight(weight, format)
            tensors[f"{layer}.{NOTE}"] = note
    return replace(checkpoint, tensors=tensors)


def quantized_layers(tensors) -> set[str]:
    """Names of the quantised layers among tensors by name.

    Raises:
        CheckpointError: one is in a format that the networks cannot be built from.
    """
    layers = {name.removesuffix(f".{NOTE}") for name in tensors if name.endswith(f".{NOTE}")}
    for layer in layers:
        stored = settings_of(tensors[f"{layer}.{NOTE}"]).get("format")
        if stored not in READABLE:
            raise CheckpointError(
                f"{layer} is quantised as {stored}, which is not supported: {', '.join(READABLE)} are."
            )
        if f"{layer}.{SCALE}" not in tensors:
            raise CheckpointError(f"The weights lack {layer}.{SCALE}, which a quantised layer needs.")
    return layers


def settings_of(note: torch.Tensor) -> dict:
    """What a layer's `comfy_quant` says, {} where it cannot be read."""
    try:
        settings = json.loads(bytes(note.tolist()))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def is_rotated(note: torch.Tensor) -> bool:
    """Whether a layer's weight is rotated along its inputs (ConvRot), which ComfyUI's kernels undo."""
    settings = settings_of(note)
    inner = settings.get("params")
    return bool(settings.get("convrot") or (isinstance(inner, dict) and inner.get("convrot")))
