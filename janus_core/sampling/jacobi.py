"""Passes over the next position, or over several guessed ones (Jacobi iteration, arXiv 2410.01699).

A token is a function of those before it and of its own random numbers, so a guess is right when the pass draws it
again: the tokens are those of plain sampling, in fewer passes.
"""

from collections.abc import Iterator

import torch

from ..attention import additive_mask
from ..networks.llama import causal_mask
from .decoding import Run


def passes(run: Run, window: int = 1, width: int | None = None) -> Iterator[torch.Tensor]:
    """Runs until every token is drawn.

    Args:
        window: positions per pass.
        width: tokens per row of the picture; the first guess of a token is the one above it.

    Yields:
        float32 [B, n, V] after each pass: the guided logits of the n positions that it settled.
    """
    out, draw = run.out, run.draw
    tokens, device, dtype = out.shape[1], out.device, run.hidden.dtype
    visible = None
    if run.starts.any():
        visible = torch.arange(run.cache.keys.shape[3], device=device) >= run.starts[:, None]
    guess, hidden, done = out[:, :0], run.hidden[:, None], 0
    while True:
        here = torch.arange(done, done + hidden.shape[1], device=device)
        logits = run.model.image_logits(hidden)
        drawn, logits = zip(*(draw(logits[:, j], here[j : j + 1]) for j in range(len(here))))
        drawn, logits = torch.stack(drawn, dim=1), torch.stack(logits, dim=1)
        accepted = 1 + leading(guess == drawn[:, : guess.shape[1]])
        out[:, done : done + accepted] = drawn[:, :accepted]
        run.finite &= logits.isfinite().all()
        yield logits[:, :accepted]
        done += accepted
        if done == tokens:
            return

        if run.end_of_guidance(done):
            run.drop_negative()
            visible = None if visible is None else visible[: run.rows]
        guess = next_guess(out, done, drawn[:, accepted:], min(window, tokens - done) - 1, width)
        x = run.embed(torch.cat((out[:, done - 1 : done], guess), dim=1))
        run.cache.length = run.prompt_length + done - 1
        positions = run.cache.length - run.starts[:, None] + torch.arange(x.shape[1], device=device)
        mask = step_mask(x.shape[1], run.cache.length, dtype, device, visible)
        hidden = run.model.llama(x, positions, run.cache, mask)


def leading(right: torch.Tensor) -> int:
    """How many columns of a bool [B, n] are true from the left in every row."""
    return 0 if right.shape[1] == 0 else int(right.all(0).long().cumprod(0).sum())


def next_guess(out, done: int, leftover, count: int, width: int | None):
    """Guesses [B, count] of the tokens from `done` on: what the last pass drew there, then the tokens above."""
    guess = leftover[:, :count]
    for position in range(done + guess.shape[1], done + count):
        above = position - (width or 1)
        known = out[:, above : above + 1] if 0 <= above < done else guess[:, above - done : above - done + 1]
        guess = torch.cat((guess, known if known.shape[1] else out[:, done - 1 : done]), dim=1)
    return guess


def step_mask(length: int, past: int, dtype, device, visible=None):
    """Additive mask of a pass over `length` positions; None where everything is seen (one position, no padding)."""
    if length == 1:
        return None if visible is None else additive_mask(visible[:, None, None, : past + 1], dtype)
    return causal_mask(length, past, dtype, device, None if visible is None else visible[:, : past + length])
