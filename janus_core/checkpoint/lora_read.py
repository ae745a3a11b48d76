"""Reads LoRAs of common trainers: files as ComfyUI reads and writes them, kohya's, and peft's files and folders."""

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import file_hash, os_reason, read_json, read_optional_json, user_path
from ..schema import FLAG, Number, OneOf, Section, Whole, check_fields, shown
from .files import read_tensors
from .read import WEIGHT_DTYPES
from .transformers_layout import joined_attention, original_name

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
COMFYUI_PREFIX = "diffusion_model."  # of the network of a MODEL
PEFT_PREFIX = "base_model.model."
PREFIXES = (COMFYUI_PREFIX, PEFT_PREFIX, "transformer.", "")  # of names, by whatever wrote the file
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

DOWN = ("A", "down")
DIFFERENCES = {"diff": "weight", "diff_b": "bias"}  # of norms and biases, by ComfyUI's Train LoRA
PLAIN = ("alpha", *DIFFERENCES)
_MATRIX = re.compile(
    r"\.lora_(A|B|down|up)(?:\.default)?(?:\.weight)?$"  # peft and kohya
    r"|[._]lora\.(down|up)\.weight$|\.lora_linear_layer\.(down|up)\.weight$"  # diffusers
)


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to a weight: scale * up @ down, or scale * a difference.

    `name` is the weight's. `factors` are up [out, rank] and down [rank, in], which may have more axes if the weight is
    a convolution's; or the difference alone, of the weight's shape. `third` is None, or which third of the weight's
    rows is changed: q, k or v, which transformers separates.
    """

    name: str
    factors: tuple[torch.Tensor, ...]
    scale: float = 1.0
    third: int | None = None

    def scaled(self, strength: float) -> torch.Tensor:
        """The change in float32, flat."""
        factors = [factor.float() for factor in self.factors]
        product = factors[0] if len(factors) == 1 else torch.mm(*(factor.flatten(1) for factor in factors))
        return (strength * self.scale) * product.flatten()


def read_lora(path: str | Path, weights: Mapping[str, torch.Tensor]) -> list[Change]:
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
    changes, sources = {}, {}
    for stem, parts in stems.items():
        layer, third = names.find(stem)
        if layer is None or parts.keys() == {"alpha"} or ("diff_b" in parts and f"{layer}.bias" not in weights):
            unknown += [key for key, _ in parts.values()]
            continue
        for change in _changes(path, stem, parts, config, layer, third, weights):
            place = change.name, third
            if place in changes:
                raise CheckpointError(
                    f"{path} changes {change.name} twice, by {sources[place][:100]} and {stem[:100]}."
                )
            changes[place], sources[place] = change, stem
    if unknown:
        named = ", ".join(key[:100] for key in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit the model, which has no place for {named}{more}: it is a LoRA of another model, or "
            "not a plain LoRA."
        )
    return list(changes.values())


def lora_hash(path: str | Path) -> str:
    """The SHA-256 of a LoRA's file; if it has peft's config, that of both files' SHA-256. Raises CheckpointError."""
    path, config = _peft_folder(user_path(path))
    tensors = file_hash(path)
    if not config:
        return tensors
    return hashlib.sha256(f"{tensors} {file_hash(path.parent / PEFT_CONFIG)}".encode()).hexdigest()


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
    """({layer: {kind: (key, tensor)}}, the keys of other tensors); the kinds are down, up and those of PLAIN."""
    stems, unknown = {}, []
    for key, tensor in tensors.items():
        stem, _, kind = key.rpartition(".")
        matrix = _MATRIX.search(key)
        if matrix:
            kind = "down" if matrix[matrix.lastindex] in DOWN else "up"
            stems.setdefault(key[: matrix.start()], {})[kind] = key, tensor
        elif stem and kind in PLAIN:
            stems.setdefault(stem, {})[kind] = key, tensor
        else:
            unknown.append(key)
    return stems, unknown


