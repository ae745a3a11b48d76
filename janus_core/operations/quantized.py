"""An `operations` namespace whose linear layers can have weights of 8 or 4 bits."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import int4
from ..checkpoint.quantize import COMFY_QUANT, WEIGHT_SCALE, is_int4, is_rotated, quant_settings
from ..errors import CheckpointError
from . import packed
from .packed_quantized import PackedQuantizedProducts


def operations_over(base) -> SimpleNamespace:
    """The layers of `base`, but a Linear that can load quantised weights too.

    Args:
        base: torch.nn, or `packed` for a CPU.
    """
    names = ("Conv2d", "Embedding", "GroupNorm", "LayerNorm", "RMSNorm")
    linear = PackedLinear if base is packed else Linear
    return SimpleNamespace(Linear=linear, **{name: getattr(base, name) for name in names})


class QuantizedWeight:
    """Placed before the class of a linear layer among the bases: loads weights of 8 bits with a scale, and of 4 bits.

    8 bits are dequantised for every product. 4 bits are decoded when loaded to a CPU; elsewhere comfy-kitchen
    multiplies them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("scale", None, persistent=False)

    def _load_from_state_dict(self, state, prefix, *args):
        if prefix + COMFY_QUANT not in state:
            return super()._load_from_state_dict(state, prefix, *args)
        if is_rotated(state[prefix + COMFY_QUANT]):
            raise CheckpointError(
                f"{prefix}weight is rotated (ConvRot), which only ComfyUI's own layers support: load it in ComfyUI."
            )
        if self.bias is not None:
            self.bias = nn.Parameter(state[prefix + "bias"], requires_grad=False)
        if is_int4(state[prefix + COMFY_QUANT]):
            self.weight = nn.Parameter(self._int4_weight(state, prefix), requires_grad=False)
            return
        self.weight = nn.Parameter(state[prefix + "weight"], requires_grad=False)
        self.scale = state[prefix + WEIGHT_SCALE].flatten()

    def _int4_weight(self, state, prefix):
        """The weight as it is multiplied: decoded on a CPU, else comfy-kitchen's tensor."""
        parts = {part: state[prefix + part] for part in ("weight", *int4.PARTS) if prefix + part in state}
        weight = int4.tensor_of(parts, quant_settings(state[prefix + COMFY_QUANT]), self.weight.dtype)
        return weight.dequantize() if parts["weight"].device.type == "cpu" else weight

    def is_quantized(self) -> bool:
        return self.scale is not None

    def int8_parts(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return (self.weight, self.scale) if self.weight.dtype == torch.int8 else None

    def dequantized(self):
        """The weight in float32, [out, in]."""
        return self.weight.float() * self.scale[:, None]

    def forward(self, x):
        if not self.is_quantized():
            return super().forward(x)
        if x.dtype == torch.float16:  # products with the unscaled weight would overflow
            return F.linear(x, self.dequantized().to(x.dtype), self.bias)
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


class Linear(QuantizedWeight, nn.Linear):
    """A linear layer whose weight may be quantised."""


class PackedLinear(PackedQuantizedProducts, QuantizedWeight, packed.CastingLinear):
    """A linear layer whose weight may be quantised, packed for a CPU."""
