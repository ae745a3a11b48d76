"""Sampling image tokens with classifier-free guidance (arXiv 2410.13848, section 3.4; the original generate()).

`prefill` computes the prompts, `decode_one_token` turns hidden states into the next token, and `sample_image_tokens` is
the loop. Two other loops give the same tokens: speculative decoding (jacobi.py) and CUDA graphs (graph_decode.py);
decode_loop.py chooses among the three.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..attention import additive_mask
from ..errors import SamplingError
from ..janus import Janus
from ..networks.llama import KVCache
from ..prompt import check_context
from .noise import gumbel, stream_keys
from .select import select_token
from .settings import TokenSamplerSettings

CHECK_EVERY = 32  # passes between two looks at whether the logits are finite, each of which waits for the GPU


class TokenStep(NamedTuple):
    """One position of a run."""

    position: int
    tokens: torch.Tensor  # int64 [B, N], filled up to and with `position` at least
    logits: torch.Tensor  # float32 [B, V], after guidance
    passes: int  # of the decoder so far


@dataclass
class DecodeState:
    """What a run keeps between decoder passes.

    The first B rows are conditional; while guidance acts, as many unconditional rows follow. `tokens` and `finite` are
    written in place.
    """

    model: Janus
    settings: TokenSamplerSettings
    guided: tuple[int, int]  # the positions [first, end) at which guidance acts
    keys: torch.Tensor  # int64 [B], the random stream of each image (noise.stream_keys)
    given: tuple[torch.Tensor, torch.Tensor] | None  # (tokens, where they are used), see sample_image_tokens
    cache: KVCache  # of the prompts and then of the image, [layers, rows, ...]
    starts: torch.Tensor  # int64 [rows], the first cache slot of each row's prompt
    hidden: torch.Tensor  # [rows, hidden], the prompts' last hidden states
    tokens: torch.Tensor  # int64 [B, N]
    finite: torch.Tensor  # bool [], whether all logits so far were

    def __post_init__(self):
        self.prompt_length = self.cache.length

    @property
    def rows(self) -> int:
        """Conditional and unconditional rows."""
        return len(self.starts)

    def embed(self, tokens):
        """Image tokens [B, n] as input embeddings of every row, [rows, n, hidden]."""
        embeds = self.model.embed_image_tokens(tokens, self.hidden.dtype)
        return embeds.repeat(self.rows // len(tokens), 1, 1)

    def visible_slots(self):
        """Bool [rows, capacity], False in front of a row's prompt; None where all rows start at slot 0."""
        if not self.starts.any():
            return None
        return torch.arange(self.cache.keys.shape[3], device=self.starts.device) >= self.starts[:, None]

    def noise(self, positions):
        """Gumbel noise of positions int64 [1] or [P, 1]: float32 [B, V] or [P, B, V]; None for greedy decoding."""
        if self.settings.temperature == 0:
            return None
        return gumbel(self.keys, positions, self.model.params.vq.codebook_size)

    def drop_unconditional(self, position: int) -> bool:
        """Removes the unconditional rows once no token from `position` on needs them; whether it did."""
        if self.rows == len(self.tokens) or position < self.guided[1]:
            return False
        self.cache.keep_rows(len(self.tokens))
        self.starts = self.starts[: len(self.tokens)]
        return True


def prefill(model: Janus, prompts, new_tokens: int):
    """Computes the keys and values of prompts of any lengths, aligned at their ends.

    Prompts of one length are computed in pairs: a conditional row and its unconditional one.

    Args:
        prompts: a list of (embeddings [L, hidden], rows): each prompt is computed once and serves that many rows.
        new_tokens: cache slots to reserve for generation.

    Returns:
        (cache, starts, hidden): the cache of all rows; int64 [rows], the first slot of each row's prompt; the last
        hidden state of each row's prompt [rows, hidden].
    """
    longest = max(len(embeds) for embeds, _ in prompts)
    check_context(longest + new_tokens, model.params.llama.max_positions, new_tokens)
    like = prompts[0][0]
    rows = sum(count for _, count in prompts)
    cache = KVCache(model.params.llama, rows, longest + new_tokens, like.dtype, like.device)
    starts, hidden, row = [], like.new_empty(rows, like.shape[-1]), 0
    by_length = defaultdict(list)
    for embeds, count in prompts:
        by_length[len(embeds)].append((embeds, slice(row, row + count)))
        starts += [longest - len(embeds)] * count
        row += count
    for length, same in by_length.items():
        for pair in (same[k : k + 2] for k in range(0, len(same), 2)):
            pair_cache = KVCache(model.params.llama, len(pair), length, like.dtype, like.device)
            states = model.llama(torch.stack([embeds for embeds, _ in pair]), cache=pair_cache)[:, -1]
            for k, (_, served) in enumerate(pair):
                hidden[served] = states[k]
                cache.keys[:, served, :, longest - length : longest] = pair_cache.keys[:, k : k + 1]
                cache.values[:, served, :, longest - length : longest] = pair_cache.values[:, k : k + 1]
    cache.length = longest
    return cache, torch.tensor(starts, device=like.device), hidden


