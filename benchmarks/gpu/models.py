"""Models with random weights, made on the device, and the rates that bound them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from janus_core.checkpoint import VQ_PREFIX, Checkpoint, build_model, config_of, quantized
from janus_core.janus import Janus, JanusParams
from janus_core.janusflow import JanusFlow
from janus_core.networks.vq import VQModel
from janus_core.operations import choose_operations

from .. import baselines, speed
from ..synthetic import SMALL_VQ, VQ

DTYPE = torch.bfloat16


def size_of(size: str, is_tiny: bool) -> str:
    """The key of baselines.SIZES: "demo" stands in for every size in a rehearsal."""
    return "demo" if is_tiny else size


@cache
def checkpoint_of(family: str, size: str, device: str) -> Checkpoint:
    """A checkpoint in DTYPE with random weights of a trained model's magnitude."""
    place = {"device": device, "dtype": DTYPE}
    if family == "ar":
        hidden, vq = baselines.SIZES[size]["hidden_size"], SMALL_VQ if size == "demo" else VQ
        params = JanusParams(baselines.llama_params(size), baselines.SMALL_SIGLIP, vq, gen_head_width=hidden)
        model = baselines.randomise(Janus(params, **place))
        tokenizer = baselines.randomise(VQModel(vq, **place)).state_dict()
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
