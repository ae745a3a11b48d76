"""Selecting a token from logits: greedily, or by temperature, top-k and top-p with counter-based noise."""

import torch


def select_token(logits, settings, noise=None):
    """Selects one token per row.

    Args:
        logits: float32 [B, V].
        settings: has temperature, top_k and top_p (settings.TokenSamplerSettings, TextSamplerSettings).
        noise: float32 [B, V] (noise.gumbel); not used at temperature 0.

    Returns:
        int64 [B].
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    log_p = torch.log_softmax(logits / settings.temperature, dim=-1)
    if 0 < settings.top_k < log_p.shape[-1]:
        kth_largest = log_p.topk(settings.top_k, dim=-1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < kth_largest, -torch.inf)
    if settings.top_p < 1:
        log_p = _nucleus(log_p, settings.top_p)
    return (log_p + noise).argmax(-1)


def _nucleus(log_p, top_p: float):
    """Nucleus filtering (arXiv 1904.09751); the most likely token always stays."""
    ordered, order = log_p.softmax(-1).sort(dim=-1, descending=True)
    cumulative_before = ordered.cumsum(-1) - ordered
    outside = cumulative_before >= top_p
    outside[:, 0] = False
    return log_p.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
