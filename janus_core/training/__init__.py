"""Training objectives, stages and loop of Janus and JanusFlow, and fine-tuning on a folder of captioned images."""

from pathlib import Path

from ..errors import OutputError, TrainingError
from ..files import os_reason, read_json, user_path


class Config(dict):
    """A training config; reading a setting that it lacks raises TrainingError."""

    def __missing__(self, key):
        raise TrainingError(f"The training config lacks the setting {key!r}.")


def read_config(path: str | Path, changes: dict | None = None) -> Config:
    """Reads a JSON config; `changes` replace settings that it has.

    A dotted name, such as "loop.steps", is a setting in a section. A section may get settings that it does not have
    yet.

    Raises:
        TrainingError: the file cannot be read, or has no setting or section of a changed name.
    """
    config = Config(read_json(user_path(path, TrainingError), TrainingError))
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            if not isinstance(place.get(section), dict):
                raise TrainingError(f"{path} has no section {section!r} to set {key!r} in.")
            place = place[section]
        if not sections and name not in config:
            raise TrainingError(f"{path} has no setting {key!r}, only {', '.join(config)}.")
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
    from .settings import check_finetune

    config = read_config(path, changes)
    if config.get("task") != "finetune":
        raise TrainingError(f"{path} is not a fine-tuning config: its task is {config.get('task')!r}, not 'finetune'.")
    check_finetune(config, path)
    folder = user_path(folder or config["folder"] or "", TrainingError)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be a folder for the results ({os_reason(error)}): name another.") from None
    try:
        from .finetune import finetune
    except ImportError as error:
        raise TrainingError(f"Training needs {error.name}: run `pip install {error.name}`.") from None
    return finetune(config, folder)
