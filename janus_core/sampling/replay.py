"""Passes of one position whose work is recorded once and replayed, as a CUDA graph does it.

A step's many small kernels cost a GPU less than starting each of them costs the host; replayed, they start together.
For that the step reads what changes, the position, from a tensor, and works on buffers that never move: the whole cache
is read in every step, and what is not yet written is masked.
"""

from collections.abc import Callable, Iterator

import torch

from ..attention import additive_mask
from ..networks.llama import FixedCache
from .decoding import Run

WARM_UP = 2  # steps that are computed before one is recorded: libraries set themselves up in them


def cuda_graph(function: Callable, device=None) -> Callable:
    """Records what `function` does on a GPU, the current one by default, without doing it; returns what does it."""
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
    return graph.replay


class DecodeStep:
    """Draws the token at `position` of a run, from 1 on, and moves the position forward."""

    def __init__(self, run: Run, position: int):
        self.run = run
        self.position = torch.full((1,), position, device=run.out.device)
        self.logits = None  # float32 [B, V], of the token drawn last
        self.slots = torch.arange(run.cache.keys.shape[3], device=run.out.device)

    def __call__(self):
        run, position = self.run, self.position
        slot = run.prompt_length - 1 + position
        starts = run.starts[:, None]
        visible = (self.slots >= starts) & (self.slots <= slot)
        x = run.embed(run.out.index_select(1, position - 1))
        mask = additive_mask(visible[:, None, None], x.dtype)
        hidden = run.model.llama(x, slot - starts, FixedCache(run.cache, slot), mask)[:, 0]
        drawn, self.logits = run.draw(run.model.image_logits(hidden), position)
        run.out.index_copy_(1, position, drawn[:, None])
        run.finite.logical_and_(self.logits.isfinite().all())
        position.add_(1)


def passes(run: Run, capture: Callable[[Callable], Callable]) -> Iterator[torch.Tensor]:
    """Runs until every token is drawn; the arguments and what is yielded are those of jacobi.passes.

    Args:
        capture: makes of a function what replays its work.
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
            step = again = DecodeStep(run, position)
            computed = 0
        elif computed == WARM_UP:
            again = capture(step)
        again()
        computed += 1
        yield step.logits[:, None]
