"""What a run of the token sampler holds between its passes, whichever way they are made."""

from collections import defaultdict
from dataclasses import dataclass

import torch

from ..janus import Janus
from ..networks.llama import KVCache
from ..prompt import check_context
from .choice import Choice
from .noise import gumbel


def prefill(model: Janus, prompts, new_tokens: int):
    """Computes the keys and values of prompts of any lengths, aligned at their ends.

    Prompts of one length are computed two at a time, as guidance has them.

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
    starts, hidden, row = [], like.new_empty(rows, like.shape[-1]), 0
    of_length = defaultdict(list)
    for embeds, count in prompts:
        of_length[len(embeds)].append((embeds, slice(row, row + count)))
        starts += [longest - len(embeds)] * count
        row += count
    for length, same in of_length.items():
        for pair in (same[k : k + 2] for k in range(0, len(same), 2)):
            own = KVCache(model.params.llama, len(pair), length, like.dtype, like.device)
            states = model.llama(torch.stack([embeds for embeds, _ in pair]), cache=own)[:, -1]
            for k, (_, served) in enumerate(pair):
                hidden[served] = states[k]
                cache.keys[:, served, :, longest - length : longest] = own.keys[:, k : k + 1]
                cache.values[:, served, :, longest - length : longest] = own.values[:, k : k + 1]
    cache.length = longest
    return cache, torch.tensor(starts, device=like.device), hidden


@dataclass(frozen=True)
class Draw:
    """How the logits of one position become tokens.

    Args:
        keys: int64 [B] (noise.stream_keys).
        guided: the positions [first, last) at which guidance acts.
        keep: (tokens int64 [B, N], bool [B, N]): where true, the token is taken from here instead; or None.
    """

    choice: Choice
    keys: torch.Tensor
    cfg: float
    guided: tuple[int, int]
    keep: tuple[torch.Tensor, torch.Tensor] | None

    def noise(self, positions, size: int):
        """Of positions int64 [1] or [P, 1]: float32 [B, size] or [P, B, size]; None for a greedy choice."""
        return None if self.choice.is_greedy else gumbel(self.keys, positions, size)

    def __call__(self, logits, position, noise=None):
        """Draws one token per picture.

        Args:
            logits: float32 [rows, V], the negative rows, if there are any, after the positive ones.
            position: index of the token being drawn, int64 [1] on the device.
            noise: of this position, where it is known.

        Returns:
            (tokens int64 [B], logits float32 [B, V] after guidance).
        """
        if len(logits) > len(self.keys):
            c, u = logits.chunk(2)
            inside = (position >= self.guided[0]) & (position < self.guided[1])
            logits = torch.where(inside, u + self.cfg * (c - u), c)
        drawn = self.choice(logits, self.noise(position, logits.shape[-1]) if noise is None else noise)
        if self.keep is not None:
            given, where = (side.index_select(1, position)[:, 0] for side in self.keep)
            drawn = torch.where(where, given, drawn)
        return drawn, logits


@dataclass
class Run:
    """A run: the prompts are computed, the first token is yet to be drawn.

    `out` and `finite` are written in place by every pass.
    """

    model: Janus
    draw: Draw
    cache: KVCache  # of the prompts and then of the picture, [layers, rows, ...]
    starts: torch.Tensor  # int64 [rows], the first slot of each row's prompt
    hidden: torch.Tensor  # [rows, hidden], at the prompts' ends
    out: torch.Tensor  # int64 [B, N], the tokens
    finite: torch.Tensor  # bool [], whether all logits were

    def __post_init__(self):
        self.prompt_length = self.cache.length

    @property
    def rows(self) -> int:
        """Pictures, and as many negative rows while guidance acts."""
        return len(self.starts)

    def embed(self, tokens):
        """Tokens [B, n] as input embeddings of every row, [rows, n, hidden]."""
        embeds = self.model.embed_image_tokens(tokens, self.hidden.dtype)
        return embeds.repeat(self.rows // len(tokens), 1, 1)

    def end_of_guidance(self, done: int) -> bool:
        """Whether negative rows are there that tokens from `done` on do not need."""
        return self.rows > len(self.out) and done >= self.draw.guided[1]

    def drop_negative(self):
        """Goes on with the positive rows alone."""
        self.cache.keep(len(self.out))
        self.starts = self.starts[: len(self.out)]
