"""Reads weight files; whatever is wrong with one is a CheckpointError of one sentence."""

import logging
import os
import pickle
import re
import tempfile
import zipfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..errors import CheckpointError, JanusError, is_out_of_memory
from ..files import os_reason, read_json, regular_file

log = logging.getLogger(__name__)

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PICKLE_BYTES = 4 * 2**20  # of the pickle in a .bin, without its tensors; Janus-Pro-7B's has 0.1 MB
PICKLE_READS = 2**20  # of an old .bin, whose pickle and tensors are not separate


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one .safetensors or pickled .bin file, memory-mapped where the format allows.

    Raises CheckpointError for a missing, truncated or corrupt file, and for one that holds more than named tensors.
    """
    path = regular_file(Path(path))
    if path.suffix != ".safetensors":
        tensors = read_pickle(path)
        if not isinstance(tensors, dict) or not all(_is_plain(name, t) for name, t in tensors.items()):
            raise CheckpointError(f"{path} is not a checkpoint: it holds something other than named, dense tensors.")
        return tensors
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # also KeyError for a dtype that this version of torch lacks
        raise _unreadable(path, error) from None


def _is_plain(name, tensor) -> bool:
    """Whether this is a name and a tensor in memory with a value of its own for each index."""
    if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize


def read_pickle(
    path: Path, error: type[JanusError] = CheckpointError, limit: int = PICKLE_BYTES, remedy: str = "download it again"
):
    """What a file of torch.save holds, read with `weights_only=True`: nothing in it is executed.

    Args:
        limit: bytes that it may have beside its tensors.
        remedy: what to do about a damaged file.

    Raises:
        `error`: it cannot be read, or is not loaded for safety.
    """
    path = regular_file(Path(path), error)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path, error, limit)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with _BoundedReader(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except JanusError:
        raise
    except Exception as reason:  # of many types: damaged pickles fail anywhere in the reader
        raise _unreadable(path, reason, error, remedy) from None


def _check_zip(path: Path, error: type[JanusError], limit: int):
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise error(f"{path} is compressed, which a file of torch.save never is: download it again.")
    if any(member.file_size > limit for member in members if member.filename.endswith(".pkl")):
        raise error(f"{path} is not loaded for safety: its pickle has over {limit >> 20} MB beside the tensors.")


class _BoundedReader:
    """A file for torch's reader of old pickles, which reads a pickle in small pieces: limits their number."""

    def __init__(self, path: Path):
        self.file, self.reads = open(path, "rb"), 0
        self.seek, self.tell = self.file.seek, self.file.tell

    def read(self, *args):
        self._count()
        return self.file.read(*args)

    def readline(self, *args):
        self._count()
        return self.file.readline(*args)

    def readinto(self, buffer):
        return self.file.readinto(buffer)

    def _count(self):
        self.reads += 1
        if self.reads > PICKLE_READS:
            raise ValueError("its pickle is too long")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def _unreadable(
    path: Path, reason: Exception, error: type[JanusError] = CheckpointError, remedy: str = "download it again"
) -> JanusError:
    """The error for a weight file that another library could not read; never quotes torch's advice on pickles."""
    if is_out_of_memory(reason):
        return error(f"{path} does not fit in memory: close other programs, or raise the limit of this process.")
    start = _first_bytes(path)
    if start.startswith(b"version https://git-lfs"):
        return error(f"{path} is a pointer of git-lfs, not the file itself: run `git lfs pull`, or download it.")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return error(f"{path} is a web page, not the file itself: {remedy}.")
    if isinstance(reason, pickle.UnpicklingError) and "weights" in str(reason).lower():
        return error(
            f"{path} was not loaded, for safety: it is damaged, or holds more than weights; {remedy}, or use a "
            ".safetensors file."
        )
    internal = isinstance(reason, (AttributeError, TypeError, LookupError))  # of the reader, and of no use to a user
    return error(f"{path} is damaged or incomplete, {remedy}{'' if internal else f' ({os_reason(reason)})'}.")


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return b""


def read_folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, from one file or from the shards listed in an index."""
    for name in WHOLE[:1] + INDEXES[:1] + WHOLE[1:] + INDEXES[1:]:
        path = folder / name
        if path.exists():
            return read_tensors(path) if name in WHOLE else _read_shards(folder, path)
    raise CheckpointError(f"{folder} has no weights: it needs one of {', '.join(WHOLE + INDEXES)}.")


def read_folder_names(folder: Path) -> list[str]:
    """Tensor names of a folder from a header or an index; [] for a single pickle, which would have to be read."""
    for name in INDEXES:
        if (folder / name).exists():
            return list(_weight_map(folder / name))
    whole = folder / WHOLE[0]
    return read_header(whole)[1] if whole.exists() else []


def _weight_map(index_path: Path) -> dict[str, str]:
    """The shard of each tensor. Raises CheckpointError unless all are files beside the index, of its kind."""
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} lists no shards: download it again.")
    suffix = index_path.name.removesuffix(".index.json").rpartition(".")[2]
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(rf"[\w.-]+\.{suffix}", shard, re.ASCII):
            raise CheckpointError(f"{index_path} lists {shard!r}, which is not a .{suffix} file beside it.")
    return weight_map


def _read_shards(folder: Path, index_path: Path) -> dict[str, torch.Tensor]:
    """Each tensor from the shard that the index names for it."""
    weight_map = _weight_map(index_path)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, listed in {index_path.name}: download it again.")
    tensors, unlisted = {}, []
    for shard in shards:
        for name, tensor in read_tensors(folder / shard).items():
            if weight_map.get(name) == shard:
                tensors[name] = tensor
            elif name not in weight_map:
                unlisted.append(name)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise CheckpointError(f"{folder}: the shards lack {absent[0]}, listed in {index_path.name}: download it again.")
    if unlisted:
        log.warning(
            "%s does not list %d tensors, which are ignored, %s first.", index_path, len(unlisted), unlisted[0][:100]
        )
    return tensors


def memory_mapped(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A tensor to be filled, in a nameless temporary file: the system can reclaim its memory, as that of a checkpoint.

    The file is in $TMPDIR, else in /var/tmp, which is on a disk where /tmp may be memory. Where there is no space for
    it, or where files cannot be mapped so (macOS, Windows), the tensor is in memory.
    """
    try:
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp") as file:
            os.posix_fallocate(file.fileno(), 0, shape.numel() * dtype.itemsize)  # a full disk would end the process
            return torch.from_file(f"/dev/fd/{file.fileno()}", True, shape.numel(), dtype=dtype).view(shape)
    except (OSError, RuntimeError, AttributeError):
        return torch.empty(shape, dtype=dtype)


def read_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Metadata and tensor names of a .safetensors file, without its data. Raises CheckpointError."""
    path = regular_file(Path(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, list(file.keys())
    except Exception as error:  # safetensors' own, OSError, and torch's when memory cannot be mapped
        raise _unreadable(path, error) from None
