"""Sampling picture tokens with classifier-free guidance (arXiv 2410.13848, section 3.4; published generate())."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..attention import additive_mask
from ..errors import SamplingError
from ..janus import Janus
from ..networks.llama import KVCache
from ..prompt import check_context
from .choice import Choice, check_guidance, check_range
from .noise import stream_keys

CHECK_EVERY = 32
AS_PUBLISHED = Choice()


class TokenStep(NamedTuple):
    """One position of a run."""

    position: int
    tokens: torch.Tensor  # int64 [B, N], filled up to and with `position`
    logits: torch.Tensor  # float32 [B, V], after guidance


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
) -> Iterator[TokenStep]:
    """Samples picture tokens in raster order, one position per iteration; stop iterating to cancel.

    The next token comes from `u + cfg (c - u)`, c and u being the logits of the positive and the negative row; a cfg
    of exactly 1 leaves the negative row out.

    Args:
        positive: prompt embeddings [1, L, hidden], or one per image [B, L, hidden].
        negative: the unconditional row or a negative prompt, [1 or B, M, hidden]; may be None when cfg is 1.
        tokens: N, how many to sample.
        cfg_interval: the fractions of the run between which guidance acts (arXiv 2404.07724); after it the negative
            row is no longer computed.
        seed: 0 to 2^64 - 1.
        indices: B image indices; image k draws its random numbers from (seed + indices[k]).
        keep: (tokens int64 [B, N], bool [B, N]): where true, the token is taken from here instead of sampled.

    Raises:
        PromptError: prompt and picture do not fit the context.
        SamplingError: a setting is out of range, or the model's logits are not finite.
    """
    check_guidance(cfg, cfg_interval)
    check_range("seed", seed, 0, 2**64 - 1, whole=True)
    B, device, dtype = len(indices), positive.device, positive.dtype
    first, last = (round(fraction * tokens) for fraction in cfg_interval)
    guided = cfg != 1 and first < last
    sides = [positive, negative] if guided else [positive]
    prompts = [(row, B // len(side)) for side in sides for row in side]
    cache, starts, hidden = prefill(model, prompts, tokens - 1)
    mask = None
    if starts.any():
        slots = torch.arange(cache.keys.shape[3], device=device)
        mask = additive_mask(slots >= starts[:, None], dtype)[:, None, None]

    keys = stream_keys(seed, indices, device)
    out = torch.zeros(B, tokens, dtype=torch.long, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for position in range(tokens):
        logits = model.image_logits(hidden)
        if guided:
            logits, u = logits.chunk(2)
            if position >= first:
                logits = u + cfg * (logits - u)
        token = choice(logits, keys, position)
        if keep is not None:
            token = torch.where(keep[1][:, position], keep[0][:, position], token)
        out[:, position] = token

        finite &= logits.isfinite().all()
        if (position % CHECK_EVERY == 0 or position == tokens - 1) and not finite:
            raise SamplingError(
                f"The model's output is not finite at token {position}: use bf16 or fp32 weights, or check the LoRA."
            )
        yield TokenStep(position, out, logits)

        if position < tokens - 1:
            if guided and position + 1 >= last:
                guided = False
                cache.keep(B)
                starts, mask = starts[:B], None if mask is None else mask[:B]
            x = model.embed_image_tokens(token, dtype).repeat(2 if guided else 1, 1)[:, None]
            positions = (cache.length - starts)[:, None]
            step_mask = None if mask is None else mask[..., : cache.length + 1]
            hidden = model.llama(x, positions, cache, step_mask)[:, 0]
