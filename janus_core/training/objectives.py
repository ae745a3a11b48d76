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


def text_loss(logits, tokens):
    """Autoregression on text: the mean of -log p(x_i | x_<i, picture) over answer tokens.

    JanusFlow, section 3.3, L_AR (arXiv 2411.07975); Janus, section 3.3 (arXiv 2410.13848).

    Args:
        logits: [n, V], each from the position before the token that it predicts.
        tokens: int64 [n].
    """
    return F.cross_entropy(logits.float(), tokens)


def image_token_loss(logits, tokens):
    """Autoregression on pictures: the mean of -log p(x_i | x_<i, prompt) over VQ tokens (Janus, section 3.3, eq. 1).

    Args:
        logits: [B, N, V], entry i predicting picture token i.
        tokens: int64 [B, N].
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def logit_normal_times(count: int, device=None):
    """Times t = sigmoid(n), n ~ N(0, 1): JanusFlow, section 3.3, after arXiv 2403.03206, eq. 19. Returns [count]."""
    return torch.randn(count, device=device).sigmoid()


def flow_path(x, z_0, t):
    """z_t = t x + (1 - t) z_0, from noise z_0 at t = 0 to data x at t = 1 (JanusFlow, section 3.1, eq. 1)."""
    t = t[:, None, None, None]
    return t * x + (1 - t) * z_0


def flow_loss(velocity, x, z_0):
    """Rectified flow: mean || v(z_t, t | text) - (x - z_0) ||^2 (JanusFlow, section 3.3, L_RF); all [B, C, H, W]."""
    return (velocity.float() - (x - z_0).float()).square().mean()


def repa_loss(features, projected):
    """Representation alignment: minus the mean cosine similarity over the grid (JanusFlow, section 3.3, L_REPA).

    Args:
        features: the understanding encoder's of the target picture, [B, N, D]; no gradient goes into them.
        projected: the language model's states behind the REPA head, [B, N, D].
    """
    return -F.cosine_similarity(features.detach().float(), projected.float(), dim=-1).mean()
