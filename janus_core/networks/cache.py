"""Keys and values of the Llama's earlier positions: growing, in a CUDA graph, and of a fixed prefix.

`Llama.forward` reads `length`, calls `write` in every layer, and then `advance`.
"""

import torch

from .llama import LlamaParams


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
