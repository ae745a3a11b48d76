"""Training objectives as functions, each with its equation and source."""

import torch
import torch.nn.functional as F


def text_loss(logits, tokens):
    """Autoregression on text: the mean of -log p(x_i | x_<i, image) over answer tokens.

    JanusFlow, section 3.3, L_AR (arXiv 2411.07975); Janus, section 3.3 (arXiv 2410.13848).

    Args:
        logits: [n, V], each from the position before the token that it predicts.
        tokens: int64 [n].
    """
    return F.cross_entropy(logits.float(), tokens)


def image_token_loss(logits, tokens, smoothing=None):
    """Autoregression on images: the mean of -log p(x_i | x_<i, prompt) over VQ tokens (Janus, section 3.3).

    Args:
        logits: [B, N, V], entry i predicting image token i.
        tokens: int64 [B, N].
        smoothing: [B], label smoothing per row (arXiv 1512.00567, section 7); without it the targets are one-hot.
    """
    log_p = logits.float().log_softmax(-1)
    loss = -log_p.gather(-1, tokens[..., None]).squeeze(-1)
    if smoothing is not None:
        loss = (1 - smoothing[:, None]) * loss - smoothing[:, None] * log_p.mean(-1)
    return loss.mean()


def logit_normal_times(count: int, device=None, mean: float = 0.0):
    """Times t = sigmoid(n), n ~ N(mean, 1): JanusFlow, section 3.3, after arXiv 2403.03206, eq. 19. Returns [count].

    A mean below 0 samples more times near the noise, where the prompt matters most.
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
        features: of the target image, from the understanding encoder, [B, N, D]; detached.
        projected: output of the REPA head on the language model's states, [B, N, D].
    """
    return -F.cosine_similarity(features.detach().float(), projected.float(), dim=-1).mean()
