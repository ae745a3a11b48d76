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
    """Seconds of the first run and the median of those after it."""
    device = torch.device(context.device)
    first = speed.timed(generate, device)
    later = sorted(speed.timed(generate, device) for _ in range(context.sizes["repeats"]))
    return first, later[len(later) // 2]


def decoder_bytes(model) -> int:
    """Bytes of weights that one decode step reads: the decoder's blocks and the image head."""
    return sum(map(bytes_of, [*model.llama.layers, *([model.gen_head] if hasattr(model, "gen_head") else [])]))


def bytes_of(module) -> int:
    """Of a module's parameters and buffers."""
    return sum(t.numel() * t.itemsize for t in (*module.parameters(), *module.buffers()))


class PeakMemory:
    """A model's bytes and the most that was allocated on top of them since the object was made."""

    def __init__(self, model, device: torch.device):
        self.model_bytes, self.device = bytes_of(model), device
        self.before = speed.start_peak(device)

    def gigabytes(self) -> float | None:
        """None on a CPU."""
        if self.before is None:
            return None
        return (self.model_bytes + torch.cuda.max_memory_allocated(self.device) - self.before) / 1e9
