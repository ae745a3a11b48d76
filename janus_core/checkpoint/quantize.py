"""Weight-only quantisation of the language model, in the layout of ComfyUI's quantised checkpoints.

A quantised layer has a `weight` of 8 bits, a `weight_scale` to multiply it by, and `comfy_quant`: JSON in bytes that
names the format (ComfyUI's QUANTIZATION.md).
"""

import json
from dataclasses import dataclass, replace

import torch

from ..errors import CheckpointError

WEIGHT_SCALE, COMFY_QUANT = "weight_scale", "comfy_quant"
QUANTIZED_PARTS = (WEIGHT_SCALE, COMFY_QUANT, "input_scale")  # of a quantised layer, beside its weight
DECODER_LAYERS = "language_model.model.layers."


@dataclass(frozen=True)
class Format:
    """A format: ComfyUI's name, the storage dtype, and whether there is one scale per output channel or only one."""

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
    """A copy of a checkpoint with the decoder's linear layers quantised, except those that already are.

    Embeddings, heads and encoders keep their dtype.

    Args:
        weight_dtype: a key of FORMATS.

    Raises:
        CheckpointError: weight_dtype is not one of these.
    """
    if weight_dtype not in FORMATS:
        raise CheckpointError(f"Weights cannot be stored as {weight_dtype}: choose one of {', '.join(FORMATS)}.")
    format = FORMATS[weight_dtype]
    settings = {"format": format.name}
    if format.dtype.is_floating_point:
        settings["full_precision_matrix_mult"] = True  # otherwise ComfyUI clips activations to the format's range
    comfy_quant = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    tensors = dict(checkpoint.tensors)
    for name, weight in checkpoint.tensors.items():
        layer = name.removesuffix(".weight")
        is_linear = name.startswith(DECODER_LAYERS) and weight.dim() == 2 and layer != name
        if is_linear and f"{layer}.{COMFY_QUANT}" not in tensors:
            tensors[name], tensors[f"{layer}.{WEIGHT_SCALE}"] = quantize_weight(weight, format)
            tensors[f"{layer}.{COMFY_QUANT}"] = comfy_quant
    return replace(checkpoint, tensors=tensors)


def quantized_layers(tensors) -> set[str]:
    """Names of the quantised layers in a state dict.

    Raises:
        CheckpointError: a layer has an unsupported format, or no scale.
    """
    layers = {name.removesuffix(f".{COMFY_QUANT}") for name in tensors if name.endswith(f".{COMFY_QUANT}")}
    for layer in layers:
        format = quant_settings(tensors[f"{layer}.{COMFY_QUANT}"]).get("format")
        if format not in READABLE:
            raise CheckpointError(
                f"{layer} is quantised as {format}, which is not supported: use one of {', '.join(READABLE)}."
            )
        if f"{layer}.{WEIGHT_SCALE}" not in tensors:
            raise CheckpointError(f"The weights lack {layer}.{WEIGHT_SCALE}, which a quantised layer needs.")
    return layers


def quant_settings(comfy_quant: torch.Tensor) -> dict:
    """The decoded JSON of a layer's `comfy_quant`, {} if it cannot be read."""
    try:
        settings = json.loads(bytes(comfy_quant.tolist()))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def is_rotated(comfy_quant: torch.Tensor) -> bool:
    """Whether a layer's weight is rotated along its inputs (ConvRot), which only ComfyUI's kernels undo."""
    settings = quant_settings(comfy_quant)
    inner = settings.get("params")
    return bool(settings.get("convrot") or (isinstance(inner, dict) and inner.get("convrot")))
