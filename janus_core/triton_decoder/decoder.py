"""Decode steps of a Llama with five Triton kernels per block."""

import logging
import re
from functools import cache

import torch
from torch import nn

from ..networks.cache import KVCache
from ..networks.llama import Llama, rotary_table

MAX_ROWS = 64
MIN_TRITON = (3, 2)
QUANTIZED_DTYPES = (torch.int8, torch.float8_e4m3fn)


class TritonDecoder:
    """Decodes one position of each row: what `networks.llama.Llama` computes with a cache.

    Args:
        starts: int64 [rows], the slot of each row's position 0.
        first_slots: int64 [rows], the first filled slot of each row.
    """

    def __init__(self, llama: Llama, cache: KVCache, starts, first_slots):
        from . import kernels

        self.kernels, self.cache, self.starts = kernels, cache, starts
        self.first_slots = first_slots
        cache.values = cache.values.contiguous()  # a KVCache on a CPU, where kernels can be interpreted, has others
        self.norm = llama.norm
        p, rows, capacity = llama.params, len(starts), cache.keys.shape[3]
        positions = torch.arange(capacity, device=starts.device)
        cos, sin = rotary_table(positions, p.head_dim, p.rope_theta, torch.float32)
        self.rotary = [table[:, : p.head_dim // 2].contiguous() for table in (cos, sin)]
        # Buffers are allocated here, before any CUDA graph capture: Triton queries the driver about each pointer, and
        # the driver does not know pointers that an asynchronous allocator hands out during a capture.
        self.slot = torch.zeros(1, dtype=torch.long, device=starts.device)
        widths = (p.hidden_size, p.hidden_size, p.heads * p.head_dim, p.heads * p.head_dim, p.intermediate_size)
        self.buffers = [llama.norm.weight.new_empty(rows, width) for width in widths]
        self.blocks = []
        for block in llama.layers:
            norms = [(norm.weight, norm.eps) for norm in (block.input_layernorm, block.post_attention_layernorm)]
            self.blocks.append((norms, [_weight(layer) for layer in _linear_layers(block)]))

    def __call__(self, x, slot):
        """Input embeddings [rows, hidden] at `slot`, int64 [1], to hidden states after the final norm."""
        with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
            self.buffers[0].copy_(x)
            self.slot.copy_(slot)
            for layer in range(len(self.blocks)):
                self._block(layer)
            return self.norm(self.buffers[0])

    def block(self, layer: int, x, slot):
        """One block alone: hidden states [rows, hidden] before and after it."""
        with torch.cuda.device_of(x):
            self.buffers[0].copy_(x)
            self.slot.copy_(slot)
            self._block(layer)
            return self.buffers[0].clone()

    def _block(self, layer: int):
        """Applies one block to the hidden states in the first buffer, in place."""
        k, starts, slot = self.kernels, self.starts, self.slot
        norms, (*qkv, out, gate, up, down) = self.blocks[layer]
        states, residual, queries, attended, inner = self.buffers
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        k.qkv_projection(states, norms[0], qkv, self.rotary, starts, slot, keys, values, queries)
        k.attention(queries, keys, values, self.first_slots, slot, attended)
        k.linear_residual(attended, out, states, residual)
        k.gate_up(residual, norms[1], gate, up, inner)
        k.linear_residual(inner, down, residual, states)


def usable(llama: Llama, x) -> bool:
    """Whether the kernels support a Llama and input rows x [rows, hidden].

    They need a GPU with bfloat16, Triton, widths that are multiples of 32, a head_dim that is a power of 2, and linear
    layers whose weights either all have x's dtype, or are all quantised to one 8-bit dtype (operations.quantized).
    """
    p = llama.params
    if x.dtype != torch.bfloat16 or len(x) > MAX_ROWS or not _device_supported(x.device):
        return False
    if p.head_dim % 32 or p.head_dim & (p.head_dim - 1) or p.hidden_size % 32 or p.intermediate_size % 32:
        return False
    layers = [layer for block in llama.layers for layer in _linear_layers(block)]
    if not all(isinstance(layer, nn.Linear) and type(layer.weight) is nn.Parameter for layer in layers):
        return False
    if not all(layer.weight.device == x.device and layer.weight.is_contiguous() for layer in layers):
        return False
    if {layer.weight.dtype for layer in layers} == {x.dtype}:
        return all(_scale(layer) is None for layer in layers)
    dtype = layers[0].weight.dtype
    return (
        dtype in QUANTIZED_DTYPES
        and all(layer.weight.dtype == dtype and _scale(layer) is not None for layer in layers)
        and (dtype == torch.int8 or capability(x.device) >= (8, 9))
    )


def _device_supported(device: torch.device) -> bool:
    return device.type == "cuda" and capability(device) >= (8, 0) and (triton_version() or (0, 0)) >= MIN_TRITON


@cache
def triton_version() -> tuple[int, int] | None:
    """The version of an installed Triton that can be imported; otherwise None, with a warning if it is broken."""
    try:
        import triton

        return tuple(map(int, re.findall(r"\d+", triton.__version__)[:2]))
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return None
        problem = error
    except Exception as error:  # whatever an incomplete installation raises
        problem = error
    logging.warning(f"The Triton decoder is off, since Triton cannot be imported: {problem}")
    return None


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _linear_layers(block):
    attn, mlp = block.self_attn, block.mlp
    return attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _scale(linear):
    """A quantised layer's scale, None for a plain layer."""
    return getattr(linear, "scale", None)


def _weight(linear):
    """A linear layer's weight and, if it is quantised, one scale per output channel."""
    scale = _scale(linear)
    if scale is not None and len(scale) != len(linear.weight):
        scale = scale.expand(len(linear.weight)).contiguous()
    return linear.weight, scale
