"""The decode loop with CUDA graphs: one step is captured and replayed for every token (see cuda_graphs.py).

The step reads its position from a tensor and works on buffers that never move.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..attention import additive_mask
from ..networks.cache import GraphKVCache, KVCache
from ..networks.llama import Llama, rotary_table
from ..triton_decoder import decoder as triton_decoder
from . import tokens
from .attempts import attempt, log_once
from .cuda_graphs import Capture
from .step_check import BARS, SAME_KERNELS_BAR, block_errors, clear_slots, relative_error, require
from .tokens import DecodeState, decode_one_token

NOISE_BLOCK = 16  # positions whose noise is computed together
TRITON_SWITCH = "JANUS_TRITON_DECODER"


class PlainDecoder:
    """One position of each row through the Llama itself; every cache slot is read, the unused ones masked.

    Args:
        starts: int64 [rows], the cache slot of each row's position 0.
        first_slots: int64 [rows], the first filled slot of each row.
    """

    def __init__(self, llama: Llama, cache: KVCache, starts, first_slots):
        self.llama, self.cache, self.starts = llama, cache, starts[:, None]
        self.first_slots = first_slots[:, None]
        self.slots = torch.arange(cache.keys.shape[3], device=starts.device)

    def __call__(self, x, slot):
        """Input embeddings [rows, hidden] at `slot`, int64 [1], to hidden states after the final norm."""
        cache, mask = GraphKVCache(self.cache, slot), self._mask(slot, x.dtype)
        return self.llama(x[:, None], slot - self.starts, cache, mask)[:, 0]

    def block(self, layer: int, x, slot):
        """One block alone: hidden states [rows, hidden] before and after it."""
        p, cache, mask = self.llama.params, GraphKVCache(self.cache, slot), self._mask(slot, x.dtype)
        rotary = rotary_table(slot - self.starts, p.head_dim, p.rope_theta, x.dtype)
        return self.llama.layers[layer](x[:, None], rotary, layer, cache, mask, None)[:, 0]

    def _mask(self, slot, dtype):
        visible = (self.slots >= self.first_slots) & (self.slots <= slot)
        return additive_mask(visible[:, None, None], dtype)


class DecodeStep:
    """Samples the token at `position` of a run, from 1 on, and advances the position.

    `replay` samples the next one once the step has been captured.
    """

    def __init__(self, state: DecodeState, decoder: Callable, position: int):
        self.state, self.decoder = state, decoder
        device = state.tokens.device
        self.position = torch.full((1,), position, device=device)
        self.block = torch.arange(NOISE_BLOCK, device=device)[:, None]
        self.noise = state.noise(self.block + position - position % NOISE_BLOCK)
        self.hidden = torch.empty_like(state.hidden[: state.rows])  # [rows, hidden], of the last step
        shape = len(state.tokens), state.model.params.vq.codebook_size
        self.logits = torch.empty(shape, device=device)  # float32 [B, V], of the last step
        self.replay = None

    def __call__(self):
        state, position = self.state, self.position
        x = state.embed(state.tokens.index_select(1, position - 1))[:, 0]
        self.hidden.copy_(self.decoder(x, state.prompt_length - 1 + position))
        noise = None if self.noise is None else self.noise.index_select(0, position % NOISE_BLOCK)[0]
        token, logits = decode_one_token(state, self.hidden, position, noise)
        self.logits.copy_(logits)
        state.tokens.index_copy_(1, position, token[:, None])
        state.finite.logical_and_(logits.isfinite().all())
        position.add_(1)

    def results_at(self, position: int, run: Callable) -> list[torch.Tensor]:
        """Calls `run`, the step or its replay, at a position; what it computes, one row each along the first dim."""
        self.position.fill_(position)
        run()
        cache, slot = self.state.cache, self.state.prompt_length - 1 + position
        written = [buffer[:, :, :, slot].flatten(0, 1).clone() for buffer in (cache.keys, cache.values)]
        return [self.hidden.clone(), self.logits.clone(), *written]

    def refill_noise(self, position: int):
        """Computes the next block of noise when `position`, which comes next, is its first."""
        if self.noise is not None and position % NOISE_BLOCK == 0:
            self.noise.copy_(self.state.noise(self.block + position))


def decode_tokens(state: DecodeState, capture: Capture, triton: bool | None = None) -> Iterator[torch.Tensor]:
    """Decodes one token after the other by replaying a captured step; yields as tokens.decode_tokens does.

    Where no step can be captured, the plain loop continues.

    Args:
        triton: whether the step may use the Triton decoder; None reads JANUS_TRITON_DECODER (1 is on).
    """
    if triton is None:
        triton = os.environ.get(TRITON_SWITCH) == "1"
    first, logits = decode_one_token(state, state.hidden, state.tokens.new_zeros(1))
    state.tokens[:, 0] = first
    state.finite &= logits.isfinite().all()
    yield logits[:, None]
    step = None
    for position in range(1, state.tokens.shape[1]):
        if state.drop_unconditional(position):
            step = None
        if step is None:
            step = captured_step(state, position, capture, triton)
            if step is None:
                yield from tokens.decode_tokens(state, position)
                return
        else:
            step.refill_noise(position)
            step.replay()
        yield step.logits[:, None]


def captured_step(state: DecodeState, position: int, capture: Capture, triton: bool) -> DecodeStep | None:
    """Samples the token at `position` by a captured step, which samples the next ones too; None where it cannot.

    A step is used only if its blocks agree with the Llama's, and its replays with the step before the capture.
    """
    decoders = {"Triton kernels": triton_decoder.TritonDecoder} if triton and _triton_usable(state) else {}
    decoders["PyTorch's kernels"] = PlainDecoder
    tokens_before, finite_before = state.tokens.clone(), state.finite.clone()

    def restore():
        state.tokens.copy_(tokens_before)
        state.finite.copy_(finite_before)
        clear_slots(state.cache, state.prompt_length - 1 + position)

    for name, kind in decoders.items():
        what = name, state.hidden.device, state.hidden.dtype, state.rows
        make = partial(_checked_step, state, kind, position, capture, restore, name)
        if step := attempt(f"A decode step with {name}", what, make):
            return step
        restore()
    return None


def _triton_usable(state: DecodeState) -> bool:
    return triton_decoder.usable(state.model.llama, state.hidden)


def _checked_step(state, kind, position, capture, restore, name) -> DecodeStep:
    """A captured step that has sampled the token at `position`. Raises CheckFailed where it computes something else.

    It is tried at this position and at one in the middle of those that are left.
    """
    began = time.perf_counter()
    decoder = kind(state.model.llama, state.cache, state.starts, state.first_slots)
    step = DecodeStep(state, decoder, position)
    positions = sorted({position, (position + state.tokens.shape[1]) // 2})
    x = state.embed(state.tokens[:, position - 1 : position])[:, 0]
    slots = [state.prompt_length - 1 + k for k in positions]
    errors = block_errors(state.model.llama, state.cache, state.starts, state.first_slots, decoder, x, slots)

    def results(run):
        found = []
        for k in reversed(positions):  # `position` comes last, so that its token stays
            restore()
            found += step.results_at(k, run)
        return found

    expected = results(step)  # and whatever is set up on first use, which must not be captured
    step.replay = capture(step)
    same = [relative_error(*pair) for pair in zip(results(step.replay), expected)]
    require((errors, BARS[x.dtype]), (same, SAME_KERNELS_BAR))
    seconds = time.perf_counter() - began
    log_once(f"Janus decodes {state.rows} rows with {name} in a CUDA graph ({seconds:.1f} s to compile and capture).")
    return step
