"""Training: the objectives of Janus and JanusFlow, the demo task, and fine-tuning on a folder of pictures."""

from pathlib import Path

from ..checkpoint.files import read_json
from ..errors import JanusError


class Config(dict):
    """A training config; a setting that is needed and not there is a JanusError."""

    def __missing__(self, key):
        raise JanusError(f"The training config lacks the setting {key!r}.")


def run(path: str | Path, folder: str | Path | None = None, changes: dict | None = None) -> Path:
    """Trains as the JSON config at `path` says.

    Args:
        folder: takes the place of the config's output folder. A run that lies there is resumed.
        changes: values that take the place of the config's.

    Returns:
        What was written: a checkpoint folder, or a weight file.

    Raises:
        JanusError: the config, a checkpoint or the pictures cannot be used.
    """
    from . import autoencoder_runs, encoder_runs, finetune, model_runs

    tasks = {
        "vq": autoencoder_runs.train_vq,
        "vae": autoencoder_runs.train_vae,
        "encoder": encoder_runs.train_encoder,
        "model": model_runs.train_model,
        "finetune": finetune.finetune,
    }
    config = Config(read_json(Path(path)))
    for key, value in (changes or {}).items():
        if key not in config:
            raise JanusError(f"{path} has no setting {key!r}, only {', '.join(config)}.")
        config[key] = value
    if config.get("task") not in tasks:
        raise JanusError(f"{path} is no training config: its task is {config.get('task')!r}, not one of {list(tasks)}.")
    folder = Path(folder or config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    return tasks[config["task"]](config, folder)
