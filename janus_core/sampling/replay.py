"""Decode steps whose work is recorded once and replayed (see recording).

For that a step reads what changes, the position, from a tensor, and works on buffers that never move.
"""

from collections.abc import Callable, Iterator

import torch

from ..attention import additive_mask
from ..fused import decoder as fused
from ..networks.llama import FixedCache, KVCache, Llama
from .decoding import Run
from .recording import Record, attempt

NOISE_AHEAD = 16  # positions whose noise is made together


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
        self.hidden = torch.empty_like(run.hidden[: run.rows])  # [rows, hidden], of the token drawn last
        shape = len(run.out), run.model.params.vq.codebook_size
        self.logits = torch.empty(shape, device=run.out.device)  # float32 [B, V], of the token drawn last

    @staticmethod
    def _first(position: int) -> int:
        return position - position % NOISE_AHEAD

    def __call__(self):
        run, position = self.run, self.position
        x = run.embed(run.out.index_select(1, position - 1))[:, 0]
        self.hidden.copy_(self.decode(x, run.prompt_length - 1 + position))
        noise = None if self.noise is None else self.noise.index_select(0, position % NOISE_AHEAD)[0]
        drawn, logits = run.draw(run.model.image_logits(self.hidden), position, noise)
        self.logits.copy_(logits)
        run.out.index_copy_(1, position, drawn[:, None])
        run.finite.logical_and_(logits.isfinite().all())
        position.add_(1)

    def go_to(self, position: int):
        """Makes `position` the next one."""
        self.position.fill_(position)

    def make_noise(self, position: int):
        """Sees to it that the noise of `position` is there, when the one before was drawn last."""
        if self.noise is not None and position % NOISE_AHEAD == 0:
            self.noise.copy_(self.run.draw.noise(self.ahead + position, self.noise.shape[-1]))


def passes(run: Run, record: Record) -> Iterator[torch.Tensor]:
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


def recorded(run: Run, position: int, record: Record) -> tuple[DecodeStep, Callable]:
    """Draws the token at `position`; returns its step and what draws the next ones.

    A recorded step is kept only if its states agree with those of the plain one, which otherwise goes on itself.
    """
    args = (run.model.llama, run.cache, run.starts)
    plain = DecodeStep(run, PlainDecoder(*args), position)
    plain()
    finite = run.finite.clone()
    fast = [fused.FusedDecoder] if fused.usable(run.model.llama, run.hidden) else []
    for kind in [*fast, PlainDecoder]:

        def make(kind=kind):
            step = DecodeStep(run, kind(*args), position)
            step()  # what is set up on first use is not recorded
            step.go_to(position)
            again = record(step)
            again()
            return step.hidden, (step, again)

        if made := attempt(f"A step of the {kind.__name__}", make, plain.hidden):
            return made
        run.finite.copy_(finite)
    plain.go_to(position)
    plain()
    return plain, plain
