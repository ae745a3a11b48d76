"""The VQ-16 image tokenizer of the autoregressive family (LlamaGen, arXiv 2406.06525, section 3.1).

A convolutional encoder and decoder around a codebook of short vectors that are L2-normalised on lookup.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..attention import attention as default_attention
from ..errors import SamplingError

GROUPS = 32
NORM_EPS = 1e-6


@dataclass(frozen=True)
class VQParams:
    """Dimensions of the image tokenizer."""

    codebook_size: int
    codebook_dim: int
    z_channels: int
    channels: tuple[int, ...]  # per level, from full resolution down
    res_blocks: int = 2
    base_channels: int | None = None  # of the encoder's first convolution; None for those of the first level

    @property
    def downscale(self) -> int:
        """Width and height of a token, in pixels."""
        return 2 ** (len(self.channels) - 1)


def swish(x):
    return x * torch.sigmoid(x)


class ResBlock(nn.Module):
    """Two convolutions with a residual connection, [B, inputs, h, w] to [B, outputs, h, w]."""

    def __init__(self, inputs, outputs, ops):
        super().__init__()
        self.norm1 = ops.norm(inputs)
        self.conv1 = ops.conv(inputs, outputs, 3)
        self.norm2 = ops.norm(outputs)
        self.conv2 = ops.conv(outputs, outputs, 3)
        self.nin_shortcut = ops.conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels, ops):
        super().__init__()
        self.attention = ops.attention
        self.norm = ops.norm(channels)
        self.q, self.k, self.v = (ops.conv(channels, channels, 1) for _ in range(3))
        self.proj_out = ops.conv(channels, channels, 1)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))
        h = self.attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and the bottom only, [B, C, h, w] to [B, C, h / 2, w / 2]."""

    def __init__(self, channels, ops):
        super().__init__()
        self.conv = ops.conv(channels, channels, 3, stride=2, padding=0)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour and a convolution, [B, C, h, w] to [B, C, 2 h, 2 w]."""

    def __init__(self, channels, ops):
        super().__init__()
        self.conv = ops.conv(channels, channels, 3)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual (and, at the lowest resolution, attention) blocks of one resolution."""

    def __init__(self, inputs, outputs, blocks, with_attention, ops, downsample=False, upsample=False):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs, ops) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(outputs, ops) for _ in range(blocks if with_attention else 0))
        self.downsample = Downsample(outputs, ops) if downsample else nn.Identity()
        self.upsample = Upsample(outputs, ops) if upsample else nn.Identity()

    def forward(self, x):
        for i, res in enumerate(self.res):
            x = res(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


def middle(channels, ops):
    return nn.ModuleList(
        (ResBlock(channels, channels, ops), AttentionBlock(channels, ops), ResBlock(channels, channels, ops))
    )


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to [B, z_channels, H / downscale, W / downscale]."""

    def __init__(self, params: VQParams, ops):
        super().__init__()
        c, last = params.channels, len(params.channels) - 1
        inputs = (params.base_channels or c[0], *c)
        self.conv_in = ops.conv(3, inputs[0], 3)
        self.conv_blocks = nn.ModuleList(
            Level(inputs[i], c[i], params.res_blocks, i == last, ops, downsample=i != last) for i in range(last + 1)
        )
        self.mid = middle(c[last], ops)
        self.norm_out = ops.norm(c[last])
        self.conv_out = ops.conv(c[last], params.z_channels, 3)

    def forward(self, x):
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(swish(self.norm_out(x)))


class Decoder(nn.Module):
    """[B, z_channels, h, w] to pixels [B, 3, h * downscale, w * downscale]."""

    def __init__(self, params: VQParams, ops):
        super().__init__()
        c, last = params.channels[::-1], len(params.channels) - 1
        self.conv_in = ops.conv(params.z_channels, c[0], 3)
        self.mid = middle(c[0], ops)
        self.conv_blocks = nn.ModuleList(
            Level(c[max(i - 1, 0)], c[i], params.res_blocks + 1, i == 0, ops, upsample=i != last)
            for i in range(last + 1)
        )
        self.norm_out = ops.norm(c[last])
        self.conv_out = ops.conv(c[last], 3, 3)

    def forward(self, x):
        x = self.conv_in(x)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(swish(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, params: VQParams, operations, device, dtype):
        super().__init__()
        self.embedding = operations.Embedding(params.codebook_size, params.codebook_dim, device=device, dtype=dtype)


@dataclass(frozen=True)
class _LayerFactory:
    """Constructors of the tokenizer's layers, bound to one `operations` namespace."""

    operations: object
    attention: object
    device: object
    dtype: object

    def conv(self, inputs, outputs, kernel, stride=1, padding=None):
        padding = kernel // 2 if padding is None else padding
        return self.operations.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, device=self.device, dtype=self.dtype
        )

    def norm(self, channels):
        return self.operations.GroupNorm(GROUPS, channels, eps=NORM_EPS, device=self.device, dtype=self.dtype)


