"""Reads weight and text files; whatever is wrong with one is a CheckpointError of one sentence."""

import json
import pickle
import zipfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..errors import CheckpointError, first_line

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def read_text(path: Path) -> str:
    """The text of a file. Raises CheckpointError if it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as text ({error}).") from None


def read_json(path: Path) -> dict:
    """The JSON object in a file, {} if there is no such file. Raises CheckpointError if it holds something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one .safetensors or pickled .bin file, memory-mapped where the format allows.

    Pickles are read with `weights_only=True`. Raises CheckpointError for a missing, truncated or corrupt file.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and is not loaded for safety ({first_line(error)})."
        ) from None
    except Exception as error:  # of many types: damaged pickles fail anywhere in the reader
        raise CheckpointError(f"{path} is damaged or incomplete, download it again ({first_line(error)}).") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} is not a checkpoint: it holds something other than named tensors.")
    return tensors


def read_folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, from one file or from the shards listed in an index."""
    for name in WHOLE[:1] + INDEXES[:1] + WHOLE[1:] + INDEXES[1:]:
        path = folder / name
        if not path.is_file():
            continue
        if name in WHOLE:
            return read_tensors(path)
        return _read_shards(folder, path)
    raise CheckpointError(f"{folder} has no weights: it needs one of {', '.join(WHOLE + INDEXES)}.")


def read_folder_names(folder: Path) -> list[str]:
    """Tensor names of a folder from a header or an index; [] for a single pickle, which would have to be read."""
    for name in INDEXES:
        if (folder / name).is_file():
            return list(_weight_map(folder / name))
    whole = folder / WHOLE[0]
    return read_header(whole)[1] if whole.is_file() else []


def _weight_map(index_path: Path) -> dict[str, str]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index_path} lists no shards: download it again.")
    return weight_map


def _read_shards(folder, index_path):
    weight_map = _weight_map(index_path)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, listed in {index_path.name}: download it again.")
    tensors = {}
    for shard in shards:
        tensors.update(read_tensors(folder / shard))
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise CheckpointError(f"{folder}: the shards lack {absent[0]}, listed in {index_path.name}: download it again.")
    return tensors


def read_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Metadata and tensor names of a .safetensors file, without its data."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete, download it again ({first_line(error)}).") from None
