"""The objectives, each a plain function with its equation and source."""

import torch
import torch.nn.functional as F


def reconstruction_loss(pixels, target):
    """mean |x - y| + mean (x - y)^2 over pixels in [-1, 1]."""
    error = pixels.float() - target.float()
    return error.abs().mean() + error.square().mean()


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


def image_token_loss(logits, tokens, smoothing=None):
    """Autoregression on pictures: the mean of -log p(x_i | x_<i, prompt) over VQ tokens (Janus, section 3.3).

    Args:
        logits: [B, N, V], entry i predicting picture token i.
        tokens: int64 [B, N].
        smoothing: [B], per row the share of the target that is spread evenly over all tokens (arXiv 1512.00567,
            section 7); None is none.
    """
    log_p = logits.float().log_softmax(-1)
    loss = -log_p.gather(-1, tokens[..., None]).squeeze(-1)
    if smoothing is not None:
        loss = (1 - smoothing[:, None]) * loss - smoothing[:, None] * log_p.mean(-1)
    return loss.mean()


def logit_normal_times(count: int, device=None, mean: float = 0.0):
    """Times t = sigmoid(n), n ~ N(mean, 1): JanusFlow, section 3.3, after arXiv 2403.03206, eq. 19. Returns [count].

    A mean below 0 draws more times near the noise, where the prompt decides.
    """
    return (torch.randn(count, device=device) + mean).sigmoid()


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
