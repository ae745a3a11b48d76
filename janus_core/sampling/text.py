"""Writing text after a question about pictures."""

from collections.abc import Iterator

import torch

from ..errors import SamplingError
from ..networks.llama import KVCache
from ..prompt import check_context
from ..understanding import Understanding
from .choice import Choice, check_range
from .noise import gumbel, stream_keys

GREEDY = Choice(temperature=0)
MAX_NEW_TOKENS = 4096


def sample_steps(
    model: Understanding,
    embeds: torch.Tensor,
    max_new_tokens: int,
    eos: int,
    *,
    choice: Choice = GREEDY,
    seed: int = 0,
) -> Iterator[torch.Tensor]:
    """Continues each row until it ends its sentence or `max_new_tokens` are written.

    Args:
        embeds: input embeddings [B, L, hidden]; rows have one length.
        eos: token id that ends a row.
        seed: row k draws its random numbers from (seed + k).

    Yields:
        int64 [B, n] after each token: what was written so far. A row that has ended goes on with `eos`.

    Raises:
        PromptError: the question and the answer do not fit the context.
        SamplingError: a setting is out of range, or the model's logits are not finite.
    """
    check_range("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS, whole=True)
    check_range("seed", seed, 0, 2**64 - 1, whole=True)
    B, L, _ = embeds.shape
    room = model.params.llama.max_positions
    check_context(L + 1, room)
    max_new_tokens = min(max_new_tokens, room - L)
    cache = KVCache(model.params.llama, B, L + max_new_tokens, embeds.dtype, embeds.device)
    keys = stream_keys(seed, range(B), embeds.device)
    out = torch.full((B, max_new_tokens), eos, device=embeds.device)
    ended = torch.zeros(B, dtype=torch.bool, device=embeds.device)
    hidden = model.llama(embeds, cache=cache)[:, -1]
    for position in range(max_new_tokens):
        logits = model.text_logits(hidden)
        if not logits.isfinite().all():
            raise SamplingError("The model's output is not finite: use bf16 or fp32 weights.")
        noise = None if choice.is_greedy else gumbel(keys, position, logits.shape[-1])
        token = choice(logits, noise).masked_fill(ended, eos)
        out[:, position] = token
        ended |= token == eos
        yield out[:, : position + 1]
        if ended.all():
            return
        if position < max_new_tokens - 1:
            hidden = model.llama(model.embed_text(token[:, None], embeds.dtype), cache=cache)[:, 0]


def strip_end(ids: torch.Tensor, eos: int) -> list[int]:
    """The ids of one answer up to its end of sentence."""
    ids = ids.tolist()
    return ids[: ids.index(eos)] if eos in ids else ids
