"""The decode loop with CUDA graphs: one step is captured and replayed for every token (see cuda_graphs.py).

The step reads its position from a tensor and works on buffers that never move.
"""

import os
from collections.abc import Callable, Iterator

import torch

from ..attention import additive_mask
from ..networks.llama import GraphKVCache, KVCache, Llama
from ..triton_decoder import decoder as triton_decoder
from .cuda_graphs import Capture, try_capture
from .tokens import DecodeState, decode_one_token

NOISE_BLOCK = 16  # positions whose noise is computed together
TRITON_SWITCH = "JANUS_TRITON_DECODER"


class PlainDecoder:
    """One position of each row through the Llama itself; every cache slot is read, the unused ones masked.

    Args:
        starts: int64 [rows], the cache slot of each row's position 0.
        first_slots: int64 [rows], the first filled slot of each row; `starts` when None.
    """

    def __init__(self, llama: Llama, cache: KVCache, starts, first_slots=None):
        self.llama, self.cache, self.starts = llama, cache, starts[:, None]
        self.first_slots = self.starts if first_slots is None else first_slots[:, None]
        self.slots = torch.arange(cache.keys.shape[3], device=starts.device)

    def __call__(self, x, slot):
        """Input embeddings [rows, hidden] at `slot`, int64 [1], to hidden states after the final norm."""
        visible = (self.slots >= self.first_slots) & (self.slots <= slot)
        mask = additive_mask(visible[:, None, None], x.dtype)
        return self.llama(x[:, None], slot - self.starts, GraphKVCache(self.cache, slot), mask)[:, 0]


class DecodeStep:
    """Samples the token at `position` of a run, from 1 on, and advances the position."""

    def __init__(self, state: DecodeState, decoder: Callable, position: int):
        self.state, self.decoder = state, decoder
        device = state.tokens.device
        self.position = torch.full((1,), position, device=device)
        self.block = torch.arange(NOISE_BLOCK, device=device)[:, None]
        self.noise = state.noise(self.block + position - position % NOISE_BLOCK)
        self.hidden = torch.empty_like(state.hidden[: state.rows])  # [rows, hidden], of the last step
        shape = len(state.tokens), state.model.params.vq.codebook_size
        self.logits = torch.empty(shape, device=device)  # float32 [B, V], of the last step

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

    def set_position(self, position: int):
        """Makes `position` the next one."""
        self.position.fill_(position)

    def refill_noise(self, position: int):
        """Computes the next block of noise when `position`, which comes next, is its first."""
        if self.noise is not None and position % NOISE_BLOCK == 0:
            self.noise.copy_(self.state.noise(self.block + position))


def decode_tokens(state: DecodeState, capture: Capture, triton: bool | None = None) -> Iterator[torch.Tensor]:
    """Decodes one token after the other by replaying a captured step; yields as tokens.decode_tokens does.

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
            step, replay = captured_step(state, position, capture, triton)
        else:
            step.refill_noise(position)
            replay()
        yield step.logits[:, None]


def captured_step(state: DecodeState, position: int, capture: Capture, triton: bool) -> tuple[DecodeStep, Callable]:
    """Samples the token at `position`; returns its step and what samples the next ones.

    A captured step is used only if its hidden states agree with those of the plain step, which otherwise continues.
    """
    args = (state.model.llama, state.cache, state.starts, state.first_slots)
    plain = DecodeStep(state, PlainDecoder(*args), position)
    plain()
    finite = state.finite.clone()
    use_triton = triton and triton_decoder.usable(state.model.llama, state.hidden)
    for decoder in [triton_decoder.TritonDecoder, PlainDecoder] if use_triton else [PlainDecoder]:

        def make(decoder=decoder):
            step = DecodeStep(state, decoder(*args), position)
            step()  # whatever is set up on first use must not be captured
            step.set_position(position)
            replay = capture(step)
            replay()
            return step.hidden, (step, replay)

        if made := try_capture(f"A decode step with {decoder.__name__}", make, plain.hidden):
            return made
        state.finite.copy_(finite)
    plain.set_position(position)
    plain()
    return plain, plain
