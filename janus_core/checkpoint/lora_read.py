"""Reads LoRAs of common trainers: files as ComfyUI reads them, kohya's names, and peft's files and folders."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import os_reason, read_json, read_optional_json, user_path
from ..schema import FLAG, Number, OneOf, Section, Whole, check_fields, shown
from .files import read_tensors
from .read import WEIGHT_DTYPES
from .transformers_layout import original_name

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIXES = ("diffusion_model.", "base_model.model.", "transformer.", "")  # of names, by whatever wrote the file
PARENTS = ("", "language_model.", "language_model.model.")  # that a model trained alone lacks in its names
KOHYA_PREFIX = "lora_unet_"

ALPHA = Number(-1e6, 1e6)
PEFT = {  # the fields of adapter_config.json that decide what the weights mean
    "peft_type": OneOf(("LORA",)),
    "r": Whole(1, 2**20),
    "lora_alpha": ALPHA,
    "alpha_pattern": Section(),
    "use_rslora": FLAG,
    "use_dora": OneOf((False,)),
    "lora_bias": OneOf((False,)),
    "bias": OneOf(("none",)),
    "fan_in_fan_out": OneOf((False,)),
    "init_lora_weights": OneOf((True, False, "gaussian", "eva", "orthogonal")),  # others change the base weights
}

DOWN, UP = ("A", "down"), ("B", "up")
_MATRIX = re.compile(
    r"\.lora_(A|B|down|up)(?:\.default)?(?:\.weight)?$"  # peft and kohya
    r"|[._]lora\.(down|up)\.weight$|\.lora_linear_layer\.(down|up)\.weight$"  # diffusers
)
_VISION_PART = re.compile(r"^(vision_model\..*\.attn)\.([qkv])_proj\.weight$")


@dataclass(frozen=True)
class LoraLayer:
    """The change of one layer's weight: scale * up @ down.

    `name` is the layer's, without ".weight". `down` is [rank, in] and `up` [out, rank]; of a convolution they may have
    more axes. `third` is None, or which third of the weight's rows is changed: q, k or v, which transformers separates.
    """

    name: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float
    third: int | None = None


def read_lora(path: str | Path, weights: Mapping[str, torch.Tensor]) -> list[LoraLayer]:
    """Reads a LoRA for a model.

    Args:
        path: a file, or a folder of peft. A file of peft's name is read with the adapter_config.json beside it.
        weights: the model's tensors by their original names.

    Raises:
        CheckpointError: the LoRA cannot be read, is of another kind, or does not fit the weights.
    """
    path, config = _peft_folder(user_path(path))
    tensors = read_tensors(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: it is not a LoRA.")
    stems, unknown = _by_layer(tensors)
    names = _LayerNames(weights)
    layers, sources = {}, {}
    for stem, parts in stems.items():
        found = names.find(stem)
        if found is None or not (parts.keys() - {"alpha"}):
            unknown += [key for key, _ in parts.values()]
            continue
        if found in layers:
            raise CheckpointError(f"{path} has two LoRAs for the layer {found[0]}: {sources[found]} and {stem}.")
        layers[found], sources[found] = _layer(path, stem, parts, config, found, weights), stem
    if unknown:
        named = ", ".join(key[:100] for key in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit the model, which has no place for {named}{more}: it is a LoRA of another model, or "
            "not a plain LoRA."
        )
    return list(layers.values())


def _peft_folder(path: Path) -> tuple[Path, dict]:
    """The file of weights, and peft's config if there is one."""
    folder = path
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({os_reason(error)}).") from None
    if is_folder:
        path = next((path / name for name in PEFT_WEIGHTS if (path / name).exists()), None)
        if path is None:
            raise CheckpointError(f"{folder} is not a LoRA's folder: it has no {' or '.join(PEFT_WEIGHTS)}.")
        config = read_json(folder / PEFT_CONFIG)
    else:
        config = read_optional_json(path.parent / PEFT_CONFIG) if path.name in PEFT_WEIGHTS else {}
    check_fields(config, PEFT, str(path.parent / PEFT_CONFIG), CheckpointError)
    return path, config


