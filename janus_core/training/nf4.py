"""Frozen linear layers of 4 bits under a LoRA: NormalFloat, of QLoRA (arXiv 2305.14314).

A block of BLOCK weights is stored as its largest magnitude, in bfloat16, and the nearest of 16 levels for each weight:
4.25 bits in all. Each product decodes the weight for itself, in the backward pass once more.
"""

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 64
LEVELS = (  # quantiles of the normal distribution, scaled to [-1, 1] (appendix E)
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def to_nf4(model):
    """Replaces the language model's linear layers, in place. Those that do not fill whole blocks stay as they are."""
    for parent in model.llama.layers.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer.weight.numel() % BLOCK == 0:
                setattr(parent, name, NF4Linear(layer.weight))


class NF4Linear(nn.Linear):
    """A linear layer without bias whose weight has 4 bits and no gradient.

    Args:
        weight: [out, in], of a multiple of BLOCK values.
    """

    def __init__(self, weight: torch.Tensor):
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        packed, scale = quantize(weight)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        levels = torch.tensor(LEVELS, device=weight.device)
        pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)
        self.register_buffer("pairs", pairs, persistent=False)  # [256, 2]: the two weights of a byte

    def forward(self, x):
        device = x.device.type
        return _Product.apply(x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x, self)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in]."""
        values = F.embedding(self.weight.int(), self.pairs.to(dtype)).view(-1, BLOCK)
        return values.mul_(self.scale.to(dtype)).view(self.out_features, self.in_features)


@torch.no_grad()
def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight in 4 bits: uint8 [blocks, BLOCK / 2], the first of two weights in the high bits; scales [blocks, 1]."""
    blocks = weight.detach().reshape(-1, BLOCK).float()
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30).bfloat16()
    levels = torch.tensor(LEVELS, device=weight.device)
    nearest = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
    return nearest[:, ::2] << 4 | nearest[:, 1::2], scale


class _Product(torch.autograd.Function):
    """x times a layer's weight, with a gradient for x alone; no decoded weight outlives its product."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return F.linear(x, layer.decoded(x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.decoded(gradient.dtype), None
