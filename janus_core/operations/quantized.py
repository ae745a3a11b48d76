"""An `operations` namespace whose linear layers can have weights of 8 or 4 bits."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import int4
from ..checkpoint.quantize import COMFY_QUANT, WEIGHT_SCALE, is_int4, is_rotated, quant_settings
from ..errors import CheckpointError
from . import packed, packed_int8


def operations_over(base) -> SimpleNamespace:
    """The layers of `base`, but a Linear that can load quantised weights too.

    On a CPU, int8 weights are multiplied as int8 where the processor can (see packed_int8), and other quantised weights
    are dequantised once, when first used, those of 4 bits when loaded. Elsewhere 8 bits are dequantised for every
    product, and comfy-kitchen multiplies 4.
    """

    class Linear(base.Linear):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("scale", None, persistent=False)
            self.packed_int8 = packed_int8.PackedInt8Weight()

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

        def packed_form(self, x) -> str | None:
            if base is not packed:
                return None
            form = super().packed_form(x)
            if form is None or self.scale is None:
                return form
            return "int8" if self.weight.dtype == torch.int8 and packed_int8.available() else "dequantized"

        def packed_product(self, x, layers):
            if self.scale is None:
                return super().packed_product(x, layers)
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
            if self.packed_form(x) == "int8":
                return self.packed_int8.linear(x, weights, biases, weights, [layer.scale for layer in layers])
            return self.packed.linear(x, weights, biases, lambda: [layer.dequantized() for layer in layers])

        def forward(self, x):
            if self.scale is None or self.packed_form(x):
                return super().forward(x)
            if x.dtype == torch.float16:  # products with the unscaled weight would overflow
                return F.linear(x, self.dequantized().to(x.dtype), self.bias)
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
            return y if self.bias is None else y + self.bias

        def dequantized(self):
            """The weight in float32, [out, in]."""
            return self.weight.float() * self.scale[:, None]

    names = ("Conv2d", "Embedding", "GroupNorm", "LayerNorm", "RMSNorm")
    return SimpleNamespace(Linear=Linear, **{name: getattr(base, name) for name in names})