def _by_layer(tensors: dict) -> tuple[dict[str, dict], list[str]]:
    """({layer: {"down", "up" or "alpha": (key, tensor)}}, the keys of other tensors)."""
    stems, unknown = {}, []
    for key, tensor in tensors.items():
        matrix = _MATRIX.search(key)
        if matrix:
            kind = "down" if matrix[matrix.lastindex] in DOWN else "up"
            stems.setdefault(key[: matrix.start()], {})[kind] = key, tensor
        elif key.endswith(".alpha"):
            stems.setdefault(key.removesuffix(".alpha"), {})["alpha"] = key, tensor
        else:
            unknown.append(key)
    return stems, unknown


class _LayerNames:
    """Finds a model's layer by the name that a LoRA has for it."""

    def __init__(self, weights: Collection[str]):
        self.layers = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
        self.kohya = {KOHYA_PREFIX + layer.replace(".", "_"): layer for layer in self.layers}

    def find(self, stem: str) -> tuple[str, int | None] | None:
        """(layer, third of its rows or None)."""
        if stem in self.kohya:
            return self.kohya[stem], None
        for prefix in PREFIXES:
            if stem.startswith(prefix):
                rest = stem.removeprefix(prefix)
                for layer in (*(parent + rest for parent in PARENTS), *_from_transformers(rest)):
                    third = None
                    if (part := _VISION_PART.match(layer + ".weight")) and layer not in self.layers:
                        layer, third = f"{part[1]}.qkv", "qkv".index(part[2])
                    if layer in self.layers:
                        return layer, third
        return None


def _from_transformers(name: str) -> list[str]:
    """The original names of a layer of transformers' JanusForConditionalGeneration, or of the JanusModel in it."""
    return [original_name(f"{prefix}{name}.weight").removesuffix(".weight") for prefix in ("", "model.")]


def _layer(path, stem, parts, config, found, weights) -> LoraLayer:
    """The LoRA of one layer. Raises CheckpointError if it is incomplete or of the wrong shape."""
    name, third = found
    missing = {"down", "up"} - parts.keys()
    if missing:
        raise CheckpointError(f"{path} lacks the {missing.pop()} matrix of {stem}: save or download it again.")
    (down_key, down), (up_key, up) = parts["down"], parts["up"]
    for key, tensor in (parts["down"], parts["up"]):
        if tensor.dtype not in WEIGHT_DTYPES or tensor.dim() < 2 or not tensor.numel():
            raise CheckpointError(f"{path}: {key} is {list(tensor.shape)} of {tensor.dtype}, which no LoRA has.")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {key} has numbers that are not finite: train or download it again.")
    shape = weights[f"{name}.weight"].shape
    rows = shape[0] if third is None else shape[0] // 3
    columns = shape[1:].numel()
    if len(shape) < 2 or len(up) != rows or down[0].numel() != columns or up[0].numel() != len(down):
        raise CheckpointError(
            f"{path} does not fit the model: {up_key} {list(up.shape)} times {down_key} {list(down.shape)} is not a "
            f"change of {[rows, columns]}."
        )
    return LoraLayer(name, down, up, _scale(path, stem, parts, config, len(down)), third)


def _scale(path, stem: str, parts, config: dict, rank: int) -> float:
    """What the product of the matrices is multiplied by: alpha / rank, or 1 if there is no alpha."""
    if "alpha" in parts:
        key, tensor = parts["alpha"]
        if tensor.numel() != 1 or ALPHA.problem(alpha := float(tensor)):
            raise CheckpointError(f"{path}: {key} is not a number between {ALPHA.low:g} and {ALPHA.high:g}.")
        return alpha / rank
    if not config:
        return 1.0
    alpha = config.get("lora_alpha")
    if alpha is None:
        raise CheckpointError(f"{path.parent / PEFT_CONFIG} lacks lora_alpha.")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if not re.fullmatch(r"[\w.]+", pattern) or ALPHA.problem(value):
            raise CheckpointError(
                f"{path.parent / PEFT_CONFIG}: alpha_pattern has {shown(pattern)}: {shown(value)}, only names of "
                "layers and numbers are supported."
            )
        if f".{stem}".endswith(f".{pattern}"):
            alpha = value
            break
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
