"""Linear layers for the CPU with weights packed by oneDNN, as an `operations` namespace.

Packed weights stream from memory faster than plain ones for the one or two rows of a decode step, and multiply at least
as fast for many rows; benchmarks/speed.py measures whole tokens and steps. Everything else is torch.nn.
"""

import torch
import torch.nn.functional as F
from torch import nn

ROWS = 2  # the layout is chosen for a decode step with guidance; larger passes use it as well
DTYPES = (torch.float32, torch.bfloat16)

Conv2d, Embedding, GroupNorm, LayerNorm = nn.Conv2d, nn.Embedding, nn.GroupNorm, nn.LayerNorm
RMSNorm = nn.RMSNorm


def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor pack and multiply weights of this dtype, by trying it."""
    if dtype not in DTYPES:
        return False
    try:
        with torch.no_grad():
            return Linear(8, 8, dtype=dtype)(torch.ones(1, 8, dtype=dtype)).isfinite().all().item()
    except (RuntimeError, AttributeError):
        return False


class Linear(nn.Linear):
    """A linear layer for inference that packs its weight on the first call and keeps only the packed form.

    Calls that need gradients before that use the plain weight.
    """

    packed = None

    def forward(self, x):
        if self.packed is None:
            if torch.is_grad_enabled():
                return F.linear(x, self.weight, self.bias)
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS)
            self.weight = None
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
