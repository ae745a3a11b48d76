"""Models with random weights, made on the device, and the rates that bound them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from janus_core.checkpoint import VQ_PREFIX, Checkpoint, build_model, config_of, quantized
from janus_core.janus import Janus
from janus_core.janusflow import JanusFlow
from janus_core.networks.vq import VQModel
from janus_core.operations import choose_operations

from .. import baselines, speed
from ..synthetic import vq_of
from .parts import Context

DTYPE = torch.bfloat16


def size_of(size: str, is_tiny: bool) -> str:
    """The key of baselines.SIZES: "demo" stands in for every size in a rehearsal."""
    return "demo" if is_tiny else size


@cache
def checkpoint_of(family: str, size: str, device: str) -> Checkpoint:
    """A checkpoint in DTYPE with random weights of a trained model's magnitude."""
    place = {"device": device, "dtype": DTYPE}
    if family == "ar":
        params = baselines.janus_params(size, baselines.SMALL_SIGLIP, vq_of(size))
        model = baselines.randomise(Janus(params, **place))
        tokenizer = baselines.randomise(VQModel(params.vq, **place)).state_dict()
        tensors = model.state_dict() | {VQ_PREFIX + name: tensor for name, tensor in tokenizer.items()}
    else:
        model = baselines.randomise(JanusFlow(baselines.flow_params(size, baselines.SMALL_SIGLIP), **place))
        tensors = model.state_dict()
    return Checkpoint(Path("random"), model.family, tensors, config_of(model), "")


@cache
def model_of(family: str, size: str, device: str, weights: str | None = None):
    """A model of the checkpoint, with the decoder's weights in a format of `convert --weights`."""
    checkpoint, place = checkpoint_of(family, size, device), torch.device(device)
    if weights is not None:
        checkpoint = quantized(replace(checkpoint, tensors=dict(checkpoint.tensors)), weights)
    return build_model(checkpoint, choose_operations(place, DTYPE, weights is not None), dtype=DTYPE, device=place)


@cache
def rates(device: str) -> dict[str, float]:
    """This machine's streaming read rate and matmul rate."""
    place = torch.device(device)
    return speed.machine_rates(place, torch.float32 if place.type == "cpu" else DTYPE)


def first_and_median(context: Context, generate) -> tuple[float, float]:
    """Seconds of the first run and the median of those after it; the count of memory for peak_GB begins here."""
    device = torch.device(context.device)
    reset_peak(context.device)
    first = speed.timed(generate, device)
    later = sorted(speed.timed(generate, device) for _ in range(context.sizes["repeats"]))
    return first, later[len(later) // 2]


def decoder_bytes(model) -> int:
    """Bytes of weights that one decode step reads: the decoder's blocks and the image head."""
    modules = [*model.llama.layers, *([model.gen_head] if hasattr(model, "gen_head") else [])]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum(t.numel() * t.itemsize for t in tensors)


def peak_GB(device: str) -> float | None:
    """The peak of memory that was allocated since reset_peak; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None


def reset_peak(device: str):
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
