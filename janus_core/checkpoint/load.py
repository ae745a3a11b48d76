"""Checkpoints in every published layout, and the models they build.

A checkpoint is found by looking, not by name: a folder in the original layout (`model_type: multi_modality`), a
folder in the transformers layout (`model_type: janus`), or one .safetensors file made by `save_single_file`, which
carries the config and the tokenizer in its metadata.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from ..attention import attention as default_attention
from ..errors import CheckpointError
from ..janus import Janus
from ..janusflow import JanusFlow
from ..networks.vq import VQModel, normalised_codebook
from . import transformers_layout
from .files import read_folder_names, read_folder_tensors, read_header, read_json, read_tensors, read_text
from .params import janus_params, janusflow_params
from .quantize import NOTE, SCALE, quantized_layers

log = logging.getLogger(__name__)

VQ_PREFIX = "gen_vision_model."
UNUSED = (".attn_pool.", "quantize.codebook_used", "rotary_emb.inv_freq")
MODEL_TYPES = ("multi_modality", "janus")
METADATA = ("config", "tokenizer", "tokenizer_config", "processor_config")
SAVED_PREFIX = "model.diffusion_model."  # of weights in a file that ComfyUI's Model Save wrote
TEXT_PREFIX = "janus."  # of the config and tokenizer in such a file, as bytes


@dataclass
class Checkpoint:
    """A checkpoint's contents, in the published names.

    `tensors` are memory-mapped where the files allow. `tokenizer` is the text of tokenizer.json.
    """

    path: Path
    family: str  # "janus" or "janusflow"
    tensors: dict[str, torch.Tensor]
    config: dict
    tokenizer: str
    tokenizer_config: dict = field(default_factory=dict)
    processor_config: dict = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the language model's weights, as far as they are not quantised."""
        return self.tensors["language_model.model.norm.weight"].dtype


def family_of_names(names) -> str | None:
    """The family that tensor names belong to: "janus", "janusflow" or None."""
    names = {name.removeprefix(SAVED_PREFIX) for name in names}
    if any(n.startswith("vision_gen_enc_model.") for n in names):
        return JanusFlow.family
    if any(n.startswith(("gen_vision_model.", "model.vqmodel.")) for n in names):
        return Janus.family
    return None


def family_of_config(config: dict) -> str | None:
    """The family that a config.json belongs to: "janus", "janusflow" or None."""
    if "vision_gen_enc_config" in config:
        return JanusFlow.family
    if config.get("model_type") == "janus" or "gen_vision_config" in config:
        return Janus.family
    return None


def detect_family(path: str | Path) -> str | None:
    """The family of a checkpoint folder or .safetensors file, from its config or header alone.

    Returns:
        "janus", "janusflow", or None for another model.

    Raises:
        CheckpointError: it cannot be told, because a file is damaged or the folder says nothing.
    """
    path = Path(path)
    if path.is_dir():
        config = read_json(path / "config.json")
        if config.get("model_type", "multi_modality") not in MODEL_TYPES:
            return None
        family = family_of_config(config) or family_of_names(read_folder_names(path))
        if family is None:
            raise CheckpointError(f"{path} does not say which model it is.")
        return family
    return family_of_names(read_header(path)[1])


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a folder in either layout or a single .safetensors file.

    Raises:
        CheckpointError: nothing there, another model, a missing, truncated or corrupt file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file() and path.suffix == ".safetensors":
        return _read_single_file(path)
    if path.is_file():
        raise CheckpointError(f"{path} is neither a checkpoint folder nor a .safetensors file.")
    raise CheckpointError(
        f"There is no checkpoint at {path} (`python -m janus_core download NAME` fetches the official ones)."
    )


def _read_folder(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    if config.get("model_type", "multi_modality") not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder} is not a Janus or JanusFlow checkpoint (its config.json says model_type "
            f"{config.get('model_type')!r})."
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{folder} lacks tokenizer.json.")
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    processor_config = read_json(folder / "processor_config.json")
    tensors = read_folder_tensors(folder)
    if transformers_layout.is_converted(tensors):
        template = _chat_template(folder, processor_config, tokenizer_config)
        tensors = transformers_layout.published_tensors(tensors)
        config, processor_config = transformers_layout.published_config(config, template)
    return _checkpoint(folder, tensors, config, read_text(tokenizer), tokenizer_config, processor_config)


def _chat_template(folder: Path, *configs: dict) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return read_text(jinja)
    for config in (read_json(folder / "chat_template.json"), *configs):
        if isinstance(config.get("chat_template"), str):
            return config["chat_template"]
    return ""


def _read_single_file(path: Path) -> Checkpoint:
    metadata, names = read_header(path)
    tensors = None
    if TEXT_PREFIX + "tokenizer" in names:
        tensors, metadata = _read_saved_by_comfyui(read_tensors(path))
    if "tokenizer" not in metadata:
        raise CheckpointError(
            f"{path} carries no tokenizer: point at its folder, or make one file of that with "
            "'python -m janus_core convert FOLDER OUT.safetensors'."
        )
    try:
        config, tokenizer_config, processor_config = (
            json.loads(metadata.get(key, "{}")) for key in ("config", "tokenizer_config", "processor_config")
        )
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} has damaged metadata ({error}).") from None
    if tensors is None:
        tensors = read_tensors(path)
    return _checkpoint(path, tensors, config, metadata["tokenizer"], tokenizer_config, processor_config)


