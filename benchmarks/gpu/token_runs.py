"""Janus-Pro: seconds per token of every decode loop and weight format, as shares of reading the weights once."""

from functools import partial

import torch

from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens

from .. import baselines, speed
from .models import DTYPE, PeakMemory, decoder_bytes, first_and_median, model_of, rates, size_of
from .parts import Context, NotRun

WEIGHTS = (None, "int8", "fp8_e4m3fn")


def cases(context: Context, size: str, batches: bool = False):
    tokens, size = context.sizes["tokens"], size_of(size, context.is_tiny)
    yield "rates", lambda: rates(context.device)
    if batches:
        for batch in (1, *context.sizes["batches"]):
            for loop in ("plain", "graph", "triton"):
                yield f"batch {batch}, {loop}", partial(run, context, size, None, loop, batch)
        return
    for weights in WEIGHTS:
        for loop in ("plain", "graph", "triton"):
            yield f"{weights or 'bf16'}, {loop}", partial(run, context, size, weights, loop, 1)
    yield "transformers", partial(transformers_run, context, size, tokens)


def loop_of(name: str, model, rows):
    """A decode loop, by the name in a case."""
    found = speed.decode_loops(model, rows)
    key = {"plain": "", "graph": ", CUDA graph", "triton": ", CUDA graph + Triton"}[name]
    if key not in found:
        raise NotRun("this device captures no CUDA graphs" if ", CUDA graph" not in found else "no usable Triton")
    return found[key]


@torch.inference_mode()
def run(context: Context, size: str, weights: str | None, loop: str, batch: int) -> dict:
    device, count = torch.device(context.device), context.sizes["tokens"]
    model = model_of("ar", size, context.device, weights)
    peak = PeakMemory(model, device)
    ids = torch.randint(10, baselines.VOCABULARY, (speed.PROMPT_TOKENS,), device=device)
    cond = model.embed_text(ids, DTYPE)[None]
    uncond = cond.roll(1, 1)
    decode = loop_of(loop, model, cond[:, -1].expand(2 * batch, -1))

    def generate(tokens=count):
        settings = TokenSamplerSettings(seed=1)
        steps = sample_image_tokens(model, cond, uncond, tokens, settings, image_indices=range(batch), decode=decode)
        for step in steps:
            pass
        return step

    first, median = first_and_median(context, generate)
    peak_GB = peak.gigabytes()  # before `rates`, which needs memory of its own
    prefill = speed.timed(lambda: generate(1), device)
    per_token = (median - prefill) / (count - 1)
    floor = decoder_bytes(model) / rates(context.device)["read_GB_s"] / 1e9
    result = {"s_per_token": per_token, "images_per_s": batch / median, "of_floor": floor / per_token}
    result |= {"first_extra_s": first - median, "prompt_s": prefill, "peak_GB": peak_GB}
    return {**result, "error": weights and state_error(context, size, model, cond)}


def state_error(context: Context, size: str, model, cond) -> float:
    """Of the prompt's hidden states, relative to bf16 weights."""
    return speed.relative_error(model.llama(cond), model_of("ar", size, context.device).llama(cond))


@torch.inference_mode()
def transformers_run(context: Context, size: str, tokens: int) -> dict:
    """transformers' own generation, timed once after a run to warm up."""
    device = torch.device(context.device)
    if context.is_tiny:
        raise NotRun("transformers' generation is compared at real sizes only")
    baseline = baselines.TransformersJanus(size, tokens, device, DTYPE)
    ids = torch.randint(10, baselines.VOCABULARY, (speed.PROMPT_TOKENS,), device=device)
    ids[0], ids[-1] = baselines.BOS, baselines.BEGIN_OF_IMAGE
    speed.timed(lambda: baseline.generate(ids, 1, tokens), device)
    prompt, total = (speed.timed(lambda n=n: baseline.generate(ids, 1, n), device) for n in (1, tokens))
    return {"s_per_token": (total - prompt) / (tokens - 1), "prompt_s": prompt}
