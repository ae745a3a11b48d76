"""Linear layers with int8 weights on a CPU, by oneDNN's int8 product.

The input is quantised too, with one scale per row, as ComfyUI's int8 layers do.
"""

import weakref
from functools import cache

import torch

from .packed import padded

ZERO_POINT = 128  # oneDNN's fast kernel takes unsigned inputs


@cache
def available() -> bool:
    """Whether this build of torch and this CPU (AVX512-VNNI or AMX) multiply int8 exactly; found out by trying.

    Processors without VNNI add pairs of products in 16 bits, which overflows.
    """
    try:
        weight = torch.full((64, 256), 127, dtype=torch.int8)
        rows, ones = torch.full((4, 256), 255, dtype=torch.uint8), torch.ones(64)
        product = _product(rows, torch.ops.onednn.qlinear_prepack(weight, None), ones)
        return bool((product == (255 - ZERO_POINT) * 127 * 256).all())
    except (RuntimeError, AttributeError, TypeError):
        return False


class PackedInt8Weight:
    """An int8 weight in oneDNN's layout: packed when first used, and again after it has been replaced."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Frees the packed copy; the next product packs the weight as it is then."""
        self.source = self.packed = self.scale = None

    def linear(self, x, weight, values, scale, bias):
        """x [..., in] times scale * values, plus the bias, in x's dtype; without gradients.

        Args:
            weight: the layer's parameter, whose replacement is noticed.
            values: its int8 values, [out, in].
            scale: float32, of one element or one per output.
        """
        if self.packed is None or self.source() is not weight:
            self.clear()
            self.packed = torch.ops.onednn.qlinear_prepack(values.contiguous(), None)
            self.scale = scale.detach().float().flatten().expand(len(values)).contiguous()
            self.source = weakref.ref(weight)
        rows, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        y = _product(padded(rows), self.packed, self.scale)[: len(rows)].mul_(row_scale)
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias.to(x.dtype)

    def __deepcopy__(self, memo):
        return type(self)()  # oneDNN's tensors cannot be copied


def quantize_rows(rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, in] in 8 bits, symmetric around ZERO_POINT: (uint8 [n, in], float32 scale [n, 1])."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp_(min=1e-12).div_(127)
    return (rows / scale).round_().add_(ZERO_POINT).to(torch.uint8), scale


def _product(rows, packed, scale):
    """(rows - ZERO_POINT) times the packed weight times its scale, float32 [n, out]."""
    zero = torch.zeros(1, dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, ZERO_POINT, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
