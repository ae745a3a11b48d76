"""JanusFlow: seconds per guided step, plain and captured, as shares of the matmul rate and beside the original loop."""

from functools import partial

import torch

from janus_core.sampling import flow
from janus_core.sampling.cuda_graphs import capture_for

from .. import baselines, speed
from .models import DTYPE, PeakMemory, first_and_median, model_of, rates, size_of
from .parts import Context, NotRun


def cases(context: Context, size: str):
    size = size_of(size, context.is_tiny)
    yield "rates", lambda: rates(context.device)
    for weights in (None, "int8"):
        for name in ("plain", "graph"):
            yield f"{weights or 'bf16'}, {name}", partial(run, context, size, weights, name == "graph", 1)
    for batch in context.sizes["batches"]:
        yield f"bf16, plain, batch {batch}", partial(run, context, size, None, False, batch)
    yield "original loop", partial(original, context, size)


def inputs(context: Context, size: str, batch: int):
    """Noise [B, 4, h, w], prompt embeddings [2, L, hidden], and which tokens attention sees, [2, L]."""
    side, device = 8 if context.is_tiny else 48, torch.device(context.device)
    z = torch.randn(batch, 4, side, side, device=device)
    embeds = torch.randn(2, speed.PROMPT_TOKENS, baselines.SIZES[size]["hidden_size"], device=device).to(DTYPE)
    visible = torch.ones(2, speed.PROMPT_TOKENS, dtype=torch.bool, device=device)
    visible[1, 1:] = False
    return z, embeds, visible


@torch.inference_mode()
def run(context: Context, size: str, weights: str | None, captured: bool, batch: int) -> dict:
    device, steps = torch.device(context.device), context.sizes["steps"]
    capture = capture_for(device, True) if captured else None
    if captured and capture is None:
        raise NotRun("this device captures no CUDA graphs")
    model = model_of("flow", size, context.device, weights)
    peak = PeakMemory(model, device)
    z, embeds, visible = inputs(context, size, batch)
    cond, uncond = (flow.PromptEmbeds(embeds[k : k + 1], visible[k : k + 1]) for k in range(2))

    def generate():
        velocity = flow.guided_velocity(model, cond, uncond, z, 2.0, capture=capture)
        for _ in flow.integrate(lambda z, t: velocity(z.to(DTYPE), t).float(), z, flow.flow_times(steps)):
            pass

    first, median = first_and_median(context, generate)
    peak_GB = peak.gigabytes()  # before `rates`, which needs memory of its own
    matrices = sum(p.numel() for p in model.llama.layers.parameters() if p.dim() == 2)
    tokens = z.shape[-1] * z.shape[-2] // model.params.uvit.stride**2 + 1
    floor = 2 * matrices * 2 * batch * tokens / rates(context.device)["matmul_GFLOP_s"] / 1e9
    result = {"s_per_step": median / steps, "images_per_s": batch / median, "of_floor": floor / (median / steps)}
    return {**result, "first_extra_s": first - median, "peak_GB": peak_GB}


@torch.inference_mode()
def original(context: Context, size: str) -> dict:
    """The original loop on transformers' LlamaModel, timed once after a run to warm up."""
    device, steps = torch.device(context.device), context.sizes["steps"]
    baseline = baselines.TransformersFlow(size, device, DTYPE)
    z, embeds, visible = inputs(context, size, 1)
    speed.timed(lambda: baseline.generate(embeds, visible, z, 2), device)
    return {"s_per_step": speed.timed(lambda: baseline.generate(embeds, visible, z, steps), device) / steps}
