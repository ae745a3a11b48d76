"""Sampling image tokens with classifier-free guidance (arXiv 2410.13848, section 3.4; the original generate()).

`prefill` computes the prompts, `decode_one_token` turns hidden states into the next token, and `sample_image_tokens` is
the loop. Two other loops give the same tokens: speculative decoding (jacobi.py) and CUDA graphs (graph_decode.py);
decode_loop.py chooses among the three.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..attention import additive_mask
from ..errors import not_finite
from ..janus import Janus
from ..networks.cache import KVCache
from ..prompt import check_context
from .noise import gumbel, stream_keys
from .select import select_token
from .settings import TokenSamplerSettings

CHECK_EVERY = 32  # passes between two looks at whether the logits are finite, each of which waits for the GPU


class PromptRow(NamedTuple):
    """A prompt as the decoder reads it.

    Attributes:
        embeds: input embeddings [L, hidden].
        visible: bool [L], False where attention does not see a token; it keeps its position. None: all are visible.
    """

    embeds: torch.Tensor
    visible: torch.Tensor | None = None

    @property
    def hidden_count(self) -> int:
        """How many tokens attention does not see."""
        return 0 if self.visible is None else len(self.visible) - int(self.visible.sum())


class TokenStep(NamedTuple):
    """One position of a run."""

    position: int
    tokens: torch.Tensor  # int64 [B, N], filled up to and with `position` at least
    logits: torch.Tensor  # float32 [B, V], after guidance
    passes: int  # of the decoder so far


@dataclass
class DecodeState:
    """What a run keeps between decoder passes.

    The first B rows are conditional. B rows of the second conditional prompts follow, if there are any, and then, while
    guidance acts, B unconditional rows. `tokens` and `finite` are written in place.
    """

    model: Janus
    settings: TokenSamplerSettings
    guided: tuple[int, int]  # the positions [first, end) at which guidance acts
    keys: torch.Tensor  # int64 [B], the random stream of each image (noise.stream_keys)
    given: tuple[torch.Tensor, torch.Tensor] | None  # (tokens, where they are used), see sample_image_tokens
    cache: KVCache  # of the prompts and then of the image, [layers, rows, ...]
    starts: torch.Tensor  # int64 [rows], the cache slot of each row's position 0
    first_slots: torch.Tensor  # int64 [rows], each row's first filled slot
    hidden: torch.Tensor  # [rows, hidden], the prompts' last hidden states
    tokens: torch.Tensor  # int64 [B, N]
    finite: torch.Tensor  # bool [], whether all logits so far were
    part_weight: float | None = None  # of the second conditional rows (see sample_image_tokens); None without them

    def __post_init__(self):
        self.prompt_length = self.cache.length

    @property
    def rows(self) -> int:
        """Conditional, second conditional and unconditional rows."""
        return len(self.starts)

    @property
    def conditional_rows(self) -> int:
        return len(self.tokens) * (1 if self.part_weight is None else 2)

    def embed(self, tokens):
        """Image tokens [B, n] as input embeddings of every row, [rows, n, hidden]."""
        embeds = self.model.embed_image_tokens(tokens, self.hidden.dtype)
        return embeds.repeat(self.rows // len(tokens), 1, 1)

    def visible_slots(self):
        """Bool [rows, capacity], False in front of a row's first slot; None where that is slot 0 for all rows."""
        if not self.first_slots.any():
            return None
        return torch.arange(self.cache.keys.shape[3], device=self.starts.device) >= self.first_slots[:, None]

    def noise(self, positions):
        """Gumbel noise of positions int64 [1] or [P, 1]: float32 [B, V] or [P, B, V]; None for greedy decoding."""
        if self.settings.temperature == 0:
            return None
        return gumbel(self.keys, positions, self.model.params.vq.codebook_size)

    def drop_unconditional(self, position: int) -> bool:
        """Removes the unconditional rows once no token from `position` on needs them; whether it did."""
        rows = self.conditional_rows
        if self.rows == rows or position < self.guided[1]:
            return False
        self.cache.keep_rows(rows)
        self.starts, self.first_slots = self.starts[:rows], self.first_slots[:rows]
        return True


