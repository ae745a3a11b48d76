"""Weights of 4 bits, in the layout that ComfyUI names asym_w4a8_int8.

Inputs are rotated in blocks of ROTATION (ConvRot); each weight is one of 16 levels of its layer's codebook, scaled per
GROUP in float8 and per output channel in float32: 4.5 bits in all. The package comfy-kitchen computes it. On a CPU its
product is some hundred times slower than a plain one, so the weights are decoded when they are loaded.
"""

import torch

from ..errors import CheckpointError

FORMAT = "asym_w4a8_int8"
LAYOUT = "AsymW4A8Int8Layout"
GROUP, ROTATION = 16, 256
SCALES, CHANNELS, CODEBOOK = "weight_s_rel", "weight_s_channel", "weight_codebook"
PARTS = (SCALES, CHANNELS, CODEBOOK)


def can_hold(weight: torch.Tensor, rotation: int = ROTATION) -> bool:
    """Whether the inputs of a weight [out, in] fill whole rotations."""
    return weight.dim() == 2 and weight.shape[1] % rotation == 0


def layout_of(outputs: int, inputs: int, group: int = GROUP) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """(shape, dtype) of the parts of a layer's file."""
    return {
        "weight": ((outputs, inputs // 2), torch.int8),
        SCALES: ((outputs, inputs // group), torch.float8_e4m3fn),
        CHANNELS: ((outputs,), torch.float32),
        CODEBOOK: ((16,), torch.float32),
    }


def kitchen():
    """comfy-kitchen's tensors. Raises CheckpointError where they are missing."""
    try:
        from comfy_kitchen import tensor

        return tensor.AsymW4A8Int8Layout, tensor.QuantizedTensor
    except (ImportError, AttributeError):
        raise CheckpointError(
            "int4 weights need comfy-kitchen 0.2.31 or newer: run `pip install comfy-kitchen`, or use int8 weights."
        ) from None


@torch.no_grad()
def quantize(weight: torch.Tensor, device=None, rotation: int = ROTATION) -> dict[str, torch.Tensor]:
    """The tensors of a layer in a file, by the last part of their names: "weight" and those of PARTS.

    Args:
        weight: [out, in].
        device: where to compute; the weight's by default.
        rotation: inputs per rotation: 16, 64 or 256.
    """
    layout, _ = kitchen()
    packed, params = layout.quantize(weight.to(device).float(), group_size=GROUP, convrot_groupsize=rotation)
    parts = {"weight": packed, SCALES: params.scale, CHANNELS: params.s_channel, CODEBOOK: params.codebook}
    return {name: tensor.to(weight.device) for name, tensor in parts.items()}


def tensor_of(parts: dict[str, torch.Tensor], settings: dict, dtype: torch.dtype):
    """A layer's weight as comfy-kitchen's tensor, which F.linear multiplies by.

    Args:
        parts: as `quantize` returns them.
        settings: the layer's comfy_quant.
        dtype: of the products and of the decoded weight.
    """
    layout, tensor = kitchen()
    packed, scales = parts["weight"], parts[SCALES]
    params = layout.Params(
        scale=scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales,
        s_channel=parts[CHANNELS],
        codebook=parts.get(CODEBOOK),
        group_size=int(settings.get("group_size", GROUP)),
        convrot_groupsize=int(settings.get("convrot_groupsize", ROTATION)),
        orig_dtype=dtype,
        orig_shape=(len(packed), 2 * packed.shape[1]),
    )
    return tensor(packed, LAYOUT, params)


def check(layer: str, tensors: dict, settings: dict):
    """Raises CheckpointError unless the parts of a layer fit each other."""
    weight, group = tensors.get(f"{layer}.weight"), settings.get("group_size", GROUP)
    missing = [part for part in (SCALES, CHANNELS) if f"{layer}.{part}" not in tensors]
    if missing:
        raise CheckpointError(f"The weights lack {layer}.{missing[0]}, which a layer of 4 bits needs.")
    if weight is None or weight.dtype != torch.int8 or weight.dim() != 2 or type(group) is not int or group < 4:
        raise CheckpointError(f"{layer}.weight is not the packed matrix that its settings say.")
    for part, (shape, dtype) in layout_of(len(weight), 2 * weight.shape[1], group).items():
        tensor = tensors.get(f"{layer}.{part}")
        dtypes = (dtype, torch.uint8, torch.float32) if part == SCALES else (dtype,)
        if tensor is not None and (tensor.shape != shape or tensor.dtype not in dtypes):
            raise CheckpointError(
                f"{layer}.{part} is {list(tensor.shape)} of {tensor.dtype}: it does not fit the weight."
            )
    if not tensors[f"{layer}.{CHANNELS}"].isfinite().all():
        raise CheckpointError(f"{layer}.{CHANNELS} is not finite: download the checkpoint again.")
