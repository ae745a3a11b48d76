"""JanusFlow's encoder and decoder between latents and the language model: g_enc and g_dec in arXiv 2411.07975, 3.2.

ConvNeXt blocks with global response norm (arXiv 2301.00808), modulated by the time embedding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class UViTParams:
    """Dimensions of the encoder and the decoder; `kernel`, `stride` and `padding` are of the encoder's convolution."""

    latent_channels: int
    channels: int  # of the encoder and the skip connection
    decoder_channels: int  # of the projected hidden states that the decoder reads
    hidden_size: int
    encoder_blocks: int
    decoder_blocks: int
    kernel: int
    stride: int
    padding: int
    upsamples: int
    norm_eps: float = 1e-6
    decoder_norm_eps: float = 1e-6


MAX_PERIOD = 10000.0  # of the sinusoids of a time's embedding


def timestep_embedding(t, dim: int):
    """Sinusoidal embedding of t [B], cosines first, float32 [B, dim] (diffusers' Timesteps, flipped, shift 0)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, inputs, outputs, operations, device, dtype):
        super().__init__()
        self.linear_1 = operations.Linear(inputs, outputs, device=device, dtype=dtype)
        self.linear_2 = operations.Linear(outputs, outputs, device=device, dtype=dtype)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class GlobalResponseNorm(nn.Module):
    """x (1 + weight N(x)) + bias; N(x) is the L2 norm over h and w, over its channel mean; x is [B, h, w, C]."""

    def __init__(self, channels, device, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, 1, channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(1, 1, 1, channels, device=device, dtype=dtype))

    def forward(self, x):
        g = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        n = g / (g.mean(dim=-1, keepdim=True) + 1e-6)
        return torch.addcmul(self.bias.to(x), self.weight.to(x) * n + 1, x)


class ConvNeXtBlock(nn.Module):
    """x [B, channels, h, w] and the time embedding [B, hidden_size] to [B, channels, h, w]."""

    def __init__(self, channels, hidden_size, norm_eps, operations, device, dtype):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.depthwise = operations.Conv2d(channels, channels, 7, padding=3, groups=channels, **kw)
        self.norm = operations.RMSNorm(channels, eps=norm_eps, **kw)
        self.channelwise_linear_1 = operations.Linear(channels, 4 * channels, **kw)
        self.channelwise_norm = GlobalResponseNorm(4 * channels, **kw)
        self.channelwise_linear_2 = operations.Linear(4 * channels, channels, **kw)
        self.cond_embeds_mapper = operations.Linear(hidden_size, 2 * channels, **kw)

    def forward(self, x, t_emb):
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.channelwise_norm(F.gelu(self.channelwise_linear_1(h)))
        x = x + self.channelwise_linear_2(h).permute(0, 3, 1, 2)
        scale, shift = self.cond_embeds_mapper(F.silu(t_emb))[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class Blocks(nn.Module):
    """A sequence of ConvNeXt blocks under the name in checkpoints, `res_blocks`."""

    def __init__(self, channels, count, hidden_size, norm_eps, operations, device, dtype):
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ConvNeXtBlock(channels, hidden_size, norm_eps, operations, device, dtype) for _ in range(count)
        )

    def forward(self, x, t_emb):
        for block in self.res_blocks:
            x = block(x, t_emb)
        return x


class UViTEncoder(nn.Module):
    """g_enc: latents and time to one feature vector per image token."""

    def __init__(self, params: UViTParams, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        self.params = params
        kw = {"device": device, "dtype": dtype}
        self.time_embed = TimeEmbedding(params.channels, params.hidden_size, operations, **kw)
        self.in_conv = operations.Conv2d(
            params.latent_channels, params.channels, params.kernel, stride=params.stride, padding=params.padding, **kw
        )
        self.mid_block = Blocks(
            params.channels, params.encoder_blocks, params.hidden_size, params.norm_eps, operations, **kw
        )

    def forward(self, z, t):
        """z: [B, latent_channels, H, W]; t: [B], 0 (noise) to 1000 (data).

        Returns:
            features [B, channels, H / stride, W / stride] and the time embedding [B, hidden].
        """
        t_emb = self.time_embed(timestep_embedding(t, self.params.channels).to(z.dtype))
        return self.mid_block(self.in_conv(z), t_emb), t_emb


class Unpatchify(nn.Module):
    """RMSNorm, 1x1 convolution, pixel shuffle by 2."""

    def __init__(self, inputs, outputs, norm_eps, operations, device, dtype):
        super().__init__()
        self.norm = operations.RMSNorm(inputs, eps=norm_eps, device=device, dtype=dtype)
        self.unpatch_conv = operations.Conv2d(inputs, 4 * outputs, 1, device=device, dtype=dtype)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.unpatch_conv(x), 2)


class UViTDecoder(nn.Module):
    """g_dec: hidden states of the image tokens to a velocity."""

    def __init__(self, params: UViTParams, operations=torch.nn, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        eps = params.decoder_norm_eps
        joined = params.decoder_channels + params.channels
        self.input_norm = operations.RMSNorm(params.decoder_channels, eps=eps, **kw)
        self.mid_block = Blocks(joined, params.decoder_blocks, params.hidden_size, eps, operations, **kw)
        last = params.upsamples - 1
        self.out_convs = nn.ModuleList(
            Unpatchify(
                joined if i == 0 else params.channels,
                params.latent_channels if i == last else params.channels,
                eps,
                operations,
                **kw,
            )
            for i in range(params.upsamples)
        )

    def forward(self, x, skip, t_emb):
        """x: the language model's hidden states, projected, [B, decoder_channels, h, w]; skip: the encoder's features.

        Returns [B, latent_channels, H, W].
        """
        x = self.input_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.mid_block(torch.cat((x, skip), dim=1), t_emb)
        for out_conv in self.out_convs:
            x = out_conv(x)
        return x