def prefill(model: Janus, prompts, new_tokens: int):
    """Computes the keys and values of prompts of any lengths, aligned at their ends.

    Prompts of one length, such as a conditional one and its unconditional one, are computed two at a time. Hidden
    tokens are left out; the tokens after them keep their positions.

    Args:
        prompts: a list of (PromptRow, rows): each prompt is computed once and serves that many rows.
        new_tokens: cache slots to reserve for generation.

    Returns:
        (cache, starts, hidden): the cache of all rows; int64 [rows], the slot of each row's position 0; the last
        hidden state of each row's prompt [rows, hidden].
    """
    longest = max(len(prompt.embeds) for prompt, _ in prompts)
    check_context(longest + new_tokens, model.params.llama.max_positions, new_tokens)
    like = prompts[0][0].embeds
    rows = sum(count for _, count in prompts)
    cache = KVCache(model.params.llama, rows, longest + new_tokens, like.dtype, like.device)
    starts, hidden, row = [], like.new_empty(rows, like.shape[-1]), 0
    by_length = defaultdict(list)
    for prompt, count in prompts:
        length = len(prompt.embeds) - prompt.hidden_count
        by_length[length].append((prompt, slice(row, row + count)))
        starts += [longest - len(prompt.embeds)] * count
        row += count
    for length, same in by_length.items():
        for pair in (same[k : k + 2] for k in range(0, len(same), 2)):
            pair_cache = KVCache(model.params.llama, len(pair), length, like.dtype, like.device)
            embeds, positions = _visible_embeds([prompt for prompt, _ in pair])
            states = model.llama(embeds, positions, pair_cache)[:, -1]
            for k, (_, served) in enumerate(pair):
                hidden[served] = states[k]
                cache.keys[:, served, :, longest - length : longest] = pair_cache.keys[:, k : k + 1]
                cache.values[:, served, :, longest - length : longest] = pair_cache.values[:, k : k + 1]
    cache.length = longest
    return cache, torch.tensor(starts, device=like.device), hidden


def as_row(prompt: torch.Tensor | PromptRow) -> PromptRow:
    """A PromptRow of embeddings [L, hidden] that are all visible; a PromptRow as it is."""
    return prompt if isinstance(prompt, PromptRow) else PromptRow(prompt)


def _visible_embeds(prompts: list[PromptRow]):
    """Embeddings [B, L, hidden] of the visible tokens, and their positions [B, L]; None for 0 to L - 1 in every row."""
    if not any(prompt.hidden_count for prompt in prompts):
        return torch.stack([prompt.embeds for prompt in prompts]), None
    embeds, positions = [], []
    for prompt in prompts:
        places = torch.arange(len(prompt.embeds), device=prompt.embeds.device)
        if prompt.visible is not None:
            places = places[prompt.visible.to(places.device)]
        embeds.append(prompt.embeds[places])
        positions.append(places)
    return torch.stack(embeds), torch.stack(positions)


def decode_one_token(state: DecodeState, hidden, position, noise=None):
    """Selects the token at `position` from the hidden states of the position before it.

    Args:
        hidden: [rows, hidden].
        position: int64 [1] on the device.
        noise: of this position, where it has been computed already.

    Returns:
        (tokens int64 [B], guided logits float32 [B, V]).
    """
    logits, *others = state.model.image_logits(hidden).split(len(state.keys))
    if state.part_weight is not None:
        logits = (logits + state.part_weight * others.pop(0)) / (1 + state.part_weight)
    if others:
        (uncond,) = others
        guided = uncond + state.settings.guidance * (logits - uncond)
        first, end = state.guided
        logits = torch.where((position >= first) & (position < end), guided, logits)
    token = select_token(logits, state.settings, state.noise(position) if noise is None else noise)
    if state.given is not None:
        given, is_given = (x.index_select(1, position)[:, 0] for x in state.given)
        token = torch.where(is_given, given, token)
    return token, logits


