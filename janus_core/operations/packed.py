"""An `operations` namespace whose linear layers have weights packed by oneDNN, for CPUs.

Packed weights make the one or two rows of a decode step faster, and larger batches no slower (benchmarks/speed.py).
"""

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

MIN_ROWS = 4  # oneDNN multiplies one or two rows more slowly than four
DTYPES = (torch.float32, torch.bfloat16)

Conv2d, GroupNorm, LayerNorm, RMSNorm = nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm


def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU support packed weights of a dtype; found out by trying."""
    if dtype not in DTYPES:
        return False
    try:
        with torch.no_grad():
            return Linear(8, 8, dtype=dtype)(torch.ones(1, 8, dtype=dtype)).isfinite().all().item()
    except (RuntimeError, AttributeError):
        return False


def padded(rows):
    """Rows [n, in] with zeros below them where n is less than MIN_ROWS, unless it is 0."""
    missing = MIN_ROWS - len(rows)
    return F.pad(rows, (0, 0, 0, missing)) if 0 < missing < MIN_ROWS else rows


class PackedWeight:
    """A linear layer's weight and bias in oneDNN's layout.

    They are packed in the dtype of the input when first used, and again after the layer's weight has been replaced. The
    weight itself stays as it is: memory-mapped from its file where the format allows, where LoRA patches and saving
    look for it. A change in place is not noticed: call `clear` after one.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Frees the packed copy; the next product packs the weight as it is then."""
        self.source = self.packed = self.bias = None

    def linear(self, x, weight, bias, dense: Callable[[], torch.Tensor] | None = None):
        """x [..., in] times the weight [out, in] in x's dtype, plus the bias; without gradients.

        Args:
            dense: what to pack instead of `weight`, where that is quantised.
        """
        if self.packed is None or self.packed.dtype != x.dtype or self.source() is not weight:
            self.clear()
            values = weight.detach() if dense is None else dense()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(values.to(x.dtype), MIN_ROWS)
            self.bias = None if bias is None else bias.detach().to(x.dtype)
            self.source = weakref.ref(weight)
        rows = x.reshape(-1, x.shape[-1])
        y = torch.ops.mkldnn._linear_pointwise(padded(rows), self.packed, self.bias, "none", [], "")
        return y[: len(rows)].view(*x.shape[:-1], -1)

    def __deepcopy__(self, memo):
        return type(self)()  # oneDNN's tensors cannot be copied


class Linear(nn.Linear):
    """A linear layer that multiplies by a packed weight, in the input's dtype, unless gradients are needed."""

    casts_weight = True  # the weight may stay in the dtype of its file

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packed = PackedWeight()

    def forward(self, x):
        if torch.is_grad_enabled():
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        return self.packed.linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """An embedding table in the dtype of its file; the networks cast what they look up."""

    casts_weight = True