class _LayerNames:
    """Finds a model's layer by the name that a LoRA has for it."""

    def __init__(self, weights: Collection[str]):
        self.layers = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
        self.kohya = {KOHYA_PREFIX + layer.replace(".", "_"): layer for layer in self.layers}

    def find(self, stem: str) -> tuple[str | None, int | None]:
        """(layer, third of its rows or None), (None, None) if there is no such layer."""
        if stem in self.kohya:
            return self.kohya[stem], None
        for prefix in PREFIXES:
            if stem.startswith(prefix):
                rest = stem.removeprefix(prefix)
                for layer in (*(parent + rest for parent in PARENTS), *_from_transformers(rest)):
                    if layer in self.layers:
                        return layer, None
                    joined, part = joined_attention(f"{layer}.weight")
                    if part and joined.removesuffix(".weight") in self.layers:
                        return joined.removesuffix(".weight"), "qkv".index(part)
        return None, None


def _from_transformers(name: str) -> list[str]:
    """The original names of a layer of transformers' JanusForConditionalGeneration, or of the JanusModel in it."""
    return [original_name(f"{prefix}{name}.weight").removesuffix(".weight") for prefix in ("", "model.")]


def _changes(path, stem, parts, config, layer, third, weights) -> list[Change]:
    """The changes of one layer. Raises CheckpointError if one is incomplete or of the wrong shape."""
    for key, tensor in (pair for kind, pair in parts.items() if kind != "alpha"):
        if tensor.dtype not in WEIGHT_DTYPES or not tensor.isfinite().all():
            raise CheckpointError(
                f"{path}: {key[:100]} is not finite, or has fewer than 16 bits: save it again in fp16, bf16 or fp32."
            )
    pair = [parts[kind] for kind in ("up", "down") if kind in parts]
    if len(pair) == 1:
        raise CheckpointError(f"{path} has {pair[0][0][:100]} without its counterpart: save or download it again.")
    factors = {f"{layer}.{part}": (parts[kind][1],) for kind, part in DIFFERENCES.items() if kind in parts}
    if pair:
        if "diff" in parts:
            raise CheckpointError(f"{path} has two changes of {stem[:100]}: save or download it again.")
        factors[f"{layer}.weight"] = tuple(tensor for _, tensor in pair)
    for name, tensors in factors.items():
        shape = _shape(weights[name], third)
        if not _fits(tensors, shape):
            shapes = " and ".join(str(list(tensor.shape)) for tensor in tensors)
            raise CheckpointError(f"{path} does not fit the model: {stem[:100]} has {shapes}, no change of {shape}.")
    scale = _scale(path, stem, parts, config)
    return [Change(name, tensors, scale if len(tensors) == 2 else 1.0, third) for name, tensors in factors.items()]


def _shape(weight: torch.Tensor, third: int | None) -> list[int] | None:
    """The shape of a weight, or of a third of its rows; None if it has no thirds."""
    if third is None:
        return list(weight.shape)
    return [len(weight) // 3, *weight.shape[1:]] if weight.dim() and len(weight) % 3 == 0 else None


def _fits(factors, shape: list[int] | None) -> bool:
    """Whether factors make a change of a weight of this shape."""
    if shape is None or len(factors) == 1:
        return list(factors[0].shape) == shape
    up, down = factors
    if min(up.dim(), down.dim(), len(shape)) < 2 or not down.numel():
        return False
    return len(up) == shape[0] and down[0].numel() == math.prod(shape[1:]) and up[0].numel() == len(down)


def _scale(path, stem: str, parts, config: dict) -> float:
    """What the product of the matrices is multiplied by: alpha / rank, or 1 if there is no alpha."""
    rank = len(parts["down"][1]) if "down" in parts else 1
    if "alpha" in parts:
        key, tensor = parts["alpha"]
        if tensor.numel() != 1 or tensor.is_complex() or ALPHA.problem(alpha := float(tensor)):
            raise CheckpointError(f"{path}: {key[:100]} is not a number between {ALPHA.low:g} and {ALPHA.high:g}.")
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
