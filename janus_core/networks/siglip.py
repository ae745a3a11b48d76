"""The SigLIP vision transformer for image understanding (arXiv 2303.15343, ViT-L/16 at 384 pixels)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..attention import attention as default_attention


@dataclass(frozen=True)
class SiglipParams:
    """Dimensions of the vision transformer; `patch_size` is in pixels, `tokens` counts the patches of an image."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    patch_size: int
    tokens: int
    norm_eps: float = 1e-6

    @property
    def image_size(self) -> int:
        """Width and height of the square input image, in pixels."""
        return round(self.tokens**0.5) * self.patch_size


class Attention(nn.Module):
    """Self-attention over all patches, [B, tokens, width] to the same."""

    def __init__(self, params: SiglipParams, operations, attention, device, dtype):
        super().__init__()
        self.heads = params.heads
        self.attention = attention
        self.qkv = operations.Linear(params.width, 3 * params.width, device=device, dtype=dtype)
        self.proj = operations.Linear(params.width, params.width, device=device, dtype=dtype)

    def forward(self, x):
        B, L, C = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(self.attention(q, k, v).transpose(1, 2).reshape(B, L, C))


class MLP(nn.Module):
    def __init__(self, params: SiglipParams, operations, device, dtype):
        super().__init__()
        self.fc1 = operations.Linear(params.width, params.mlp_width, device=device, dtype=dtype)
        self.fc2 = operations.Linear(params.mlp_width, params.width, device=device, dtype=dtype)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a residual connection, [B, tokens, width] to the same."""

    def __init__(self, params: SiglipParams, operations, attention, device, dtype):
        super().__init__()
        self.norm1 = operations.LayerNorm(params.width, eps=params.norm_eps, device=device, dtype=dtype)
        self.attn = Attention(params, operations, attention, device, dtype)
        self.norm2 = operations.LayerNorm(params.width, eps=params.norm_eps, device=device, dtype=dtype)
        self.mlp = MLP(params, operations, device, dtype)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Siglip(nn.Module):
    """Patch features after the final norm; the checkpoint's attention pool is not used."""

    def __init__(self, params: SiglipParams, operations=torch.nn, attention=default_attention, device=None, dtype=None):
        super().__init__()
        self.params = params
        self.patch_embed = nn.Module()
        self.patch_embed.proj = operations.Conv2d(
            3, params.width, params.patch_size, stride=params.patch_size, device=device, dtype=dtype
        )
        self.pos_embed = nn.Parameter(torch.empty(1, params.tokens, params.width, device=device, dtype=dtype))
        self.blocks = nn.ModuleList(Block(params, operations, attention, device, dtype) for _ in range(params.layers))
        self.norm = operations.LayerNorm(params.width, eps=params.norm_eps, device=device, dtype=dtype)

    def forward(self, pixels):
        """pixels: [B, 3, image_size, image_size] in [-1, 1]. Returns [B, tokens, width]."""
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = x + self.pos_embed.to(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VisionTower(nn.Module):
    """Holds Siglip under the name in checkpoints, `vision_tower`."""

    def __init__(self, params: SiglipParams, **kwargs):
        super().__init__()
        self.vision_tower = Siglip(params, **kwargs)

    def forward(self, pixels):
        return self.vision_tower(pixels)
