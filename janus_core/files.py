"""Writing every file, and reading paths, text and JSON from outside."""

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import safetensors

from .errors import CheckpointError, JanusError, OutputError, first_line

TEXT_BYTES = 64 * 2**20  # of a text file; tokenizer.json of the official checkpoints has 5 MB
JSON_DEPTH = 32
PATH_BYTES = 4095  # Linux's limit


def user_path(path: str | Path, error: type[JanusError] = CheckpointError) -> Path:
    """A path that a user typed, with ~ expanded. Raises `error` for one that no file can have."""
    try:
        expanded = Path(path).expanduser()
        if len(os.fsencode(expanded)) > PATH_BYTES:
            raise ValueError("it is too long")
        if "\0" in str(expanded):
            raise ValueError("it contains a null character")
        return expanded
    except (TypeError, ValueError, RuntimeError) as reason:
        raise error(f"{str(path)[:80]!r} is not a usable path ({first_line(reason)}): give another one.") from None


def regular_file(path: Path, error: type[JanusError] = CheckpointError) -> Path:
    """The path itself. Raises `error` unless it is a file that can be opened, not a folder, pipe or device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise error(f"There is no file {path}.") from None
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be opened ({os_reason(reason)}).") from None
    if not stat.S_ISREG(mode):
        raise error(f"{path} is not a regular file: give the name of a file.")
    return path


def os_reason(error: BaseException) -> str:
    """What the operating system says, without the error's number and path."""
    text = getattr(error, "strerror", None) or first_line(error)
    return re.sub(r"^Error while \w+: (I/O error: )?| \(os error \d+\)", "", text)  # of safetensors


def read_text(path: Path, error: type[JanusError] = CheckpointError) -> str:
    """The text of a file of at most TEXT_BYTES, without a byte order mark.

    Raises `error` if it is not UTF-8 or cannot be read.
    """
    path = regular_file(path, error)
    try:
        if path.stat().st_size > TEXT_BYTES:
            raise error(f"{path} is over {TEXT_BYTES >> 20} MB, too large for a text file.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{path} is not text in UTF-8: save it in that encoding, or download it again.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read ({os_reason(reason)}).") from None


def file_hash(path: Path, error: type[JanusError] = CheckpointError) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises `error` if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(regular_file(path, error), "rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as reason:
        raise error(f"{path} cannot be read ({os_reason(reason)}).") from None
    return digest.hexdigest()


def parse_json(text: str, name, error: type[JanusError] = CheckpointError) -> dict:
    """The JSON object in a text, at most JSON_DEPTH levels deep.

    Args:
        name: what holds the text, for messages.

    Raises:
        `error`: it is something else.
    """
    try:
        value = json.loads(text)
        _check_depth(value)
    except (ValueError, RecursionError) as reason:  # also numbers of over 4300 digits
        why = "nested too deeply" if isinstance(reason, RecursionError) else first_line(reason)
        raise error(f"{name} is not valid JSON ({why}): correct it, or download it again.") from None
    if not isinstance(value, dict):
        raise error(f"{name} must hold a JSON object, not {type(value).__name__}.")
    return value


def _check_depth(value):
    """Raises RecursionError for deep nesting, and UnicodeEncodeError for text that cannot be written."""
    level = [value]
    for _ in range(JSON_DEPTH):
        for text in level:
            if isinstance(text, str):
                text.encode("utf-8")
        nested = [x for x in level if isinstance(x, (dict, list))]
        level = [y for x in nested for y in ((*x, *x.values()) if isinstance(x, dict) else x)]
        if not level:
            return
    raise RecursionError


def read_json(path: Path, error: type[JanusError] = CheckpointError) -> dict:
    """The JSON object in a file. Raises `error` if there is no such file, or it holds something else."""
    return parse_json(read_text(path, error), path, error)


def read_optional_json(path: Path) -> dict:
    """As read_json, but {} if there is no such file."""
    return read_json(path) if os.path.lexists(path) else {}


def check_output(path: Path, temporary_folder: Path | None = None) -> Path:
    """Checks that a file can be written, before the work whose result it will hold; creates its folder.

    Args:
        temporary_folder: see write_atomically.

    Raises:
        OutputError: the path is a folder, a pipe or a device, or its folder cannot be written to.
    """
    path = user_path(path, OutputError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name in ("", "..") or path.is_dir():
            raise OutputError(f"{path} is a folder: name a file to write.")
        if path.exists() and not path.is_symlink() and not path.is_file():
            raise OutputError(f"{path} is not a regular file: name another one to write.")
        trial = _temporary(path, temporary_folder)
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as reason:
        raise _not_written(path, reason) from None
    return path


def write_atomically(path: str | Path, write: Callable[[Path], object], temporary_folder: Path | None = None):
    """Writes a file as a whole: whatever happens, the old file is there or the new one, never a part.

    `write` gets the path of a temporary file, unique to the process and the call, which then replaces the file. A link
    is replaced, not followed. A process that is killed may leave a hidden `.….tmp` behind.

    Args:
        temporary_folder: an existing folder on the same file system; the file's own when None.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    path = check_output(path, temporary_folder)
    temporary = _temporary(path, temporary_folder)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as reason:
        raise _not_written(path, reason) from None
    except RuntimeError as reason:  # of torch.save, which names neither the file nor the cause
        if not any(sign in str(reason) for sign in ("PytorchStreamWriter", "inline_container", "iostream")):
            raise
        raise _not_written(path, OSError("the disk is full or the file too large")) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, temporary_folder: Path | None = None):
    """Writes UTF-8 text; the other arguments and errors are those of write_atomically."""
    write_atomically(path, lambda file: file.write_bytes(text.encode("utf-8", "replace")), temporary_folder)


def _temporary(path: Path, folder: Path | None = None) -> Path:
    return (folder or path.parent) / f".{os.getpid()}-{secrets.token_hex(6)}.tmp"


def _not_written(path: Path, reason: BaseException) -> OutputError:
    return OutputError(f"{path} could not be written ({os_reason(reason)}): free some space or choose another place.")
