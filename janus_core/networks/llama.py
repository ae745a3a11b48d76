"""The Llama decoder that every Janus model is built on.

Llama (arXiv 2302.13971) as configured in deepseek-llm-1.3b/7b: rotary positions in the half-split layout, RMSNorm,
SwiGLU, no biases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..attention import additive_mask
from ..attention import attention as default_attention


@dataclass(frozen=True)
class LlamaParams:
    """Dimensions of a Llama; `max_positions` is the length of its context, in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_positions: int = 16384


def rotary_table(positions, head_dim: int, theta: float, dtype):
    """Cosines and sines of rotary position embedding (arXiv 2104.09864, eq. 34), angles computed in float32.

    Args:
        positions: [L], or [B, L] where rows differ.

    Returns:
        (cos, sin), each [L, head_dim], or [B, 1, L, head_dim] for batched positions.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim)
    angles = positions.float().unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    """Applies rotary positions to queries or keys [B, H, L, D]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def linears(x, *layers) -> Sequence[torch.Tensor]:
    """The outputs of linear layers with one input: of one product, where the layers' weights can be packed together."""
    forms = [layer.packed_form(x) if hasattr(layer, "packed_form") else None for layer in layers]
    is_same = forms[0] is not None and forms.count(forms[0]) == len(forms)
    if not is_same or len({layer.bias is None for layer in layers}) > 1:
        return [layer(x) for layer in layers]
    return layers[0].packed_product(x, layers).split([layer.out_features for layer in layers], dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped keys and values, [B, L, hidden] to the same."""

    def __init__(self, params: LlamaParams, operations, attention, device, dtype):
        super().__init__()
        p = params
        self.heads, self.kv_heads, self.head_dim = p.heads, p.kv_heads, p.head_dim
        self.attention = attention

        def linear(inputs, outputs):
            return operations.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        self.q_proj = linear(p.hidden_size, p.heads * p.head_dim)
        self.k_proj = linear(p.hidden_size, p.kv_heads * p.head_dim)
        self.v_proj = linear(p.hidden_size, p.kv_heads * p.head_dim)
        self.o_proj = linear(p.heads * p.head_dim, p.hidden_size)

    def forward(self, x, rotary, layer, cache, mask, transformer_options):
        B, L, _ = x.shape
        q, k, v = (
            y.view(B, L, -1, self.head_dim).transpose(1, 2) for y in linears(x, self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        dtype, q = q.dtype, q.to(k.dtype)  # the cache may have another dtype
        mask = None if mask is None else mask.to(k.dtype)
        if L == 1:
            x = default_attention(q, k, v, mask)
        else:
            x = self.attention(q, k, v, mask, transformer_options)
        return self.o_proj(x.to(dtype).transpose(1, 2).reshape(B, L, -1))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), [B, L, hidden] to the same."""

    def __init__(self, params: LlamaParams, operations, device, dtype):
        super().__init__()
        h, f = params.hidden_size, params.intermediate_size
        self.gate_proj = operations.Linear(h, f, bias=False, device=device, dtype=dtype)
        self.up_proj = operations.Linear(h, f, bias=False, device=device, dtype=dtype)
        self.down_proj = operations.Linear(f, h, bias=False, device=device, dtype=dtype)

    def forward(self, x):
        gate, up = linears(x, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a residual connection, [B, L, hidden] to the same."""

    def __init__(self, params: LlamaParams, operations, attention, device, dtype):
        super().__init__()
        self.input_layernorm = operations.RMSNorm(params.hidden_size, eps=params.norm_eps, device=device, dtype=dtype)
        self.self_attn = Attention(params, operations, attention, device, dtype)
        self.post_attention_layernorm = operations.RMSNorm(
            params.hidden_size, eps=params.norm_eps, device=device, dtype=dtype
        )
        self.mlp = MLP(params, operations, device, dtype)

    def forward(self, x, rotary, layer, cache, mask, transformer_options):
        x = x + self.self_attn(self.input_layernorm(x), rotary, layer, cache, mask, transformer_options)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The decoder without its text head: embeddings in, normalised hidden states out."""

    def __init__(self, params: LlamaParams, operations=torch.nn, attention=default_attention, device=None, dtype=None):
        super().__init__()
        self.params = params
        self.embed_tokens = operations.Embedding(params.vocab_size, params.hidden_size, device=device, dtype=dtype)
        self.layers = nn.ModuleList(Block(params, operations, attention, device, dtype) for _ in range(params.layers))
        self.norm = operations.RMSNorm(params.hidden_size, eps=params.norm_eps, device=device, dtype=dtype)

    def forward(self, x, positions=None, cache=None, mask=None, transformer_options=None):
        """Runs the decoder.

        Args:
            x: input embeddings, [B, L, hidden].
            positions: [L] or [B, L] rotary positions; the L that follow the cache's length when None.
            cache: KVCache, GraphKVCache or PrefixCache of earlier positions; S counts these and L.
            mask: None for causal attention among the L positions (with everything in the cache visible), else an
                additive mask broadcastable to [B, H, L, S] that includes causality.

        Returns:
            Hidden states after the final norm, [B, L, hidden].
        """
        L = x.shape[1]
        past = 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(past, past + L, device=x.device)
        if mask is None and L > 1:
            mask = causal_mask(L, past, x.dtype, x.device)
        rotary = rotary_table(positions, self.params.head_dim, self.params.rope_theta, x.dtype)
        for i, block in enumerate(self.layers):
            x = block(x, rotary, i, cache, mask, transformer_options)
        if cache is not None:
            cache.advance(L)
        return self.norm(x)


def causal_mask(length: int, past: int, dtype, device, visible=None):
    """Additive mask of `length` queries over `past + length` keys: the whole past, and each other causally.

    Args:
        visible: optional bool [B, past + length]; False hides a key from every query of its row.

    Returns:
        [1, 1, length, past + length], or [B, 1, length, past + length] with `visible`.
    """
    allowed = torch.ones(length, past + length, dtype=torch.bool, device=device).tril_(past)[None, None]
    if visible is not None:
        allowed = allowed & visible[:, None, None, :]
    return additive_mask(allowed, dtype)


class CausalLM(nn.Module):
    """A Llama decoder and its text head, under the names in checkpoints."""

    def __init__(self, params: LlamaParams, operations=torch.nn, attention=default_attention, device=None, dtype=None):
        super().__init__()
        self.model = Llama(params, operations, attention, device, dtype)
        self.lm_head = operations.Linear(params.hidden_size, params.vocab_size, bias=False, device=device, dtype=dtype)
