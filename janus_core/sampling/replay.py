"""Passes of one position whose work is recorded once and replayed, as a CUDA graph does it.

A step's many small kernels cost a GPU less than starting each of them costs the host; replayed, they start together.
For that a step reads what changes, the position, from a tensor, and works on buffers that never move.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..attention import additive_mask
from ..fused import decoder as fused
from ..networks.llama import FixedCache, KVCache, Llama
from .decoding import Run

NOISE_AHEAD = 32  # positions whose noise is made together
AGREEMENT = 0.1  # of the states' norm: many times what 16 bits lose, and far below what an error would change


def cuda_graph(function: Callable, device=None) -> Callable:
    """Records what `function` does on a GPU, the current one by default, without doing it; returns what does it."""
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
    return graph.replay


def recorder(device: torch.device) -> Callable[[Callable], Callable] | None:
    """What records work on a device, or None where nothing can."""
    return partial(cuda_graph, device=device) if device.type == "cuda" and torch.version.cuda else None


class PlainDecoder:
    """Passes over one position of each row of a cache, with the network itself; every slot is read and masked.

    Args:
        starts: int64 [rows], the slot of each row's position 0.
    """

    def __init__(self, llama: Llama, cache: KVCache, starts):
        self.llama, self.cache, self.starts = llama, cache, starts[:, None]
        self.slots = torch.arange(cache.keys.shape[3], device=starts.device)

    def __call__(self, x, slot):
        """Input embeddings [rows, hidden] at `slot`, int64 [1], to hidden states after the final norm."""
        visible = (self.slots >= self.starts) & (self.slots <= slot)
        mask = additive_mask(visible[:, None, None], x.dtype)
        return self.llama(x[:, None], slot - self.starts, FixedCache(self.cache, slot), mask)[:, 0]


class DecodeStep:
    """Draws the token at `position` of a run, from 1 on, and moves the position forward."""

    def __init__(self, run: Run, decode: Callable, position: int):
        self.run, self.decode = run, decode
        self.position = torch.full((1,), position, device=run.out.device)
        self.ahead = torch.arange(NOISE_AHEAD, device=run.out.device)[:, None]
        self.noise = run.draw.noise(self.ahead + self._first(position), run.model.params.vq.codebook_size)
        self.hidden = self.logits = None  # [rows, hidden] and float32 [B, V], of the token drawn last

    @staticmethod
    def _first(position: int) -> int:
        return position - position % NOISE_AHEAD

    def __call__(self):
        run, position = self.run, self.position
        x = run.embed(run.out.index_select(1, position - 1))[:, 0]
        self.hidden = self.decode(x, run.prompt_length - 1 + position)
        noise = None if self.noise is None else self.noise.index_select(0, position % NOISE_AHEAD)[0]
        drawn, self.logits = run.draw(run.model.image_logits(self.hidden), position, noise)
        run.out.index_copy_(1, position, drawn[:, None])
        run.finite.logical_and_(self.logits.isfinite().all())
        position.add_(1)

    def go_to(self, position: int):
        """Makes `position` the next one."""
        self.position.fill_(position)

    def make_noise(self, position: int):
        """Sees to it that the noise of `position` is there, when the one before was drawn last."""
        if self.noise is not None and position % NOISE_AHEAD == 0:
            self.noise.copy_(self.run.draw.noise(self.ahead + position, self.noise.shape[-1]))


def passes(run: Run, record: Callable[[Callable], Callable]) -> Iterator[torch.Tensor]:
    """Runs until every token is drawn; the arguments and what is yielded are those of jacobi.passes.

    Args:
        record: makes of a function what does its work again.
    """
    tokens = run.out.shape[1]
    first, logits = run.draw(run.model.image_logits(run.hidden), run.out.new_zeros(1))
    run.out[:, 0] = first
    run.finite &= logits.isfinite().all()
    yield logits[:, None]
    step = None
    for position in range(1, tokens):
        if run.end_of_guidance(position):
            run.drop_negative()
            step = None
        if step is None:
            step, again = recorded(run, position, record)
        else:
            step.make_noise(position)
            again()
        yield step.logits[:, None]


def recorded(run: Run, position: int, record: Callable[[Callable], Callable]) -> tuple[DecodeStep, Callable]:
    """Draws the token at `position`; returns its step and what draws the next ones.

    A recorded step is kept only if its states agree with those of the plain one, which otherwise goes on itself.
    """
    args = (run.model.llama, run.cache, run.starts)
    plain = DecodeStep(run, PlainDecoder(*args), position)
    plain()
    fast = [fused.FusedDecoder] if fused.usable(run.model.llama, run.hidden) else []
    for kind in [*fast, PlainDecoder]:
        try:
            step = DecodeStep(run, kind(*args), position)
            step()  # what is set up on first use is not recorded
            step.go_to(position)
            again = record(step)
            again()
            if agree(step.hidden, plain.hidden):
                return step, again
            problem = "it computes other states"
        except Exception as error:  # of drivers, compilers, memory: the picture can be drawn without
            problem = str(error).strip().split("\n")[0] or type(error).__name__
        logging.warning(f"Recording a step ({kind.__name__}) did not work, drawing goes on more slowly: {problem}")
    plain.go_to(position)
    plain()
    return plain, plain


def agree(states, expected) -> bool:
    """Whether both are the same up to rounding."""
    return bool((states - expected).float().norm() <= AGREEMENT * expected.float().norm())
