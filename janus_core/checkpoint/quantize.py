"""Weight-only quantisation of the language model, in the layout of ComfyUI's quantised checkpoints.

A quantised layer has a `weight` of 8 bits, a `weight_scale` to multiply it by, and `comfy_quant`: JSON in bytes that
names the format (ComfyUI's QUANTIZATION.md). Those of 4 bits have other parts: see int4.py.
"""

import json
from dataclasses import dataclass, replace

import torch

from ..errors import CheckpointError
from ..files import parse_json
from . import int4
from .files import memory_mapped

WEIGHT_SCALE, COMFY_QUANT = "weight_scale", "comfy_quant"
QUANTIZED_PARTS = (WEIGHT_SCALE, COMFY_QUANT, "input_scale", *int4.PARTS)  # of a quantised layer, beside its weight
DECODER_LAYERS = "language_model.model.layers."
ROWS = 32  # rounded at a time: copies of whole weights in float32 would leave unused gaps in the heap


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
INT4 = "int4"
WEIGHT_CHOICES = (*FORMATS, INT4)
READABLE = {
    int4.FORMAT: torch.int8,
    "int8_tensorwise": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


@torch.no_grad()
def quantize_weight(weight: torch.Tensor, format: Format, out=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a weight to the nearest values of a format, symmetric around zero.

    Args:
        weight: [out, in].
        out: where the values are written to, of the weight's shape and the format's dtype; a new tensor by default.

    Returns:
        The weight in the format's dtype, and its scale: float32 [out, 1] per channel, else a scalar.
    """
    largest = torch.cat([rows.abs().amax(1, keepdim=True) for rows in weight.split(ROWS)]).float()
    if not format.per_channel:
        largest = largest.amax()
    is_float = format.dtype.is_floating_point
    limit = (torch.finfo if is_float else torch.iinfo)(format.dtype).max
    scale = (largest / limit).clamp(min=1e-12)
    stored = torch.empty(weight.shape, dtype=format.dtype, device=weight.device) if out is None else out
    for values, rows, scales in zip(*(t.split(ROWS) for t in (stored, weight, scale.expand(len(weight), 1)))):
        scaled = (rows.float() / scales).clamp_(-limit, limit)
        values.copy_(scaled if is_float else scaled.round_())
    return stored, scale


def quantized(checkpoint, weight_dtype: str, device=None, memory_map=False, rotation: int = int4.ROTATION):
    """A copy of a checkpoint with the decoder's linear layers quantised, except those that already are.

    Embeddings, heads and encoders keep their dtype.

    Args:
        weight_dtype: one of WEIGHT_CHOICES.
        device: where int4 is computed, which is slow on a CPU; the weights' own by default.
        memory_map: whether weights of 8 bits are memory-mapped, see files.memory_mapped: a CPU's layers pack a copy of
            them and then rarely read them again.
        rotation: of int4, in inputs; layers that it does not fill get int8.

    Raises:
        CheckpointError: weight_dtype is not one of these, or int4 lacks the package that computes it.
    """
    if not isinstance(weight_dtype, str) or weight_dtype not in WEIGHT_CHOICES:
        raise CheckpointError(f"Weights cannot be stored as {weight_dtype}: choose one of {', '.join(WEIGHT_CHOICES)}.")
    tensors = dict(checkpoint.tensors)
    for name, weight in checkpoint.tensors.items():
        layer = name.removesuffix(".weight")
        is_linear = name.startswith(DECODER_LAYERS) and weight.dim() == 2 and weight.numel() and layer != name
        if is_linear and f"{layer}.{COMFY_QUANT}" not in tensors:
            parts = _quantized_parts(weight, weight_dtype, device, memory_map, rotation)
            tensors.update({f"{layer}.{part}": tensor for part, tensor in parts.items()})
    return replace(checkpoint, tensors=tensors)


def _quantized_parts(weight, weight_dtype: str, device, memory_map: bool, rotation: int) -> dict[str, torch.Tensor]:
    """The tensors of a quantised layer by the last part of their names."""
    if weight_dtype == INT4 and int4.can_hold(weight, rotation):
        settings = {"format": int4.FORMAT, "group_size": int4.GROUP, "convrot_groupsize": rotation}
        return {**int4.quantize(weight, device, rotation), COMFY_QUANT: _comfy_quant(settings)}
    format = FORMATS["int8" if weight_dtype == INT4 else weight_dtype]
    settings = {"format": format.name}
    if format.dtype.is_floating_point:
        settings["full_precision_matrix_mult"] = True  # otherwise ComfyUI clips activations to the format's range
    out = memory_mapped(weight.shape, format.dtype) if memory_map else None
    stored, scale = quantize_weight(weight, format, out)
    return {"weight": stored, WEIGHT_SCALE: scale, COMFY_QUANT: _comfy_quant(settings)}


def _comfy_quant(settings: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def weight_shape(layer: str, tensors) -> torch.Size:
    """[out, in] of a quantised layer."""
    weight = tensors[f"{layer}.weight"]
    return (
        torch.Size((len(weight), 2 * weight.shape[1])) if is_int4(tensors[f"{layer}.{COMFY_QUANT}"]) else weight.shape
    )


def is_int4(comfy_quant: torch.Tensor) -> bool:
    return quant_settings(comfy_quant).get("format") == int4.FORMAT


def quantized_layers(tensors) -> set[str]:
    """Names of the quantised layers in a state dict.

    Raises:
        CheckpointError: a layer has an unsupported format, a weight of another dtype, or no usable scale.
    """
    layers = {name.removesuffix(f".{COMFY_QUANT}") for name in tensors if name.endswith(f".{COMFY_QUANT}")}
    for layer in layers:
        settings = quant_settings(tensors[f"{layer}.{COMFY_QUANT}"])
        format = settings.get("format")
        if not isinstance(format, str) or format not in READABLE:
            raise CheckpointError(
                f"{layer} is quantised as {format}, which is not supported: use one of {', '.join(READABLE)}."
            )
        if format == int4.FORMAT:
            int4.check(layer, tensors, settings)
            continue
        if f"{layer}.{WEIGHT_SCALE}" not in tensors:
            raise CheckpointError(f"The weights lack {layer}.{WEIGHT_SCALE}, which a quantised layer needs.")
        _check_layer(layer, READABLE[format], tensors)
    return layers


def _check_layer(layer: str, dtype: torch.dtype, tensors):
    """Raises CheckpointError unless a quantised layer's weight and scales fit each other."""
    weight, scale = tensors.get(f"{layer}.weight"), tensors[f"{layer}.{WEIGHT_SCALE}"]
    if weight is None or weight.dtype != dtype or weight.dim() != 2:
        raise CheckpointError(f"{layer}.weight is not the {dtype} matrix that its {COMFY_QUANT} says.")
    for name in (WEIGHT_SCALE, "input_scale"):
        one = tensors.get(f"{layer}.{name}")
        if one is None:
            continue
        per_channel = name == WEIGHT_SCALE and one.shape in ((len(weight),), (len(weight), 1))
        if not one.dtype.is_floating_point or not (one.numel() == 1 or per_channel):
            raise CheckpointError(
                f"{layer}.{name} is {list(one.shape)} of {one.dtype}: it must be a number, or one per output channel."
            )
    if not scale.float().isfinite().all():
        raise CheckpointError(f"{layer}.{WEIGHT_SCALE} is not finite: download the checkpoint again.")


def quant_settings(comfy_quant: torch.Tensor) -> dict:
    """The decoded JSON of a layer's `comfy_quant`, {} if it cannot be read."""
    if comfy_quant.dtype != torch.uint8 or comfy_quant.dim() != 1 or len(comfy_quant) > 10000:
        return {}
    try:
        return parse_json(bytes(comfy_quant.tolist()).decode("utf-8", "replace"), COMFY_QUANT)
    except CheckpointError:
        return {}


def is_rotated(comfy_quant: torch.Tensor) -> bool:
    """Whether a layer's weight is rotated along its inputs (ConvRot), which only ComfyUI's kernels undo."""
    settings = quant_settings(comfy_quant)
    inner = settings.get("params")
    return bool(settings.get("convrot") or (isinstance(inner, dict) and inner.get("convrot")))
