"""Euler integration of the rectified flow with classifier-free guidance (arXiv 2411.07975, section 3.2)."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import not_finite
from ..janusflow import JanusFlow
from ..prompt import check_context
from .captured_step import CapturedStep
from .cuda_graphs import Capture
from .settings import FlowSamplerSettings

TIME_ERROR = 1e-6


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
    FlowSamplerSettings(steps=steps, denoise=denoise)
    total = steps if denoise >= 1 else int(steps / denoise)
    return [i / total for i in range(total - steps, total + 1)]


class PromptEmbeds(NamedTuple):
    """The prompts of one branch of guidance, one row for all images or one per image."""

    embeds: torch.Tensor  # [n, L, hidden], without the last token
    visible: torch.Tensor | None  # bool [n, L]; None sees every token


def stacked(prompts: Sequence[PromptEmbeds]) -> PromptEmbeds:
    """Prompts of any lengths as one batch, in which hidden rows in front make them equally long.

    Rotary attention depends on distances only, so these rows change nothing.
    """
    longest = max(prompt.embeds.shape[1] for prompt in prompts)
    embeds, visible = [], []
    for prompt in prompts:
        seen = prompt.visible
        if seen is None:
            seen = torch.ones(prompt.embeds.shape[:2], dtype=torch.bool, device=prompt.embeds.device)
        pads = longest - prompt.embeds.shape[1]
        embeds.append(F.pad(prompt.embeds, (0, 0, pads, 0)))
        visible.append(F.pad(seen, (pads, 0)))
    visible = torch.cat(visible)
    return PromptEmbeds(torch.cat(embeds), None if visible.all() else visible)


def is_guided(t: float, interval: tuple[float, float]) -> bool:
    """Whether guidance acts at time t: start <= t < end, up to the error of times in float32."""
    return interval[0] <= t + TIME_ERROR < interval[1]


def seeded_noise(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal float32 noise of a shape, computed on the CPU."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def guided_velocity(
    model: JanusFlow,
    cond: PromptEmbeds,
    uncond: PromptEmbeds | None,
    z,
    guidance: float,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    capture: Capture | None = None,
) -> Callable:
    """The guided velocity `w v_cond - (w - 1) v_uncond` as a function of (z, t), with the prompts encoded once.

    Branches of one length go through the model as one batch; a guidance w of exactly 1 leaves `uncond` out.

    Args:
        z: latents of the run [B, 4, H, W], for their batch and size.
        guidance_interval: guidance acts at times start <= t < end of the path (arXiv 2404.07724); outside, the velocity
            is the conditional one.
        capture: captures the step as a CUDA graph (cuda_graphs.capture_for); the model's weights must then stay where
            they are.

    Raises:
        PromptError: prompt and latents do not fit the context.
    """
    B, _, H, W = z.shape
    image_tokens = model.image_tokens(H, W)

    def encode(prompt: PromptEmbeds):
        length = prompt.embeds.shape[1] + 1 + image_tokens
        check_context(length, model.params.llama.max_positions, image_tokens + 1)
        return model.encode_prompt(prompt.embeds, prompt.visible, image_tokens)

    if guidance == 1:
        batches = [encode(cond).repeat(B // len(cond.embeds))]
    elif cond.embeds.shape == uncond.embeds.shape:
        batches = [encode(stacked((cond, uncond))).repeat(B // len(cond.embeds))]
    else:
        batches = [encode(branch).repeat(B // len(branch.embeds)) for branch in (cond, uncond)]
    cond_batch = batches[0].first(B)

    def unguided(z, t):
        return model.velocity(z, t, cond_batch)

    def guided(z, t):
        v_cond, v_uncond = torch.cat([model.velocity(z, t, batch) for batch in batches]).chunk(2)
        return guidance * v_cond - (guidance - 1) * v_uncond

    if capture is not None:
        unguided, guided = (CapturedStep("The velocity", function, capture) for function in (unguided, guided))

    def velocity(z, t: float):
        inside = guidance != 1 and is_guided(t, guidance_interval)
        return (guided if inside else unguided)(z, torch.full((len(z),), 1000 * t, device=z.device))

    return velocity


def integrate(velocity: Callable, z: torch.Tensor, times: list[float]) -> Iterator[FlowStep]:
    """Integrates dz/dt = velocity(z, t) over `times` with Euler's method; stop iterating to cancel.

    Raises:
        SamplingError: the velocity is not finite.
    """
    for step, (t, t_next) in enumerate(zip(times, times[1:])):
        z = z + (t_next - t) * velocity(z, t)
        if not z.isfinite().all():
            raise not_finite(f" at step {step}")
        yield FlowStep(step, z)