class VQModel(nn.Module):
    """Images to codebook tokens and back.

    A token latent is float32 [B, codebook_dim, h, w]: the normalised codebook vectors on the token grid.
    """

    def __init__(self, params: VQParams, operations=torch.nn, attention=default_attention, device=None, dtype=None):
        super().__init__()
        self.params = params
        ops = _LayerFactory(operations, attention, device, dtype)
        self.encoder = Encoder(params, ops)
        self.decoder = Decoder(params, ops)
        self.quantize = Codebook(params, operations, device, dtype)
        self.quant_conv = ops.conv(params.z_channels, params.codebook_dim, 1)
        self.post_quant_conv = ops.conv(params.codebook_dim, params.z_channels, 1)

    def codebook(self, like):
        """The L2-normalised codebook in float32 on the device of `like`, [codebook_size, codebook_dim]."""
        return normalised_codebook(self.quantize.embedding.weight.to(like.device))

    def encode(self, pixels):
        """The token latent of pixels [B, 3, H, W] in [-1, 1], H and W multiples of `params.downscale`.

        Raises:
            SamplingError: the encoder's output is not finite.
        """
        grid = [side // self.params.downscale for side in pixels.shape[-2:]]
        return tokens_to_latent(self.encode_tokens(pixels), self.codebook(pixels), grid)

    def encode_tokens(self, pixels):
        """The tokens int64 [B, h * w] of pixels, in raster order; see `encode`."""
        z = self.quant_conv(self.encoder(pixels)).float()
        if not z.isfinite().all():  # the nearest entry would still be one
            raise SamplingError("The VQ encoder's output is not finite: use bf16 or fp32 weights.")
        return latent_to_tokens(z, self.codebook(z))

    def decode(self, latent):
        """latent: [B, codebook_dim, h, w]; each vector is first replaced by its nearest codebook entry.

        Returns pixels [B, 3, h * downscale, w * downscale] around [-1, 1], not clamped, in `latent`'s dtype.
        """
        tokens = latent_to_tokens(latent.float(), self.codebook(latent))
        return self.decode_tokens(tokens, latent.shape[-2:], latent.dtype)

    def decode_tokens(self, tokens, grid: tuple[int, int], dtype: torch.dtype):
        """Tokens [B, h * w] on `grid` = (h, w) to pixels in `dtype`, as `decode` returns them."""
        quantised = tokens_to_latent(tokens, self.codebook(tokens), grid)
        return self.decoder(self.post_quant_conv(quantised.to(dtype)))


def normalised_codebook(weight):
    """Codebook weight [N, D] as used in lookups: float32, rows of unit length."""
    return F.normalize(weight.float(), dim=-1)


def latent_to_tokens(latent, codebook):
    """Nearest codebook entries of a latent [B, D, h, w], normalised or not: int64 [B, h * w] in raster order."""
    z = F.normalize(latent.float().flatten(2).transpose(1, 2), dim=-1)
    distance = z.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * z @ codebook.T
    return distance.argmin(-1)


def tokens_to_latent(tokens, codebook, grid):
    """Token latent float32 [B, D, h, w] of tokens [B, h * w] on `grid` = (h, w)."""
    return codebook[tokens].transpose(1, 2).unflatten(2, tuple(grid)).contiguous()