def _read_saved_by_comfyui(tensors: dict) -> tuple[dict, dict[str, str]]:
    """(weights under their published names, metadata) of what Model Save wrote."""
    texts = {key: tensors[TEXT_PREFIX + key] for key in METADATA if TEXT_PREFIX + key in tensors}
    metadata = {key: bytes(text.tolist()).decode("utf-8") for key, text in texts.items()}
    weights = {name: t for name, t in tensors.items() if name.startswith(SAVED_PREFIX)}
    return {name.removeprefix(SAVED_PREFIX): tensor for name, tensor in weights.items()}, metadata


def text_tensors(metadata: dict[str, str]) -> dict[str, torch.Tensor]:
    """A single file's metadata as uint8 tensors, for hosts that save tensors only."""
    return {TEXT_PREFIX + key: torch.tensor(list(metadata[key].encode("utf-8")), dtype=torch.uint8) for key in METADATA}


def _checkpoint(path, tensors, config, tokenizer, tokenizer_config, processor_config):
    family = family_of_names(tensors)
    if family is None:
        raise CheckpointError(f"{path} is not a Janus or JanusFlow checkpoint (its weights are of another model).")
    return Checkpoint(path, family, tensors, config, tokenizer, tokenizer_config, processor_config)


def build_model(
    checkpoint: Checkpoint,
    operations=torch.nn,
    attention=default_attention,
    dtype=None,
    device="cpu",
    network=None,
    idle_device=None,
) -> Janus | JanusFlow:
    """The checkpoint's model with its weights, for inference.

    The modules are made on the meta device and take the checkpoint's tensors as they are, so nothing is held twice;
    a tensor is copied only where `dtype` or `device` differ from the file's.

    Args:
        operations: the namespace that layers come from.
        attention: the attention function (see janus_core.attention).
        dtype: dtype of the weights; None keeps the file's.
        network: a subclass of the family's model to build instead.
        idle_device: of the weights that drawing does not read (`idle` of the model); `device` when None.

    Raises:
        CheckpointError: the weights do not fit together or the config.
    """
    if checkpoint.family == JanusFlow.family:
        params, base = janusflow_params(checkpoint.tensors, checkpoint.config), JanusFlow
    else:
        params, base = janus_params(checkpoint.tensors, checkpoint.config), Janus
    model = (network or base)(params, operations, attention, device="meta", dtype=dtype)
    tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(VQ_PREFIX)}
    idle = () if idle_device is None else base.idle
    assign(model, base(params, device="meta"), tensors, checkpoint.path, dtype, device, idle, idle_device)
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


def assign(model: torch.nn.Module, twin: torch.nn.Module, tensors, path, dtype, device, idle=(), idle_device=None):
    """Gives a meta-device model its weights, frozen, after checking that names and shapes fit.

    A quantised layer keeps the dtype of its weight.

    Args:
        twin: the same model of torch.nn layers, which says what is needed; a host's layers may be without weights
            until they are loaded.
        idle: beginnings of the names of weights that go to `idle_device` instead.
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
        place = idle_device if name.startswith(idle) else device
        if part == NOTE:
            place = "cpu"  # it is read, not computed with
        state[name] = tensors[name].to(device=place, dtype=None if name in kept else dtype)
        if part == SCALE and state[name].dim() == 1 and len(state[name]) > 1:
            state[name] = state[name][:, None]  # one scale per row, as ComfyUI multiplies it
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """A single file's metadata: keys config, tokenizer, tokenizer_config, processor_config."""
    values = (checkpoint.config, None, checkpoint.tokenizer_config, checkpoint.processor_config)
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in zip(METADATA, values)}
    return {**metadata, "tokenizer": checkpoint.tokenizer, "format": "pt"}


def save_single_file(checkpoint: Checkpoint, path: str | Path):
    """Writes weights (published names), config and tokenizer into one .safetensors file.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} should end in .safetensors.")
    tensors, seen = {}, {}
    for name, tensor in checkpoint.tensors.items():
        tensor = tensor.contiguous()
        # Tied weights share memory, which the format refuses.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen[tensor.data_ptr()] = name
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, partial, metadata=metadata_of(checkpoint))
        partial.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        if partial.exists():
            partial.unlink()
        raise CheckpointError(f"{path} could not be written ({error}).") from None
