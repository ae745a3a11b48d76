"""The attention seam: every network calls one function of this signature."""

import torch
import torch.nn.functional as F


def attention(q, k, v, mask=None, transformer_options=None):
    """Scaled dot-product attention.

    Args:
        q: queries, [B, H, L, D].
        k, v: keys and values, [B, H, S, D].
        mask: None, or a tensor added to the scores, broadcastable to [B, H, L, S], in q's dtype (never bool).
        transformer_options: passed through for hosts that choose the backend per call; unused here.

    Returns:
        [B, H, L, D].
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def additive_mask(visible, dtype):
    """Turns a bool tensor (True = may attend) into one to add to attention scores: 0 or the dtype's minimum."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
