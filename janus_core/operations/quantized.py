"""Linear layers whose weights may be quantised, as an `operations` namespace over another one."""

from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint.quantize import NOTE, SCALE, is_rotated
from ..errors import CheckpointError

FEW_ROWS = 8  # up to as many, a product reads the int8 weight itself; for more, widening it first costs less


def operations_over(base) -> SimpleNamespace:
    """`base` with a Linear that loads quantised layers too; the others are base's own."""

    class Linear(base.Linear):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("scale", None, persistent=False)
            self.cast_scale = None  # as the last input needed it

        def _load_from_state_dict(self, state, prefix, *args):
            if prefix + NOTE not in state:
                return super()._load_from_state_dict(state, prefix, *args)
            if is_rotated(state[prefix + NOTE]):
                raise CheckpointError(f"{prefix}weight is rotated (ConvRot), which only ComfyUI's own layers undo.")
            self.weight = nn.Parameter(state[prefix + "weight"], requires_grad=False)
            if self.bias is not None:
                self.bias = nn.Parameter(state[prefix + "bias"], requires_grad=False)
            self.scale = self.cast_scale = state[prefix + SCALE].flatten()

        def forward(self, x):
            if self.scale is None:
                return super().forward(x)
            if (self.cast_scale.dtype, self.cast_scale.device) != (x.dtype, x.device):
                self.cast_scale = self.scale.to(x.dtype)
            scale = self.cast_scale
            rows = x.reshape(-1, x.shape[-1])
            stored = self.weight.dtype
            few = len(rows) <= FEW_ROWS and len(scale) > 1 and (stored, x.dtype) == (torch.int8, torch.bfloat16)
            if few and _reads_int8(x.device):
                y = torch._weight_int8pack_mm(rows, self.weight, scale).view(*x.shape[:-1], -1)
            elif x.dtype == torch.float16:  # products with what is not yet scaled would overflow
                y = F.linear(x, (self.weight.float() * self.scale[:, None]).to(x.dtype))
            else:
                y = F.linear(x, self.weight.to(x.dtype)) * scale
            return y if self.bias is None else y + self.bias

    names = ("Conv2d", "Embedding", "GroupNorm", "LayerNorm", "RMSNorm")
    return SimpleNamespace(Linear=Linear, **{name: getattr(base, name) for name in names})


@cache
def _reads_int8(device: torch.device) -> bool:
    """Whether this build of torch multiplies by int8 weights on the device, by trying it."""
    try:
        x = torch.ones(1, 64, dtype=torch.bfloat16, device=device)
        weight = torch.ones(64, 64, dtype=torch.int8, device=device)
        return bool((torch._weight_int8pack_mm(x, weight, x[0]) == 64).all())
    except (RuntimeError, AttributeError):
        return False
