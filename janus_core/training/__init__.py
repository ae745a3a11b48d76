"""Training objectives, stages and loop of Janus and JanusFlow, and fine-tuning on a folder of captioned images."""

import os
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError, TrainingError
from ..files import os_reason, read_json, user_path
from ..schema import Whole, check


class Config(dict):
    """A training config; reading a setting that it lacks raises TrainingError."""

    def __missing__(self, key):
        raise TrainingError(f"The training config lacks the setting {key!r}.")


def read_config(path: str | Path, changes: dict | None = None, known=()) -> Config:
    """Reads a JSON config; `changes` replace its settings.

    A dotted name, such as "loop.steps", is a setting in a section. A section may get settings that it does not have
    yet, and so may the config if `known` contains their names.

    Raises:
        TrainingError: the file cannot be read, or has no setting or section of a changed name.
    """
    config = Config(read_json(user_path(path, TrainingError), TrainingError))
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        top = sections[0] if sections else name
        if top not in config and top not in known:
            raise TrainingError(f"{path} has no setting {top!r}, only {', '.join(config)}.")
        place = config
        for section in sections:
            if place.get(section) is None and section in known:
                place[section] = {}
            if not isinstance(place.get(section), dict):
                raise TrainingError(f"{path} has no section {section!r} to set {key!r} in.")
            place = place[section]
        place[name] = value
    return config


def run(path: str | Path, folder: str | Path | None = None, changes: dict | None = None) -> Path:
    """Fine-tunes a checkpoint as the JSON config at `path` says (see configs/finetune.json).

    Args:
        folder: output folder instead of the config's. An unfinished run in it is resumed.
        changes: settings that replace the config's.

    Returns:
        The checkpoint folder, or the LoRA file.

    Raises:
        JanusError: the config, the checkpoint or the images cannot be used.
    """
    config = _checked(path, changes)
    folder = user_path(folder or config["folder"] or "", TrainingError)
    _check_folders(config, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be a folder for the results ({os_reason(error)}): name another.") from None
    with _needed_libraries():
        from .finetune import finetune
    return finetune(config, folder)


def estimate(path: str | Path, changes: dict | None = None, memory: float | None = None, gpus: int = 1) -> str:
    """The memory that fine-tuning as the config at `path` says needs on a GPU, as a table.

    Args:
        changes: settings that replace the config's.
        memory: of the GPU, in GB of 10^9 bytes.
        gpus: over which FSDP shards the model.

    Raises:
        JanusError: the config or the checkpoint cannot be used, or the config needs more than `memory`.
    """
    config = _checked(path, changes)
    check("gpus", gpus, Whole(1, 10000), TrainingError)
    with _needed_libraries():
        from .finetune import check_processes
        from .memory_estimate import estimate_memory
    if gpus > 1:
        check_processes(config, gpus, sharded=True)
    estimated = estimate_memory(config, gpus)
    if memory is not None:
        estimated.check(memory)
    return estimated.table()


def _check_folders(config: dict, folder: Path):
    """Raises TrainingError if images that are no training data would be read as such: the run's own, or the prior's."""
    read = {"images": config["images"], "prior.images": (config.get("prior") or {}).get("images")}
    read = {name: _resolved(path) for name, path in read.items() if path is not None}
    folders = {"folder": _resolved(folder), **read}
    for name, one in folders.items():
        for outer_name, outer in read.items():
            if name != outer_name and (one == outer or outer in one.parents):
                raise TrainingError(f"{name} ({one}) is in {outer_name}, {outer}: name another place for it.")


def _resolved(folder: str | Path) -> Path:
    return Path(os.path.realpath(user_path(folder, TrainingError)))


def _checked(path, changes: dict | None) -> Config:
    """The fine-tuning config in a file. Raises TrainingError."""
    from .settings import FINETUNE, check_finetune

    config = read_config(path, changes, FINETUNE)
    if config.get("task") != "finetune":
        raise TrainingError(f"{path} is not a fine-tuning config: its task is {config.get('task')!r}, not 'finetune'.")
    check_finetune(config, path)
    return config


@contextmanager
def _needed_libraries():
    """Turns an ImportError into a TrainingError that names the library."""
    try:
        yield
    except ImportError as error:
        raise TrainingError(f"Training needs {error.name}: run `pip install {error.name}`.") from None
