"""Building the models of a checkpoint."""

import logging

import torch

from ..attention import attention as default_attention
from ..errors import CheckpointError
from ..janus import Janus
from ..janusflow import JanusFlow
from ..networks.vq import VQModel, normalised_codebook
from .params import janus_params, janusflow_params
from .quantize import NOTE, SCALE, quantized_layers
from .read import VQ_PREFIX, Checkpoint

log = logging.getLogger(__name__)

UNUSED = (".attn_pool.", "quantize.codebook_used", "rotary_emb.inv_freq")


def build_model(
    checkpoint: Checkpoint,
    operations=torch.nn,
    attention=default_attention,
    dtype=None,
    device="cpu",
    network=None,
    unused_device=None,
) -> Janus | JanusFlow:
    """The checkpoint's model with its weights, for inference.

    The modules are made on the meta device and take the checkpoint's tensors as they are, so nothing is held twice;
    a tensor is copied only where `dtype` or `device` differ from the file's.

    Args:
        operations: the namespace that layers come from.
        attention: the attention function (see janus_core.attention).
        dtype: dtype of the weights; None keeps the file's.
        network: a subclass of the family's model to build instead.
        unused_device: of the weights that drawing does not read (`unused_in_generation` of the model); `device` when None.

    Raises:
        CheckpointError: the weights do not fit together or the config.
    """
    if checkpoint.family == JanusFlow.family:
        params, base = janusflow_params(checkpoint.tensors, checkpoint.config), JanusFlow
    else:
        params, base = janus_params(checkpoint.tensors, checkpoint.config), Janus
    model = (network or base)(params, operations, attention, device="meta", dtype=dtype)
    tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(VQ_PREFIX)}
    unused_in_generation = () if unused_device is None else base.unused_in_generation
    assign(
        model, base(params, device="meta"), tensors, checkpoint.path, dtype, device, unused_in_generation, unused_device
    )
    if base is Janus:
        model.codebook = normalised_codebook(checkpoint.tensors[VQ_PREFIX + "quantize.embedding.weight"])
    return model


def build_vq(
    checkpoint: Checkpoint, operations=torch.nn, attention=default_attention, dtype=None, device="cpu"
) -> VQModel:
    """The picture tokenizer of a Janus checkpoint, as build_model does it."""
    params = janus_params(checkpoint.tensors, checkpoint.config).vq
    model = VQModel(params, operations, attention, device="meta", dtype=dtype)
    tensors = {k[len(VQ_PREFIX) :]: v for k, v in checkpoint.tensors.items() if k.startswith(VQ_PREFIX)}
    assign(model, VQModel(params, device="meta"), tensors, checkpoint.path, dtype, device)
    return model


def assign(
    model: torch.nn.Module,
    twin: torch.nn.Module,
    tensors,
    path,
    dtype,
    device,
    unused_in_generation=(),
    unused_device=None,
):
    """Gives a meta-device model its weights, frozen, after checking that names and shapes fit.

    A quantised layer keeps the dtype of its weight.

    Args:
        twin: the same model of torch.nn layers, which says what is needed; a host's layers may be without weights
            until they are loaded.
        unused_in_generation: beginnings of the names of weights that go to `unused_device` instead.
    """
    quantized = quantized_layers(tensors)
    modules = dict(twin.named_modules())
    other = [layer for layer in quantized if not isinstance(modules.get(layer), torch.nn.Linear)]
    if other:
        raise CheckpointError(f"{path}: {other[0]} is quantised, which only linear layers may be.")
    wanted = {name: parameter.shape for name, parameter in twin.state_dict().items()}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path} lacks the weight {missing[0]}{more}.")
    for name, shape in wanted.items():
        if shape != tensors[name].shape:
            raise CheckpointError(
                f"{path}: the weights do not fit together: {name} is {list(tensors[name].shape)}, "
                f"the model needs {list(shape)}."
            )
    known = {*wanted, *(f"{layer}.{part}" for layer in quantized for part in (NOTE, SCALE, "input_scale"))}
    extra = [name for name in tensors if name not in known and not any(part in name for part in UNUSED)]
    if extra:
        log.warning("%s: %d tensors are not part of the model and are ignored, %s first.", path, len(extra), extra[0])
    kept = {f"{layer}.weight" for layer in quantized} | (known - wanted.keys())
    state = {}
    for name in known & tensors.keys():
        part = name.rpartition(".")[2]
        place = unused_device if name.startswith(unused_in_generation) else device
        if part == NOTE:
            place = "cpu"  # it is read, not computed with
        state[name] = tensors[name].to(device=place, dtype=None if name in kept else dtype)
        if part == SCALE and state[name].dim() == 1 and len(state[name]) > 1:
            state[name] = state[name][:, None]  # one scale per row, as ComfyUI multiplies it
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()
