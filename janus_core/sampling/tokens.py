"""Sampling picture tokens with classifier-free guidance (arXiv 2410.13848, section 3.4; published generate())."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..attention import additive_mask
from ..errors import SamplingError
from ..janus import Janus
from ..networks.llama import KVCache, causal_mask
from ..prompt import check_context
from .choice import Choice, check_guidance, check_range
from .noise import stream_keys

CHECK_EVERY = 32
AS_PUBLISHED = Choice()


class TokenStep(NamedTuple):
    """One position of a run."""

    position: int
    tokens: torch.Tensor  # int64 [B, N], filled up to and with `position` at least
    logits: torch.Tensor  # float32 [B, V], after guidance
    passes: int  # of the model so far


def prefill(model: Janus, prompts, new_tokens: int):
    """Computes the keys and values of prompts of any lengths, aligned at their ends.

    Args:
        prompts: a list of (embeddings [L, hidden], rows): each prompt is computed once and serves that many rows.
        new_tokens: room to keep for generation.

    Returns:
        (cache, starts, hidden): the cache of all rows; int64 [rows], the first slot of each row's prompt; the hidden
        state at each prompt's end [rows, hidden].
    """
    longest = max(len(embeds) for embeds, _ in prompts)
    check_context(longest + new_tokens, model.params.llama.max_positions)
    like = prompts[0][0]
    rows = sum(count for _, count in prompts)
    cache = KVCache(model.params.llama, rows, longest + new_tokens, like.dtype, like.device)
    starts, hidden, row = [], [], 0
    for embeds, count in prompts:
        start = longest - len(embeds)
        one = KVCache(model.params.llama, 1, len(embeds), like.dtype, like.device)
        hidden.append(model.llama(embeds[None], cache=one)[:, -1].expand(count, -1))
        cache.keys[:, row : row + count, :, start:longest] = one.keys
        cache.values[:, row : row + count, :, start:longest] = one.values
        starts += [start] * count
        row += count
    cache.length = longest
    return cache, torch.tensor(starts, device=like.device), torch.cat(hidden)


def sample_steps(
    model: Janus,
    positive: torch.Tensor,
    negative: torch.Tensor | None,
    tokens: int,
    *,
    seed: int = 0,
    indices=(0,),
    cfg: float = 5.0,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    choice: Choice = AS_PUBLISHED,
    keep: tuple[torch.Tensor, torch.Tensor] | None = None,
    window: int = 1,
    width: int | None = None,
) -> Iterator[TokenStep]:
    """Samples picture tokens in raster order, one position per iteration; stop iterating to cancel.

    The next token comes from `u + cfg (c - u)`, c and u being the logits of the positive and the negative row; a cfg
    of exactly 1 leaves the negative row out.

    With a window over 1 several positions are guessed and computed in one pass (Jacobi iteration, arXiv 2410.01699).
    Since a token is a function of those before it and of its own random numbers, a guess is right when the pass draws
    it again: the tokens are those of plain sampling, in fewer passes.

    Args:
        positive: prompt embeddings [1, L, hidden], or one per image [B, L, hidden].
        negative: the unconditional row or a negative prompt, [1 or B, M, hidden]; may be None when cfg is 1.
        tokens: N, how many to sample.
        cfg_interval: the fractions of the run between which guidance acts (arXiv 2404.07724); after it the negative
            row is no longer computed.
        seed: 0 to 2^64 - 1.
        indices: B image indices; image k draws its random numbers from (seed + indices[k]).
        keep: (tokens int64 [B, N], bool [B, N]): where true, the token is taken from here instead of sampled.
        window: positions per pass, 1 to 256.
        width: tokens per row of the picture; the first guess of a token is the one above it.

    Raises:
        PromptError: prompt and picture do not fit the context.
        SamplingError: a setting is out of range, or the model's logits are not finite.
    """
    check_guidance(cfg, cfg_interval)
    check_range("seed", seed, 0, 2**64 - 1, whole=True)
    check_range("window", window, 1, 256, whole=True)
    B, device, dtype = len(indices), positive.device, positive.dtype
    first, last = (round(fraction * tokens) for fraction in cfg_interval)
    guided = cfg != 1 and first < last
    sides = [positive, negative] if guided else [positive]
    prompts = [(row, B // len(side)) for side in sides for row in side]
    cache, starts, hidden = prefill(model, prompts, tokens - 1)
    prompt_length = cache.length
    visible = None
    if starts.any():
        visible = torch.arange(cache.keys.shape[3], device=device) >= starts[:, None]

    keys = stream_keys(seed, indices, device)
    out = torch.zeros(B, tokens, dtype=torch.long, device=device)
    guess = out[:, :0]
    hidden = hidden[:, None]
    finite = torch.ones((), dtype=torch.bool, device=device)
    done = passes = 0
    while True:
        here = torch.arange(done, done + hidden.shape[1], device=device)
        logits = model.image_logits(hidden)
        if guided:
            logits, u = logits.chunk(2)
            guide = ((here >= first) & (here < last))[:, None]
            logits = torch.where(guide, u + cfg * (logits - u), logits)
        drawn = torch.stack([choice(logits[:, j], keys, done + j) for j in range(len(here))], dim=1)
        if keep is not None:
            drawn = torch.where(keep[1][:, here], keep[0][:, here], drawn)

        accepted = 1 + leading(guess == drawn[:, : guess.shape[1]])
        out[:, done : done + accepted] = drawn[:, :accepted]
        finite &= logits.isfinite().all()
        if (passes % CHECK_EVERY == 0 or done + accepted == tokens) and not finite:
            raise SamplingError(
                f"The model's output is not finite at token {done}: use bf16 or fp32 weights, or check the LoRA."
            )
        passes += 1
        for j in range(accepted):
            yield TokenStep(done + j, out, logits[:, j], passes)
        done += accepted
        if done == tokens:
            return

        if guided and done >= last:
            guided = False
            cache.keep(B)
            starts, visible = starts[:B], None if visible is None else visible[:B]
        guess = next_guess(out, done, drawn[:, accepted:], min(window, tokens - done) - 1, width)
        x = model.embed_image_tokens(torch.cat((out[:, done - 1 : done], guess), dim=1), dtype)
        cache.length = prompt_length + done - 1
        positions = cache.length - starts[:, None] + torch.arange(x.shape[1], device=device)
        mask = step_mask(x.shape[1], cache.length, dtype, device, visible)
        hidden = model.llama(x.repeat(2 if guided else 1, 1, 1), positions, cache, mask)


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
