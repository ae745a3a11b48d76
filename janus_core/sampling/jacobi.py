"""Speculative decoding by Jacobi iteration (arXiv 2410.01699): several guessed positions in one pass of the decoder.

A token is a function of the tokens before it and of its own random numbers. A guess that a pass selects again is
therefore right, and the tokens are those of one-by-one decoding, in fewer passes and without a draft model.
"""

from collections.abc import Iterator

import torch

from ..attention import additive_mask
from ..networks.llama import causal_mask
from .tokens import DecodeState, decode_one_token


def decode_tokens(state: DecodeState, window: int, width: int | None = None) -> Iterator[torch.Tensor]:
    """Decodes up to `window` tokens per pass.

    Args:
        width: tokens per row of the image; a token's first guess is the one above it.

    Yields:
        After each pass the guided logits of the n positions that it settled, float32 [B, n, V].
    """
    tokens, device = state.tokens, state.tokens.device
    count, dtype, visible = tokens.shape[1], state.hidden.dtype, state.visible_slots()
    guess, hidden, done = tokens[:, :0], state.hidden[:, None], 0
    while True:
        here = torch.arange(done, done + hidden.shape[1], device=device)
        pairs = [decode_one_token(state, hidden[:, j], here[j : j + 1]) for j in range(len(here))]
        selected, logits = (torch.stack(column, dim=1) for column in zip(*pairs))
        accepted = 1 + count_leading(guess == selected[:, : guess.shape[1]])
        tokens[:, done : done + accepted] = selected[:, :accepted]
        state.finite &= logits.isfinite().all()
        yield logits[:, :accepted]
        done += accepted
        if done == count:
            return

        if state.drop_unconditional(done):
            visible = None if visible is None else visible[: state.rows]
        guess = next_guess(tokens, done, selected[:, accepted:], min(window, count - done) - 1, width)
        x = state.embed(torch.cat((tokens[:, done - 1 : done], guess), dim=1))
        state.cache.length = state.prompt_length + done - 1
        positions = state.cache.length - state.starts[:, None] + torch.arange(x.shape[1], device=device)
        mask = window_mask(x.shape[1], state.cache.length, dtype, device, visible)
        hidden = state.model.llama(x, positions, state.cache, mask)


def count_leading(right: torch.Tensor) -> int:
    """How many columns of a bool [B, n] are true from the left in every row."""
    return 0 if right.shape[1] == 0 else int(right.all(0).long().cumprod(0).sum())


def next_guess(tokens, done: int, leftover, count: int, width: int | None):
    """Guesses [B, count] for the tokens from `done` on: what the last pass selected there, then the tokens above."""
    guess = leftover[:, :count]
    for position in range(done + guess.shape[1], done + count):
        above = position - (width or 1)
        known = tokens[:, above : above + 1] if 0 <= above < done else guess[:, above - done : above - done + 1]
        guess = torch.cat((guess, known if known.shape[1] else tokens[:, done - 1 : done]), dim=1)
    return guess


def window_mask(length: int, past: int, dtype, device, visible=None):
    """Additive mask of a pass over `length` positions; None where everything is visible (one position, no padding)."""
    if length == 1:
        return None if visible is None else additive_mask(visible[:, None, None, : past + 1], dtype)
    return causal_mask(length, past, dtype, device, None if visible is None else visible[:, : past + length])
