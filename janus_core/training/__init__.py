"""Training: the objectives of Janus and JanusFlow, the demo task, and fine-tuning on a folder of pictures."""

import json
from pathlib import Path


def run(path: str | Path, folder: str | Path | None = None):
    """Trains as the config file at `path` says; `folder` takes the place of the config's output folder."""
    from . import autoencoder_runs

    tasks = {"vq": autoencoder_runs.train_vq, "vae": autoencoder_runs.train_vae}
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return tasks[config["task"]](config, Path(folder or config["folder"]))
