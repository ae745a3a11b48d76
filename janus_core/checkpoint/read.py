"""Reads checkpoints in every layout, recognised by contents rather than by name.

The layouts are a folder in the original layout (`model_type: multi_modality`), a folder in the transformers layout
(`model_type: janus`), and one .safetensors file with config and tokenizer in its metadata (`write.save_single_file`).
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import os_reason, parse_json, read_optional_json, read_text, user_path
from ..janus import Janus
from ..janusflow import JanusFlow
from ..schema import shown
from . import transformers_layout
from .config import PREPROCESSOR
from .files import read_folder_names, read_folder_tensors, read_header, read_tensors

log = logging.getLogger(__name__)

VQ_PREFIX = "gen_vision_model."
MODEL_TYPES = ("multi_modality", "janus")
METADATA = ("config", "tokenizer", "tokenizer_config", "processor_config")
SAVED_PREFIX = "model.diffusion_model."  # of weights in a file written by ComfyUI's Model Save
CLIP_SAVED_PREFIX = "diffusion_model."  # of the language model and vision weights in one written by CLIP Save
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of weights that are not quantised
TEXT_PREFIX = "janus."  # of the config and tokenizer in such a file, as tensors of bytes


@dataclass
class Checkpoint:
    """A checkpoint's contents under the original tensor names.

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
        """The dtype of the language model's weights that are not quantised."""
        return self.weight("language_model.model.norm.weight").dtype

    def weight(self, name: str) -> torch.Tensor:
        """A floating-point weight. Raises CheckpointError if there is none."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.dtype not in WEIGHT_DTYPES or not tensor.dim():
            raise CheckpointError(f"{self.path} lacks the weight {name} in floating point: download it again.")
        return tensor


def family_of_names(names) -> str | None:
    """The family that tensor names belong to: "janus", "janusflow" or None."""
    names = {_saved_name(name) for name in names}
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
        CheckpointError: a file is damaged or cannot be opened, or a folder does not say which model it is.
    """
    path = user_path(path)
    try:
        if not path.is_dir():
            return family_of_names(read_header(path)[1])
        config = read_optional_json(path / "config.json")
        if config.get("model_type", "multi_modality") not in MODEL_TYPES:
            return None
        family = family_of_config(config) or family_of_names(read_folder_names(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({os_reason(error)}).") from None
    if family is None:
        raise CheckpointError(f"{path} does not say which model it is: its config.json is missing or incomplete.")
    return family


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a folder in either layout or a single .safetensors file.

    Raises:
        CheckpointError: there is no checkpoint, it is of another model, or a file is missing, truncated or corrupt.
    """
    path = user_path(path)
    try:
        if path.is_dir():
            return _read_folder(path)
        exists = path.exists()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({os_reason(error)}).") from None
    if exists and path.suffix == ".safetensors":
        return _read_single_file(path)
    if exists:
        raise CheckpointError(f"{path} is neither a checkpoint folder nor a .safetensors file.")
    raise CheckpointError(
        f"There is no checkpoint at {path}: `python -m janus_core download --help` lists the official ones."
    )


def _read_folder(folder: Path) -> Checkpoint:
    config = read_optional_json(folder / "config.json")
    if config.get("model_type", "multi_modality") not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder} is not a Janus or JanusFlow checkpoint (its config.json says model_type "
            f"{shown(config.get('model_type'))})."
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        raise CheckpointError(f"{folder} lacks tokenizer.json: download it from the model's repository.")
    tokenizer_config = read_optional_json(folder / "tokenizer_config.json")
    processor_config = read_optional_json(folder / "processor_config.json")
    for name, value in read_optional_json(folder / "preprocessor_config.json").items():
        problem = PREPROCESSOR[name].problem(value) if name in PREPROCESSOR else None
        if problem:
            log.warning("%s: %s %s is ignored: it is always %s.", folder, name, shown(value), problem)
    tensors = read_folder_tensors(folder)
    if transformers_layout.is_converted(tensors):
        template = _chat_template(folder, processor_config, tokenizer_config)
        tensors = transformers_layout.original_tensors(tensors)
        config, processor_config = transformers_layout.original_config(config, template)
    return _checkpoint(folder, tensors, config, read_text(tokenizer), tokenizer_config, processor_config)


def _chat_template(folder: Path, *configs: dict) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return read_text(jinja)
    for config in (read_optional_json(folder / "chat_template.json"), *configs):
        if isinstance(config.get("chat_template"), str):
            return config["chat_template"]
    return ""


def _read_single_file(path: Path) -> Checkpoint:
    metadata, names = read_header(path)
    tensors = None
    if TEXT_PREFIX + "tokenizer" in names:
        tensors, metadata = _read_saved_by_comfyui(path)
    if "tokenizer" not in metadata:
        raise CheckpointError(
            f"{path} has no tokenizer in it: load its folder instead, or convert that to one file with "
            "`python janus_core convert FOLDER OUT.safetensors` in the pack's folder."
        )
    config, tokenizer_config, processor_config = (
        parse_json(metadata.get(key, "{}"), f"The metadata {key!r} of {path}")
        for key in ("config", "tokenizer_config", "processor_config")
    )
    if tensors is None:
        tensors = read_tensors(path)
    return _checkpoint(path, tensors, config, metadata["tokenizer"], tokenizer_config, processor_config)


def _read_saved_by_comfyui(path: Path) -> tuple[dict, dict[str, str]]:
    """Weights under their original names, and the metadata, of a file written by Model Save or CLIP Save."""
    tensors = read_tensors(path)
    texts = {key: tensors[TEXT_PREFIX + key] for key in METADATA if TEXT_PREFIX + key in tensors}
    try:
        metadata = {key: bytes(text.tolist()).decode("utf-8") for key, text in texts.items()}
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} has damaged texts ({TEXT_PREFIX}…): save or convert it again.") from None
    return {_saved_name(name): t for name, t in tensors.items() if _saved_name(name) != name}, metadata


def _saved_name(name: str) -> str:
    """A tensor's original name, from its name in a file that ComfyUI wrote; any other name as it is."""
    return name.removeprefix(SAVED_PREFIX).removeprefix(CLIP_SAVED_PREFIX)


def _checkpoint(path, tensors, config, tokenizer, tokenizer_config, processor_config):
    family = family_of_names(tensors)
    if family is None:
        raise CheckpointError(f"{path} is not a Janus or JanusFlow checkpoint (its weights are of another model).")
    return Checkpoint(path, family, tensors, config, tokenizer, tokenizer_config, processor_config)
