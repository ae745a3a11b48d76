"""The Llama decoder that every Janus model is built on, with a static key/value cache.

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


class KVCache:
    """Keys and values of all layers for `batch` rows and at most `capacity` positions.

    `keys` and `values` are [layers, batch, kv_heads, capacity, head_dim]; on a CPU each channel of the values is
    contiguous in memory, which makes the attention of a single query faster. Positions before `length` are filled; a
    forward pass writes from `length` on and then advances it.

    Args:
        dtype: of the activations; see cache_dtype for that of the cache.
    """

    def __init__(self, params: LlamaParams, batch: int, capacity: int, dtype, device):
        shape = (params.layers, batch, params.kv_heads, capacity, params.head_dim)
        dtype = self.cache_dtype(dtype, device)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        if torch.device(device).type == "cpu":
            shape = (*shape[:3], params.head_dim, capacity)
            self.values = torch.zeros(shape, dtype=dtype, device=device).transpose(-1, -2)
        else:
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @staticmethod
    def cache_dtype(dtype, device) -> torch.dtype:
        """The dtype of keys and values: float32 on a CPU, where attention of one query is far slower in 16 bits."""
        return torch.float32 if torch.device(device).type == "cpu" else dtype

    @classmethod
    def bytes(cls, params: LlamaParams, batch: int, capacity: int, dtype, device) -> int:
        """Memory of such a cache in bytes."""
        size = cls.cache_dtype(dtype, device).itemsize
        return 2 * params.layers * batch * params.kv_heads * capacity * params.head_dim * size

    def write(self, layer: int, k, v):
        """Stores keys and values [B, kv_heads, L, D] at `length`; returns those of all filled positions and these L."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        if self.length == 0:
            return k, v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep_rows(self, rows: int):
        """Drops all but the first `rows` rows."""
        self.keys, self.values = self.keys[:, :rows], self.values[:, :rows]

    def advance(self, count: int):
        """Marks `count` more positions as filled."""
        self.length += count


class GraphKVCache:
    """A view of a KVCache for decode steps in a CUDA graph: the slot to write is a tensor, int64 [1].

    `write` returns every slot, so the mask must hide the unfilled ones.
    """

    def __init__(self, cache: KVCache, slot):
        self.cache, self.slot, self.length = cache, slot, 0

    def write(self, layer: int, k, v):
        """Stores keys and values [B, kv_heads, 1, D] at the slot; returns those of all slots."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return keys.index_copy_(2, self.slot, k.to(keys.dtype)), values.index_copy_(2, self.slot, v.to(values.dtype))

    def advance(self, count: int):
        """Does nothing: the caller updates `slot`."""


class PrefixCache:
    """Keys and values of a fixed prefix, [B, kv_heads, L, head_dim] per layer.

    The first forward pass fills the cache; later ones read it and leave it unchanged.
    """

    def __init__(self):
        self.keys, self.values, self.length = [], [], 0

    def write(self, layer: int, k, v):
        """Stores k and v in the first pass; in later ones returns them appended to the stored prefix."""
        if self.length == 0:
            self.keys.append(k)
            self.values.append(v)
            return k, v
        return torch.cat((self.keys[layer], k), dim=2), torch.cat((self.values[layer], v), dim=2)

    def advance(self, count: int):
        """Ends the first pass; later calls have no effect."""
        self.length = self.length or count

    def repeat(self, times: int) -> "PrefixCache":
        """Each row repeated `times` times in place: rows (a, b) become (a, a, b, b)."""
        return self._map(lambda x: x.repeat_interleave(times, dim=0))

    def first(self, rows: int) -> "PrefixCache":
        """The first `rows` rows only."""
        return self._map(lambda x: x[:rows])

    def _map(self, function) -> "PrefixCache":
        cache = PrefixCache()
        cache.keys, cache.values = [function(k) for k in self.keys], [function(v) for v in self.values]
        cache.length = self.length
        return cache


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
