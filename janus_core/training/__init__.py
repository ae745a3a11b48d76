"""Training objectives, stages and loop of Janus and JanusFlow, and fine-tuning on a folder of captioned images."""

from pathlib import Path

from ..checkpoint.files import read_json
from ..errors import JanusError


class Config(dict):
    """A training config; reading a setting that it lacks raises JanusError."""

    def __missing__(self, key):
        raise JanusError(f"The training config lacks the setting {key!r}.")


def read_config(path: str | Path, changes: dict | None = None) -> Config:
    """Reads a JSON config; `changes` replace settings that it has.

    Raises:
        JanusError: the file cannot be read, or has no setting of a changed name.
    """
    config = Config(read_json(Path(path)))
    for key, value in (changes or {}).items():
        if key not in config:
            raise JanusError(f"{path} has no setting {key!r}, only {', '.join(config)}.")
        config[key] = value
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
    from .finetune import finetune

    config = read_config(path, changes)
    if config.get("task") != "finetune":
        raise JanusError(f"{path} is not a fine-tuning config: its task is {config.get('task')!r}, not 'finetune'.")
    folder = Path(folder or config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    return finetune(config, folder)
