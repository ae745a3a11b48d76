"""An `operations` namespace whose linear layers can have 8-bit weights."""

from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint.quantize import COMFY_QUANT, WEIGHT_SCALE, is_rotated
from ..errors import CheckpointError

MAX_INT8_ROWS = 8  # above, converting the int8 weight to the input's dtype first is faster


def operations_over(base) -> SimpleNamespace:
    """The layers of `base`, but a Linear that can load quantised weights too."""

    class Linear(base.Linear):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("scale", None, persistent=False)
            self.cast_scale = None  # in the dtype and on the device of the last input

        def _load_from_state_dict(self, state, prefix, *args):
            if prefix + COMFY_QUANT not in state:
                return super()._load_from_state_dict(state, prefix, *args)
            if is_rotated(state[prefix + COMFY_QUANT]):
                raise CheckpointError(
                    f"{prefix}weight is rotated (ConvRot), which only ComfyUI's own layers support: load it in ComfyUI."
                )
            self.weight = nn.Parameter(state[prefix + "weight"], requires_grad=False)
            if self.bias is not None:
                self.bias = nn.Parameter(state[prefix + "bias"], requires_grad=False)
            self.scale = self.cast_scale = state[prefix + WEIGHT_SCALE].flatten()

        def forward(self, x):
            if self.scale is None:
                return super().forward(x)
            if (self.cast_scale.dtype, self.cast_scale.device) != (x.dtype, x.device):
                self.cast_scale = self.scale.to(x.dtype)
            scale = self.cast_scale
            rows = x.reshape(-1, x.shape[-1])
            small_int8 = self.weight.dtype == torch.int8 and len(scale) > 1 and len(rows) <= MAX_INT8_ROWS
            if small_int8 and x.dtype == torch.bfloat16 and _has_int8_matmul(x.device):
                y = torch._weight_int8pack_mm(rows, self.weight, scale).view(*x.shape[:-1], -1)
            elif x.dtype == torch.float16:  # products with the unscaled weight would overflow
                y = F.linear(x, (self.weight.float() * self.scale[:, None]).to(x.dtype))
            else:
                y = F.linear(x, self.weight.to(x.dtype)) * scale
            return y if self.bias is None else y + self.bias

    names = ("Conv2d", "Embedding", "GroupNorm", "LayerNorm", "RMSNorm")
    return SimpleNamespace(Linear=Linear, **{name: getattr(base, name) for name in names})


@cache
def _has_int8_matmul(device: torch.device) -> bool:
    """Whether this build of torch can multiply by int8 weights on a device; found out by trying."""
    try:
        x = torch.ones(1, 64, dtype=torch.bfloat16, device=device)
        weight = torch.ones(64, 64, dtype=torch.int8, device=device)
        return bool((torch._weight_int8pack_mm(x, weight, x[0]) == 64).all())
    except (RuntimeError, AttributeError):
        return False
