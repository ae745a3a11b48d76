"""The recipe of the demo checkpoints: a toy world, and training the autoencoders, the encoder and the models on it."""

from pathlib import Path

from janus_core.errors import JanusError
from janus_core.training import read_config


def run(path: str | Path, folder: str | Path | None = None, changes: dict | None = None) -> Path:
    """Trains as the JSON config at `path` says.

    Args:
        folder: output folder instead of the config's. An unfinished run in it is resumed.
        changes: settings that replace the config's.

    Returns:
        The checkpoint folder, or the weight file.

    Raises:
        JanusError: the config or a checkpoint cannot be used.
    """
    from . import train_autoencoders, train_encoder, train_models, train_tasks

    tasks = {
        "encoder": train_encoder.train_encoder,
        "vq": train_autoencoders.train_vq,
        "vae": train_autoencoders.train_vae,
        "model": train_models.train_model,
        "tasks": train_tasks.train_tasks,
    }
    config = read_config(path, changes)
    task = config.get("task")
    if task not in tasks:
        raise JanusError(f"{path} is not a config of the recipe: its task is {task!r}, not one of {list(tasks)}.")
    folder = Path(folder or config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    return tasks[task](config, folder)
