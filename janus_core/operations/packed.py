"""An `operations` namespace whose linear layers have weights packed by oneDNN, for CPUs.

Packed weights make the one or two rows of a decode step faster, and larger batches no slower (benchmarks/speed.py).
"""

import weakref
from collections.abc import Callable, Iterable, Sequence

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


def joined(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Tensors one after the other; one alone is not copied."""
    tensors = list(tensors)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


class PackedWeight:
    """The weights and biases of linear layers with one input, beside each other in oneDNN's layout.

    They are packed in the dtype of the input when first used, and again after a weight has been replaced. The weights
    themselves stay as they are: memory-mapped from their file where the format allows, where LoRA patches and saving
    look for them. A change in place is not noticed: call `clear` after one.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Frees the packed copy; the next product packs the weights as they are then."""
        self.sources, self.packed, self.bias = (), None, None

    def is_of(self, weights) -> bool:
        """Whether these weights are packed."""
        return len(self.sources) == len(weights) and all(
            source() is weight for source, weight in zip(self.sources, weights)
        )

    def linear(self, x, weights, biases, dense: Callable[[], Sequence[torch.Tensor]] | None = None):
        """x [..., in] times the weights, plus the biases, in x's dtype; without gradients.

        Args:
            weights: each [outputs, in].
            biases: for each weight a tensor or None, the same for all.
            dense: what to pack instead of `weights`, where those are quantised.

        Returns:
            [..., sum of outputs].
        """
        if self.packed is None or self.packed.dtype != x.dtype or not self.is_of(weights):
            self.clear()
            values = joined(weight.detach().to(x.dtype) for weight in (dense() if dense else weights))
            self.packed = torch.ops.mkldnn._reorder_linear_weight(values, MIN_ROWS)
            self.bias = None if biases[0] is None else joined(bias.detach().to(x.dtype) for bias in biases)
            self.sources = tuple(weakref.ref(weight) for weight in weights)
        rows = x.reshape(-1, x.shape[-1])
        y = torch.ops.mkldnn._linear_pointwise(padded(rows), self.packed, self.bias, "none", [], "")
        return y[: len(rows)].view(*x.shape[:-1], -1)

    def __deepcopy__(self, memo):
        return type(self)()  # oneDNN's tensors cannot be copied


class CastingLinear(nn.Linear):
    """A linear layer that casts its weight to the dtype of the input."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class PackedProducts:
    """Placed before the class of a linear layer among the bases: multiplies by a packed weight where that is possible.

    Elsewhere the product is that of the layer's class.
    """

    casts_weight = True  # the weight may stay in the dtype of its file

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packed = PackedWeight()

    def can_pack(self, x) -> bool:
        """Whether a product with x may be that of a packed weight: not where gradients are needed."""
        return not torch.is_grad_enabled()

    def packed_form(self, x) -> str | None:
        """How a product with x is packed; None where it is not. Layers of one form can be multiplied together."""
        return "packed" if self.can_pack(x) else None

    def packed_product(self, x, layers):
        """x times the weights of layers of this one's packed form; this one is the first of them."""
        return self.packed.linear(x, [layer.weight for layer in layers], [layer.bias for layer in layers])

    def clear_packed(self):
        """Frees what is packed; needed after a weight has been changed in place."""
        self.packed.clear()

    def forward(self, x):
        return self.packed_product(x, [self]) if self.packed_form(x) else super().forward(x)


class Linear(PackedProducts, CastingLinear):
    """A linear layer with a packed weight, in the input's dtype."""


class Embedding(nn.Embedding):
    """An embedding table in the dtype of its file; the networks cast what they look up."""

    casts_weight = True
