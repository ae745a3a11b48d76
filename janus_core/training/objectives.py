"""The objectives, each a plain function with its equation and source."""

import torch
import torch.nn.functional as F


def reconstruction_loss(pixels, target):
    """mean |x - y| + mean (x - y)^2 over pixels in [-1, 1]."""
    error = pixels.float() - target.float()
    return error.abs().mean() + error.square().mean()


def codebook_loss(z, nearest, commitment: float = 0.25):
    """|| sg[z] - e ||^2 + 0.25 || z - sg[e] ||^2, VQ-VAE (arXiv 1711.00937, eq. 3), summed over channels.

    Args:
        z, nearest: encoder vectors and their codebook entries, [B, D, h, w].
    """
    move_codes = (nearest - z.detach()).square().sum(1).mean()
    move_encoder = (nearest.detach() - z).square().sum(1).mean()
    return move_codes + commitment * move_encoder


def moments_loss(z, weight: float = 0.1):
    """0.1 sum over channels of mean^2 + (std - 1)^2: latents [B, C, h, w] as wide as the flow's noise."""
    z = z.float().transpose(0, 1).flatten(1)
    return weight * (z.mean(1).square() + (z.std(1) - 1).square()).sum()
