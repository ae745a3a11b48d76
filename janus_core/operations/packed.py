"""An `operations` namespace whose linear layers have weights packed by oneDNN, for CPUs; the others are torch.nn's.

Packed weights make the one or two rows of a decode step faster, and larger batches no slower (benchmarks/speed.py).
"""

import torch
import torch.nn.functional as F
from torch import nn

PACKED_FOR_ROWS = 2  # the batch that oneDNN chooses the layout for: a decode step with guidance
DTYPES = (torch.float32, torch.bfloat16)

Conv2d, Embedding, GroupNorm, LayerNorm = nn.Conv2d, nn.Embedding, nn.GroupNorm, nn.LayerNorm
RMSNorm = nn.RMSNorm


def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU support packed weights of a dtype; found out by trying."""
    if dtype not in DTYPES:
        return False
    try:
        with torch.no_grad():
            return Linear(8, 8, dtype=dtype)(torch.ones(1, 8, dtype=dtype)).isfinite().all().item()
    except (RuntimeError, AttributeError):
        return False


class Linear(nn.Linear):
    """A linear layer that replaces its weight by a packed one on the first call without gradients."""

    packed = None

    def forward(self, x):
        if self.packed is None:
            if torch.is_grad_enabled():
                return F.linear(x, self.weight, self.bias)
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), PACKED_FOR_ROWS)
            self.weight = None
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
