"""Sampling picture tokens with classifier-free guidance (arXiv 2410.13848, section 3.4; published generate())."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..errors import SamplingError
from ..janus import Janus
from . import jacobi, replay
from .choice import Choice, check_guidance, check_range
from .decoding import Draw, Run, prefill
from .noise import stream_keys
from .recording import Record

CHECK_EVERY = 32
AS_PUBLISHED = Choice()


class TokenStep(NamedTuple):
    """One position of a run."""

    position: int
    tokens: torch.Tensor  # int64 [B, N], filled up to and with `position` at least
    logits: torch.Tensor  # float32 [B, V], after guidance
    passes: int  # of the model so far


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
    record: Record | None = None,
) -> Iterator[TokenStep]:
    """Samples picture tokens in raster order, one position per iteration; stop iterating to cancel.

    The next token comes from `u + cfg (c - u)`, c and u being the logits of the positive and the negative row; a cfg
    of exactly 1 leaves the negative row out.

    With a window over 1 several positions are guessed and computed in one pass (see jacobi), with a `record` one pass
    is recorded and replayed (see replay); the tokens are the same but for the arithmetic's rounding, which a choice
    between two tokens that are all but equally likely may turn on.

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
        width: tokens per row of the picture, which the first guesses use.
        record: makes of a function what does its work again (recording.recorder); the model's weights then have to stay
            where they are, and its layers to do no more than the network says. A step's logits are valid until the
            next step. With a window over 1 it is not used.

    Raises:
        PromptError: prompt and picture do not fit the context.
        SamplingError: a setting is out of range or does not go with another, or the model's logits are not finite.
    """
    check_guidance(cfg, cfg_interval)
    check_range("seed", seed, 0, 2**64 - 1, whole=True)
    check_range("window", window, 1, 256, whole=True)
    B, device = len(indices), positive.device
    guided = tuple(round(fraction * tokens) for fraction in cfg_interval)
    sides = [positive, negative] if cfg != 1 and guided[0] < guided[1] else [positive]
    prefilled = prefill(model, [(row, B // len(side)) for side in sides for row in side], tokens - 1)
    draw = Draw(choice, stream_keys(seed, indices, device), cfg, guided, keep)
    out = torch.zeros(B, tokens, dtype=torch.long, device=device)
    run = Run(model, draw, *prefilled, out, finite=torch.ones((), dtype=torch.bool, device=device))
    done = 0
    plain = record is None or window > 1
    settled = jacobi.passes(run, window, width) if plain else replay.passes(run, record)
    for count, logits in enumerate(settled, start=1):
        now = done + logits.shape[1]
        if (count % CHECK_EVERY == 1 or now == tokens) and not run.finite:
            raise SamplingError(
                f"The model's output is not finite at token {done}: use bf16 or fp32 weights, or check the LoRA."
            )
        for position in range(done, now):
            yield TokenStep(position, out, logits[:, position - done], count)
        done = now
