"""Euler integration of the rectified flow with classifier-free guidance (arXiv 2411.07975, section 3.2)."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from ..errors import SamplingError
from ..janusflow import JanusFlow
from ..prompt import check_context
from .choice import check_guidance, check_range
from .recording import Record, Recorded


class FlowStep(NamedTuple):
    """One step of a run."""

    step: int
    z: torch.Tensor  # latents after the step, [B, 4, H, W]


def flow_times(steps: int, denoise: float = 1.0) -> list[float]:
    """Times 0 (noise) to 1 (data) of a run, `steps` + 1 of them.

    With `denoise` < 1 the path has int(steps / denoise) uniform steps, of which the last `steps` are run.

    Raises:
        SamplingError: steps not in 1 to 10000 or denoise not in (0, 1].
    """
    check_range("steps", steps, 1, 10000, whole=True)
    check_range("denoise", denoise, 0, 1)
    if denoise == 0:
        raise SamplingError("denoise is 0, nothing would be drawn.")
    total = steps if denoise >= 1 else int(steps / denoise)
    return [i / total for i in range(total - steps, total + 1)]


class Prompt(NamedTuple):
    """One side of the guidance, one row for all images or one per image."""

    embeds: torch.Tensor  # [n, L, hidden], without the last token
    visible: torch.Tensor | None  # bool [n, L]; None sees every token


def joined(a: Prompt, b: Prompt) -> Prompt:
    """Both prompts' rows as one batch; their lengths must agree."""
    visible = [
        torch.ones(p.embeds.shape[:2], dtype=torch.bool, device=p.embeds.device) if p.visible is None else p.visible
        for p in (a, b)
    ]
    return Prompt(torch.cat((a.embeds, b.embeds)), torch.cat(visible))


def guided_velocity(
    model: JanusFlow,
    positive: Prompt,
    negative: Prompt | None,
    z,
    cfg: float,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    record: Record | None = None,
) -> Callable:
    """The guided velocity `cfg v_c - (cfg - 1) v_u` as a function of (z, t), with the prompts encoded once.

    Sides of one length go through the model as one batch; a cfg of exactly 1 leaves the negative side out.

    Args:
        z: latents of the run [B, 4, H, W], for their batch and size.
        cfg_interval: guidance acts at times start <= t < end of the path (arXiv 2404.07724); outside, the velocity is
            the positive side's alone.
        record: makes of a function what does its work again (recording.recorder), for steps without Python; the model's
            weights then have to stay where they are.

    Raises:
        PromptError: prompt and latents do not fit the context.
        SamplingError: cfg is out of range.
    """
    check_guidance(cfg, cfg_interval)
    B, _, H, W = z.shape
    image_tokens = model.image_tokens(H, W)

    def encode(prompt: Prompt):
        rows, L, _ = prompt.embeds.shape
        check_context(L + 1 + image_tokens, model.params.llama.max_positions)
        return model.encode_prompt(prompt.embeds, prompt.visible, image_tokens)

    if cfg == 1:
        sides = [encode(positive).repeat(B // len(positive.embeds))]
    elif positive.embeds.shape == negative.embeds.shape:
        sides = [encode(joined(positive, negative)).repeat(B // len(positive.embeds))]
    else:
        sides = [encode(p).repeat(B // len(p.embeds)) for p in (positive, negative)]

    alone = sides[0].first(B) if len(sides) == 1 else sides[0]

    def unguided(z, t):
        return model.velocity(z, t, alone)

    def guided(z, t):
        v_c, v_u = torch.cat([model.velocity(z, t, side) for side in sides]).chunk(2)
        return cfg * v_c - (cfg - 1) * v_u

    if record is not None:
        unguided, guided = (Recorded("The velocity", function, record) for function in (unguided, guided))

    def velocity(z, t: float):
        function = guided if cfg != 1 and cfg_interval[0] <= t < cfg_interval[1] else unguided
        return function(z, torch.full((len(z),), 1000 * t, device=z.device))

    return velocity


def sample_steps(velocity: Callable, z: torch.Tensor, times: list[float]) -> Iterator[FlowStep]:
    """Integrates dz/dt = velocity(z, t) over `times` with Euler's method; stop iterating to cancel.

    Raises:
        SamplingError: the velocity is not finite.
    """
    for step, (t, t_next) in enumerate(zip(times, times[1:])):
        z = z + (t_next - t) * velocity(z, t)
        if not z.isfinite().all():
            raise SamplingError(f"The model's output is not finite at step {step}: use bf16 or fp32 weights.")
        yield FlowStep(step, z)
