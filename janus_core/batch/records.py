"""What a run leaves in OUT.run beside the output folder: a record per output, the run's own, and temporary files."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__
from ..errors import CheckpointError
from ..files import os_reason, read_json, regular_file, user_path, write_text
from .outputs import BatchError, Output

BLOCK = 2**22  # bytes read at a time
DIFFERENCES = {  # between a record and what is asked for, where "another" and the name would be no English
    "settings": "other settings",
    "seeds": "other seeds",
    "images": "other images",
    "weights": "another format of weights",
    "loras": "another LoRA or strength",
}
IMAGE_BYTES = "image_bytes"  # the section of a record that says how large the images were
SKIPPED_SUFFIXES = (".md", ".gitattributes", ".lock")  # files of a checkpoint folder that no tensor depends on


def versions() -> dict[str, str]:
    """What may change the bytes of an output, apart from its job and the checkpoint."""
    return {"janus_core": __version__, "torch": torch.__version__}


def content_hash(path: str | Path) -> str:
    """SHA-256 over the names and contents of a checkpoint: a file, or the files of a folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = user_path(path)
    total = hashlib.sha256()
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [regular_file(path)]
        for file in files:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if hidden or not file.is_file() or file.suffix in SKIPPED_SUFFIXES:
                continue
            name = file.relative_to(path).as_posix() if path.is_dir() else ""
            total.update(f"{name}\n{file.stat().st_size}\n".encode("utf-8", "surrogatepass"))
            with open(file, "rb") as opened:
                while block := opened.read(BLOCK):
                    total.update(block)
    except OSError as reason:
        raise CheckpointError(f"{path} cannot be read ({os_reason(reason)}).") from None
    return total.hexdigest()


def image_bytes(images: Sequence[str], folder: Path) -> dict[str, dict[str, int]]:
    """The section of a record about an output's images: their sizes in bytes, of those that are there."""
    sizes = {}
    for name in images:
        try:
            sizes[name] = (folder / name).stat().st_size
        except (OSError, ValueError):  # reported by what reads it
            pass
    return {IMAGE_BYTES: sizes} if images else {}


@dataclass(frozen=True)
class RunFolder:
    """The output folder and OUT.run beside it.

    Attributes:
        out: the folder of the outputs; nothing else is written there.
    """

    out: Path

    @classmethod
    def create(cls, out: str | Path) -> "RunFolder":
        """Both folders. Raises BatchError when they cannot be created."""
        out = Path(os.path.abspath(user_path(out, BatchError)))
        folder = cls(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder.temporary.mkdir(parents=True, exist_ok=True)
            if out.stat().st_dev != folder.temporary.stat().st_dev:
                raise BatchError(f"{folder.run} is on another disk than {out}: choose a folder inside of it for --out.")
        except OSError as reason:
            raise BatchError(f"{out} and {folder.run.name} cannot be created ({os_reason(reason)}).") from None
        return folder

    @property
    def run(self) -> Path:
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def temporary(self) -> Path:
        return self.run / "tmp"

    def file(self, path: str) -> Path:
        return self.out / path

    def record(self, output: Output) -> Path:
        return self.run / "outputs" / f"{output.path}.json"

    def write_record(self, output: Output, made_with: dict, measured: dict):
        """Records an output before it is written.

        Args:
            made_with: what another run must agree with (see `state`).
            measured: seconds, batch size and the like.
        """
        values = {"request": output.request, **made_with, **measured}
        text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
        write_text(self.record(output), text, self.temporary)

    def state(self, output: Output, made_with: dict) -> str | None:
        """None for an output that is not there yet, "done", or how it disagrees with what is asked for."""
        if not os.path.lexists(self.file(output.path)):
            return None
        if not os.path.lexists(self.record(output)):
            return "there is no record of how it was made"
        found = read_json(self.record(output), BatchError)
        wanted = json.loads(json.dumps({"request": output.request, **made_with}))
        sizes, before = wanted.pop(IMAGE_BYTES, {}), found.get(IMAGE_BYTES)
        if isinstance(before, dict):  # older records have none, and an image may be gone
            wanted[IMAGE_BYTES] = {**before, **sizes}
        for section, values in wanted.items():
            old = found.get(section)
            if old != values:
                old = old if isinstance(old, dict) else {}
                names = [name for name in {**values, **old} if old.get(name) != values.get(name)]
                return f"it was made with {', '.join(DIFFERENCES.get(name, f'another {name}') for name in names)}"
        return "done"

    def remove(self, output: Output):
        """Removes an output, so that its record can be replaced."""
        self.file(output.path).unlink(missing_ok=True)

    def shared(self) -> dict:
        """What all shards and restarts of a run have in common; {} before the first."""
        path = self.run / "run.json"
        return read_json(path, BatchError) if os.path.lexists(path) else {}

    def share(self, values: dict, replace: bool = False) -> dict:
        """Records what a run has in common; the first of several shards decides. Returns what holds."""
        path, text = self.run / "run.json", json.dumps(values, indent=1) + "\n"
        if replace:
            write_text(path, text, self.temporary)
            return values
        own = self.temporary / f"{os.getpid()}-run.json"
        try:
            write_text(own, text, self.temporary)
            os.link(own, path)  # fails where another shard was first
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                write_text(path, text, self.temporary)
        finally:
            own.unlink(missing_ok=True)
        return self.shared()
