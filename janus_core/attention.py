"""The attention seam: every network calls one function of this signature."""

import torch
import torch.nn.functional as F

BLOCK, LEAST = 160, 256  # queries at a time in a masked pass on a CPU, and from how many queries on it pays


def attention(q, k, v, mask=None, transformer_options=None):
    """Scaled dot-product attention.

    Args:
        q: queries, [B, H, L, D].
        k, v: keys and values, [B, H, S, D].
        mask: None, or a tensor added to the scores, broadcastable to [B, H, L, S], in q's dtype (never bool). A mask
            always hides what comes after a query: query i sees none of the keys behind number S - L + i.
        transformer_options: passed through for hosts that choose the backend per call; unused here.

    Returns:
        [B, H, L, D].
    """
    L, S = q.shape[2], k.shape[2]
    if mask is None or q.device.type != "cpu" or L < LEAST:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    one_block = _products if q.dtype == torch.bfloat16 else F.scaled_dot_product_attention
    blocks = []
    for rows in torch.arange(L).chunk(-(-L // BLOCK)):  # the earlier the queries, the fewer keys they see
        first, last = int(rows[0]), int(rows[-1]) + 1
        seen = S - L + last
        part = mask[..., first:last, :seen] if mask.shape[-2] == L else mask[..., :seen]
        blocks.append(one_block(q[:, :, first:last], k[:, :, :seen], v[:, :, :seen], part))
    return torch.cat(blocks, dim=2)


def _products(q, k, v, mask):
    """Attention in plain products: in bfloat16 on a CPU nearly three times as fast as the fused kernel."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).add_(mask).softmax(-1) @ v


def additive_mask(visible, dtype):
    """Turns a bool tensor (True = may attend) into one to add to attention scores: 0 or the dtype's minimum."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
