"""Builds models from checkpoints."""

import logging
from collections.abc import Callable

import torch

from ..attention import attention as default_attention
from ..errors import CheckpointError
from ..janus import Janus, JanusParams
from ..janusflow import JanusFlow, JanusFlowParams
from ..networks.vq import VQModel, normalised_codebook
from ..prompt import PromptEncoder
from ..schema import check_fields
from .config import PROCESSOR
from .params import janus_params, janusflow_params
from .quantize import COMFY_QUANT, QUANTIZED_PARTS, WEIGHT_SCALE, quantized_layers, weight_shape
from .read import VQ_PREFIX, WEIGHT_DTYPES, Checkpoint

log = logging.getLogger(__name__)

UNUSED = (".attn_pool.", "quantize.codebook_used", "rotary_emb.inv_freq")  # parts of checkpoints that no model has


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

    The model is built on the meta device and its parameters become the checkpoint's tensors, so nothing is in memory
    twice; a tensor is copied only where `dtype` or `device` differ from the file's.

    Args:
        operations: the namespace that layers come from (see janus_core.operations).
        attention: the attention function (see janus_core.attention).
        dtype: of the weights that are not quantised; None for that of the file.
        network: a subclass of the family's model to build instead.
        unused_device: of the weights that generation does not use (the model's `unused_in_generation`); None for
            `device`.

    Raises:
        CheckpointError: the weights do not fit together, or not the config.
    """
    base = _model_class(checkpoint)
    params = params_of(checkpoint)
    tensors = _model_tensors(checkpoint, params)
    model = (network or base)(params, operations, attention, device="meta", dtype=dtype)

    def device_of(name):
        unused = unused_device is not None and name.startswith(base.unused_in_generation)
        return unused_device if unused else device

    _load_weights(model, tensors, dtype, device_of)
    if base is Janus:
        model.codebook = normalised_codebook(checkpoint.tensors[VQ_PREFIX + "quantize.embedding.weight"])
    return model


def build_vq(
    checkpoint: Checkpoint, operations=torch.nn, attention=default_attention, dtype=None, device="cpu"
) -> VQModel:
    """The image tokenizer of a Janus checkpoint; arguments and errors are those of build_model."""
    params = params_of(checkpoint)
    tensors = _vq_tensors(checkpoint, params)
    model = VQModel(params.vq, operations, attention, device="meta", dtype=dtype)
    _load_weights(model, tensors, dtype, lambda name: device)
    return model


def check_checkpoint(checkpoint: Checkpoint):
    """Checks that everything can be built from a checkpoint: the model, its VQ tokenizer, and the prompt encoder.

    Raises:
        CheckpointError: something cannot.
    """
    params = params_of(checkpoint)
    _model_tensors(checkpoint, params)
    if checkpoint.family == Janus.family:
        _vq_tensors(checkpoint, params)
    PromptEncoder.of(checkpoint).generation_ids("a cat")


def _model_class(checkpoint: Checkpoint):
    return JanusFlow if checkpoint.family == JanusFlow.family else Janus


def _model_tensors(checkpoint: Checkpoint, params) -> dict:
    tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(VQ_PREFIX)}
    return _checked(tensors, _model_class(checkpoint)(params, device="meta"), checkpoint.path)


def _vq_tensors(checkpoint: Checkpoint, params: JanusParams) -> dict:
    tensors = {k[len(VQ_PREFIX) :]: v for k, v in checkpoint.tensors.items() if k.startswith(VQ_PREFIX)}
    return _checked(tensors, VQModel(params.vq, device="meta"), checkpoint.path)


def params_of(checkpoint: Checkpoint) -> JanusParams | JanusFlowParams:
    """The dimensions of a checkpoint's model. Raises CheckpointError if its configs and weights do not agree."""
    read = janusflow_params if checkpoint.family == JanusFlow.family else janus_params
    try:
        params = read(checkpoint.tensors, checkpoint.config)
        processor = checkpoint.processor_config
        check_fields(processor, PROCESSOR, "processor_config.json", CheckpointError)
        if processor.get("num_image_tokens") not in (None, params.siglip.tokens):
            raise CheckpointError(
                f"the weights do not fit processor_config.json: num_image_tokens is {processor['num_image_tokens']}, "
                f"but the vision tower has {params.siglip.tokens}."
            )
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return params


def _checked(tensors: dict, reference: torch.nn.Module, path) -> dict:
    """The tensors that a model takes, after checking their names and shapes.

    Args:
        reference: the same model of torch.nn layers; a host's own layers may have no weights until they are loaded.
    """
    quantized = quantized_layers(tensors)
    modules = dict(reference.named_modules())
    other = [layer for layer in quantized if not isinstance(modules.get(layer), torch.nn.Linear)]
    if other:
        raise CheckpointError(f"{path}: {other[0]} is quantised, but only linear layers can be.")
    shapes = {name: parameter.shape for name, parameter in reference.state_dict().items()}
    missing = [name for name in shapes if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path} lacks the weight {missing[0]}{more}: download it again.")
    packed = {f"{layer}.weight": weight_shape(layer, tensors) for layer in quantized}
    for name, shape in shapes.items():
        found = packed.get(name, tensors[name].shape)
        if shape != found:
            raise CheckpointError(
                f"{path}: the weights do not fit together: {name} is {list(found)}, the model needs {list(shape)}."
            )
    not_weights = [name for name in shapes if not _is_weight(tensors[name], name, quantized)]
    if not_weights:
        raise CheckpointError(
            f"{path}: {not_weights[0]} is {tensors[not_weights[0]].dtype}: weights must be floating-point numbers of "
            f"16 or more bits, or quantised with a scale and {COMFY_QUANT}."
        )
    known = {*shapes, *(f"{layer}.{part}" for layer in quantized for part in QUANTIZED_PARTS)}
    extra = [name for name in tensors if name not in known and not any(part in name for part in UNUSED)]
    unsupported = [name for name in extra if name.endswith(".bias") and name[: -len("bias")] + "weight" in shapes]
    if unsupported:
        raise CheckpointError(f"{path}: {unsupported[0]} is not part of the model, which would ignore it.")
    if extra:
        log.warning(
            "%s: %d tensors are not part of the model and are ignored, %s first.", path, len(extra), extra[0][:100]
        )
    return {name: tensor for name, tensor in tensors.items() if name in known}


def _is_weight(tensor: torch.Tensor, name: str, quantized: set[str]) -> bool:
    layer, _, part = name.rpartition(".")
    return tensor.dtype in WEIGHT_DTYPES or (part == "weight" and layer in quantized)


def _load_weights(model: torch.nn.Module, tensors: dict, dtype: torch.dtype | None, device_of: Callable):
    """Makes the tensors the weights of a meta-device model, frozen.

    Quantised weights, and those of layers that cast them on use (`casts_weight`), keep their dtype.

    Args:
        device_of: a function from a tensor's name to its device.
    """
    uncast = {f"{layer}.{part}" for layer in quantized_layers(tensors) for part in ("weight", *QUANTIZED_PARTS)}
    for layer, module in model.named_modules():
        if getattr(module, "casts_weight", False):
            uncast |= {f"{layer}.weight", f"{layer}.bias"}
    state = {}
    for name, tensor in tensors.items():
        device = "cpu" if name.endswith(COMFY_QUANT) else device_of(name)  # COMFY_QUANT is read while loading
        tensor = tensor.to(device=device, dtype=None if name in uncast else dtype)
        if name.endswith(WEIGHT_SCALE) and tensor.dim() == 1 and len(tensor) > 1:
            tensor = tensor[:, None]  # one scale per output channel, in the shape that ComfyUI multiplies by
        state[name] = tensor
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()