def decode_tokens(state: DecodeState, start: int = 0) -> Iterator[torch.Tensor]:
    """Decodes one token after the other.

    Args:
        start: the first position; `state.tokens` and the cache hold what comes before it, except the last token's keys
            and values.

    Yields:
        The guided logits of each position, float32 [B, 1, V].
    """
    count, device = state.tokens.shape[1], state.tokens.device
    visible, hidden = state.visible_slots(), state.hidden
    state.cache.length = state.prompt_length + max(0, start - 1)
    for position in range(start, count):
        if position > 0:
            if state.drop_unconditional(position):
                visible = None if visible is None else visible[: state.rows]
            x, slot = state.embed(state.tokens[:, position - 1 : position]), state.prompt_length + position - 1
            mask = None if visible is None else additive_mask(visible[:, None, None, : slot + 1], x.dtype)
            hidden = state.model.llama(x, slot - state.starts[:, None], state.cache, mask)[:, 0]
        token, logits = decode_one_token(state, hidden, torch.full((1,), position, device=device))
        state.tokens[:, position] = token
        state.finite &= logits.isfinite().all()
        yield logits[:, None]


def sample_image_tokens(
    model: Janus,
    cond: torch.Tensor | Sequence[PromptRow],
    uncond: torch.Tensor | Sequence[PromptRow] | None,
    num_tokens: int,
    settings: TokenSamplerSettings,
    *,
    part: Sequence[PromptRow] | None = None,
    part_weight: float = 0.0,
    image_indices=(0,),
    given_tokens: tuple[torch.Tensor, torch.Tensor] | None = None,
    decode: Callable[[DecodeState], Iterator[torch.Tensor]] = decode_tokens,
) -> Iterator[TokenStep]:
    """Samples image tokens in raster order; stop iterating to cancel.

    Logits are guided by `uncond + guidance (cond - uncond)`. A guidance of exactly 1 leaves the unconditional row out.
    With second conditional rows, `cond` is `(cond + part_weight part) / (1 + part_weight)`, guided or not (Janus-4o's
    generation code, w2 = part_weight); a weight of 0 leaves them out.

    Args:
        cond: prompt embeddings [1, L, hidden], or one prompt per image [B, L, hidden]; or 1 or B rows of any lengths.
        uncond: the unconditional row or a negative prompt, [1 or B, M, hidden] or 1 or B rows; may be None when
            guidance is 1.
        num_tokens: N, how many to sample per image.
        part: the second conditional prompts, 1 or B.
        image_indices: B numbers; image k uses the random numbers of (seed + image_indices[k]).
        given_tokens: (tokens int64 [B, N], bool [B, N]): where true, the token is taken from here, not sampled.
        decode: the decode loop (see decode_loop.py). All of them give the same tokens, up to rounding where two tokens
            are almost equally likely.

    Yields:
        A TokenStep per position. With CUDA graphs its logits are valid until the next step.

    Raises:
        PromptError: prompt and image do not fit the context.
        SamplingError: the model's logits are not finite.
    """
    B = len(image_indices)
    guided = tuple(round(fraction * num_tokens) for fraction in settings.guidance_interval)
    has_part = part is not None and part_weight > 0
    branches = [cond, part] if has_part else [cond]
    if settings.guidance != 1 and guided[0] < guided[1]:
        branches.append(uncond)
    prompts = [(as_row(row), B // len(branch)) for branch in branches for row in branch]
    cache, starts, hidden = prefill(model, prompts, num_tokens - 1)
    device = hidden.device
    hidden_counts = [prompt.hidden_count for prompt, count in prompts for _ in range(count)]
    state = DecodeState(
        model=model,
        settings=settings,
        guided=guided,
        keys=stream_keys(settings.seed, image_indices, device),
        given=given_tokens,
        cache=cache,
        starts=starts,
        hidden=hidden,
        tokens=torch.zeros(B, num_tokens, dtype=torch.long, device=device),
        finite=torch.ones((), dtype=torch.bool, device=device),
        first_slots=starts + torch.tensor(hidden_counts, device=device),
        part_weight=part_weight if has_part else None,
    )
    done = 0
    for passes, logits in enumerate(decode(state), start=1):
        now = done + logits.shape[1]
        if (passes % CHECK_EVERY == 1 or now == num_tokens) and not state.finite:
            raise not_finite(f" at token {done}")
        for position in range(done, now):
            yield TokenStep(position, state.tokens, logits[:, position - done], passes)
        done = now
