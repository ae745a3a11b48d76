"""Decode steps of a Llama in five kernels a block, on GPUs that Triton writes kernels for."""

import importlib.util
import re

import torch
from torch import nn

from ..networks.llama import KVCache, Llama, rotary_table

MOST_ROWS = 64
OLDEST_TRITON = (3, 2)
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)

_failed: set[torch.device] = set()  # where a kernel could not be made or started


class TritonDecoder:
    """Passes over one position of each row of a cache.

    Args:
        starts: int64 [rows], the slot of each row's position 0.
        first_slots: int64 [rows], the first filled slot of each row; `starts` when None.
    """

    def __init__(self, llama: Llama, cache: KVCache, starts, first_slots=None):
        from . import kernels

        self.kernels, self.cache, self.starts = kernels, cache, starts
        self.first_slots = starts if first_slots is None else first_slots
        self.norm = llama.norm
        p, rows, capacity = llama.params, len(starts), cache.keys.shape[3]
        positions = torch.arange(capacity, device=starts.device)
        table = rotary_table(positions, p.head_dim, p.rope_theta, torch.float32)
        self.table = [side[:, : p.head_dim // 2].contiguous() for side in table]
        # All that kernels read and write is there before a recording: Triton asks the driver about each pointer, which
        # knows nothing of memory that an asynchronous allocator only notes down while it records.
        self.slot = torch.zeros(1, dtype=torch.long, device=starts.device)
        widths = (p.hidden_size, p.hidden_size, p.heads * p.head_dim, p.heads * p.head_dim, p.intermediate_size)
        self.buffers = [llama.norm.weight.new_empty(rows, width) for width in widths]
        self.blocks = []
        for block in llama.layers:
            norms = [(norm.weight, norm.eps) for norm in (block.input_layernorm, block.post_attention_layernorm)]
            self.blocks.append((norms, [_weight(layer) for layer in _linear_layers(block)]))

    def __call__(self, x, slot):
        """Input embeddings [rows, hidden] at `slot`, int64 [1], to hidden states after the final norm."""
        states = self.buffers[0]
        states.copy_(x)
        self.slot.copy_(slot)
        try:
            with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
                for layer in range(len(self.blocks)):
                    self._block(layer)
        except Exception:
            _failed.add(x.device)
            raise
        return self.norm(states)

    def _block(self, layer: int):
        """Takes the states in the first buffer through a block."""
        k, starts, slot = self.kernels, self.starts, self.slot
        norms, (*qkv, out, gate, up, down) = self.blocks[layer]
        states, between, queries, attended, inner = self.buffers
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        k.project(states, norms[0], qkv, self.table, starts, slot, keys, values, queries)
        k.attend(queries, keys, values, self.first_slots, slot, attended)
        k.added(attended, out, states, between)
        k.gated(between, norms[1], gate, up, inner)
        k.added(inner, down, between, states)


def usable(llama: Llama, x) -> bool:
    """Whether the kernels can take rows x [rows, hidden] through a Llama.

    They need a GPU with bfloat16, Triton, sides that are multiples of 32 (a head's: a power of 2), and in all
    linear layers plain weights of x's dtype or, as quantized.operations_over makes them, of one format of 8 bits.
    """
    p = llama.params
    if x.dtype != torch.bfloat16 or len(x) > MOST_ROWS or not _has_kernels(x.device):
        return False
    if p.head_dim % 32 or p.head_dim & (p.head_dim - 1) or p.hidden_size % 32 or p.intermediate_size % 32:
        return False
    layers = [layer for block in llama.layers for layer in _linear_layers(block)]
    if not all(isinstance(layer, nn.Linear) for layer in layers):
        return False
    if not all(layer.weight.device == x.device and layer.weight.is_contiguous() for layer in layers):
        return False
    dtype, *others = {layer.weight.dtype for layer in layers}
    scaled = {getattr(layer, "scale", None) is not None for layer in layers}
    if others or scaled != {dtype in EIGHT_BITS} or (dtype != x.dtype and dtype not in EIGHT_BITS):
        return False
    return dtype != torch.float8_e4m3fn or capability(x.device) >= (8, 9)


def _has_kernels(device: torch.device) -> bool:
    if device.type != "cuda" or device in _failed or capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) >= OLDEST_TRITON


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _linear_layers(block):
    attn, mlp = block.self_attn, block.mlp
    return attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _weight(linear):
    """A linear layer's weight and, if it is of 8 bits, the scale of each output."""
    scale = getattr(linear, "scale", None)
    if scale is not None and len(scale) != len(linear.weight):
        scale = scale.expand(len(linear.weight)).contiguous()
    return linear.weight, scale
