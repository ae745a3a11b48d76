"""The attention function that every network calls; hosts may pass their own with this signature."""

import torch
import torch.nn.functional as F

QUERY_BLOCK = 160  # queries computed together in a long masked pass on a CPU
MIN_QUERIES_FOR_BLOCKS = 256


def attention(q, k, v, mask=None, transformer_options=None):
    """Scaled dot-product attention.

    Args:
        q: queries, [B, H, L, D].
        k, v: keys and values, [B, H, S, D].
        mask: None, or a tensor added to the scores, broadcastable to [B, H, L, S], in q's dtype (never bool). A mask
            always includes causality: query i sees keys 0 to S - L + i at most.
        transformer_options: for hosts that choose the backend per call; unused here.

    Returns:
        [B, H, L, D].
    """
    L, S = q.shape[2], k.shape[2]
    if L == 1 and q.device.type == "cpu":
        return _single_query_attention(q, k, v, mask)
    if mask is None or q.device.type != "cpu" or L < MIN_QUERIES_FOR_BLOCKS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    block_attention = _eager_attention if q.dtype == torch.bfloat16 else F.scaled_dot_product_attention
    blocks = []
    for rows in torch.arange(L).chunk(-(-L // QUERY_BLOCK)):
        first, end = int(rows[0]), int(rows[-1]) + 1
        seen = S - L + end  # keys that causality leaves to this block
        block_mask = mask[..., first:end, :seen] if mask.shape[-2] == L else mask[..., :seen]
        blocks.append(block_attention(q[:, :, first:end], k[:, :, :seen], v[:, :, :seen], block_mask))
    return torch.cat(blocks, dim=2)


def _single_query_attention(q, k, v, mask):
    """Attention of one query on a CPU, as products of a matrix and a vector.

    Several times as fast as torch's kernel where each key and each channel of the values is contiguous in memory, as
    in a KVCache.
    """
    scores = (k @ (q * q.shape[-1] ** -0.5).transpose(-1, -2)).squeeze(-1)
    if mask is not None:
        scores += mask.squeeze(-2)
    return (v.transpose(-1, -2) @ scores.softmax(-1).unsqueeze(-1)).transpose(-1, -2)


def _eager_attention(q, k, v, mask):
    """Attention as matrix products: in bfloat16 on a CPU nearly three times as fast as torch's kernel."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).add_(mask).softmax(-1) @ v


def additive_mask(visible, dtype):
    """An additive attention mask from a bool one: 0 where True, the dtype's minimum where False."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
