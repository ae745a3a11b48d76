"""Sampling the text that answers a question about images."""

from collections.abc import Iterator, Sequence

import torch

from ..errors import not_finite
from ..networks.cache import KVCache
from ..prompt import check_context
from ..vision_language import VisionLanguageModel
from .noise import gumbel, stream_keys
from .select import select_token
from .settings import TextSamplerSettings, image_seeds


def sample_text(
    model: VisionLanguageModel,
    embeds: torch.Tensor,
    eos: int,
    settings: TextSamplerSettings,
    *,
    stop_ids: Sequence[int] | None = None,
    first_ids: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[torch.Tensor]:
    """Continues each row until it writes `eos` or reaches `max_new_tokens`.

    Args:
        embeds: input embeddings [B, L, hidden]; all rows have one length. Row k uses the random numbers of (seed + k).
        eos: token id that ends a row, and that fills up rows that have ended.
        stop_ids: the token ids that end a row instead of `eos`.
        first_ids: the only token ids that the first token may be.
        seeds: a seed per row, instead of seed + k.

    Yields:
        int64 [B, n] after each token: the answers so far. A row that has ended is filled up with `eos`.

    Raises:
        PromptError: the question and the answer do not fit the context.
        SamplingError: the model's logits are not finite.
    """
    B, L, _ = embeds.shape
    max_positions = model.params.llama.max_positions
    check_context(L + 1, max_positions)
    max_new_tokens = min(settings.max_new_tokens, max_positions - L)
    cache = KVCache(model.params.llama, B, L + max_new_tokens, embeds.dtype, embeds.device)
    keys = stream_keys(0, image_seeds(settings.seed, seeds, B), embeds.device)
    out = torch.full((B, max_new_tokens), eos, device=embeds.device)
    ended = torch.zeros(B, dtype=torch.bool, device=embeds.device)
    stops = torch.tensor([eos] if stop_ids is None else list(stop_ids), device=embeds.device)
    hidden = model.llama(embeds, cache=cache)[:, -1]
    for position in range(max_new_tokens):
        logits = model.text_logits(hidden)
        if not logits.isfinite().all():
            raise not_finite()
        if position == 0 and first_ids is not None:
            allowed = logits[:, list(first_ids)]
            logits = torch.full_like(logits, -torch.inf)
            logits[:, list(first_ids)] = allowed
        noise = None if settings.temperature == 0 else gumbel(keys, position, logits.shape[-1])
        token = select_token(logits, settings, noise).masked_fill(ended, eos)
        out[:, position] = token
        ended |= torch.isin(token, stops)
        yield out[:, : position + 1]
        if ended.all():
            return
        if position < max_new_tokens - 1:
            hidden = model.llama(model.embed_text(token[:, None], embeds.dtype), cache=cache)[:, 0]


def strip_end(ids: torch.Tensor, eos: int) -> list[int]:
    """The ids of one answer up to its end-of-sentence token."""
    ids = ids.tolist()
    return ids[: ids.index(eos)] if eos in ids else ids


def written_ids(ids: torch.Tensor, stop_ids: Sequence[int]) -> list[int]:
    """The ids of one answer up to and with its first stop token."""
    ids = ids.tolist()
    ends = [ids.index(stop) for stop in stop_ids if stop in ids]
    return ids[: min(ends) + 1] if ends else ids
