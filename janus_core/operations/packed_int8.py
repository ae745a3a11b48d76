"""Linear layers with int8 weights on a CPU, by oneDNN's int8 product.

The input is quantised too, with one scale per row, as ComfyUI's int8 layers do.
"""

import weakref
from functools import cache

import torch

from .packed import PackedWeight, joined, padded

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


class PackedInt8Weight(PackedWeight):
    """The int8 weights of linear layers with one input, beside each other in oneDNN's layout."""

    def linear(self, x, weights, biases, values, scales):
        """x [..., in] times scale * values, plus the biases, in x's dtype; without gradients.

        Args:
            weights: the layers' parameters, whose replacement is noticed.
            biases: for each weight a tensor or None, the same for all.
            values: their int8 values, each [outputs, in].
            scales: float32, each of one element or one per output.

        Returns:
            [..., sum of outputs].
        """
        if self.packed is None or not self.is_of(weights):
            self.clear()
            self.packed = torch.ops.onednn.qlinear_prepack(joined(values).contiguous(), None)
            expanded = [scale.detach().float().flatten().expand(len(v)) for scale, v in zip(scales, values)]
            self.scale = joined(expanded).contiguous()
            self.bias = None if biases[0] is None else joined(bias.detach().float() for bias in biases)
            self.sources = tuple(weakref.ref(weight) for weight in weights)
        rows, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        y = _product(padded(rows), self.packed, self.scale)[: len(rows)].mul_(row_scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], -1)


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