def decode_one_token(state: DecodeState, hidden, position, noise=None):
    """Selects the token at `position` from the hidden states of the position before it.

    Args:
        hidden: [rows, hidden].
        position: int64 [1] on the device.
        noise: of this position, where it has been computed already.

    Returns:
        (tokens int64 [B], guided logits float32 [B, V]).
    """
    logits = state.model.image_logits(hidden)
    if len(logits) > len(state.keys):
        cond, uncond = logits.chunk(2)
        guided = uncond + state.settings.guidance * (cond - uncond)
        first, end = state.guided
        logits = torch.where((position >= first) & (position < end), guided, cond)
    token = select_token(logits, state.settings, state.noise(position) if noise is None else noise)
    if state.given is not None:
        given, is_given = (x.index_select(1, position)[:, 0] for x in state.given)
        token = torch.where(is_given, given, token)
    return token, logits


def decode_tokens(state: DecodeState) -> Iterator[torch.Tensor]:
    """Decodes one token after the other.

    Yields:
        The guided logits of each position, float32 [B, 1, V].
    """
    count, device = state.tokens.shape[1], state.tokens.device
    visible, hidden = state.visible_slots(), state.hidden
    for position in range(count):
        token, logits = decode_one_token(state, hidden, torch.full((1,), position, device=device))
        state.tokens[:, position] = token
        state.finite &= logits.isfinite().all()
        yield logits[:, None]
        if position == count - 1:
            return
        if state.drop_unconditional(position + 1):
            visible = None if visible is None else visible[: state.rows]
        x, slot = state.embed(token[:, None]), state.prompt_length + position
        mask = None if visible is None else additive_mask(visible[:, None, None, : slot + 1], x.dtype)
        hidden = state.model.llama(x, slot - state.starts[:, None], state.cache, mask)[:, 0]


def sample_image_tokens(
    model: Janus,
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    num_tokens: int,
    settings: TokenSamplerSettings,
    *,
    image_indices=(0,),
    given_tokens: tuple[torch.Tensor, torch.Tensor] | None = None,
    decode: Callable[[DecodeState], Iterator[torch.Tensor]] = decode_tokens,
) -> Iterator[TokenStep]:
    """Samples image tokens in raster order; stop iterating to cancel.

    Logits are guided by `uncond + guidance (cond - uncond)`. A guidance of exactly 1 leaves the unconditional row out.

    Args:
        cond: prompt embeddings [1, L, hidden], or one prompt per image [B, L, hidden].
        uncond: the unconditional row or a negative prompt, [1 or B, M, hidden]; may be None when guidance is 1.
        num_tokens: N, how many to sample per image.
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
    B, device = len(image_indices), cond.device
    guided = tuple(round(fraction * num_tokens) for fraction in settings.guidance_interval)
    branches = [cond, uncond] if settings.guidance != 1 and guided[0] < guided[1] else [cond]
    prompts = [(row, B // len(branch)) for branch in branches for row in branch]
    cache, starts, hidden = prefill(model, prompts, num_tokens - 1)
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
    )
    done = 0
    for passes, logits in enumerate(decode(state), start=1):
        now = done + logits.shape[1]
        if (passes % CHECK_EVERY == 1 or now == num_tokens) and not state.finite:
            raise SamplingError(
                f"The model's output is not finite at token {done}: use bf16 or fp32 weights, or check the LoRA."
            )
        for position in range(done, now):
            yield TokenStep(position, state.tokens, logits[:, position - done], passes)
        done = now
