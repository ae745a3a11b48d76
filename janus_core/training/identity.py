"""The identity of a fine-tuning run: what must be the same for a run to be resumed with the same result."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from ..checkpoint.read import Checkpoint
from .encoded import EncodedImages, fingerprint
from .folder_data import Example
from .settings import loop_settings

SAMPLE = 4096  # values of each tensor in the fingerprint of a checkpoint
FILES = ("checkpoint", "vae", "images", "prior.images")  # known by what they hold
NEUTRAL = (  # settings that do not change the result
    *("task", "folder", "cache", "validation", "gradient_checkpointing", "loop.workers", "loop.tensorboard"),
    *("loop.log_every", "loop.save_every", "loop.sample_every", "loop.ema_device", *FILES),
)


def run_identity(
    config: dict,
    objective_values: dict,
    checkpoint: Checkpoint,
    images: EncodedImages,
    examples: list[Example],
    prior: list[Example],
) -> dict:
    """The settings that change the result, and fingerprints of what is trained and trained on, by name.

    Args:
        objective_values: see trained_model.objective_settings.
        images: those of all examples, prepared.
    """
    return {
        **_result_settings(config),
        **objective_values,
        "checkpoint": fingerprint(checkpoint.tensors, SAMPLE)[:16],
        "autoencoder": images.preparation,
        "images": _data_fingerprint(examples, images.hashes),
        "prior images": _data_fingerprint(prior, images.hashes),
    }


def _result_settings(config: dict) -> dict:
    """The settings that change a run's result, by dotted name, the loop's with their defaults; files and folders are
    known by what they hold."""
    settings = {}
    for name, value in {**config, "loop": asdict(loop_settings(config))}.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        settings |= {f"{name}.{key}".rstrip("."): one for key, one in inner if name not in NEUTRAL}
    return {name: value for name, value in settings.items() if name not in NEUTRAL and value is not None}


def _data_fingerprint(examples: list[Example], hashes: dict[Path, str]) -> str:
    """The number of images and a hash of all that is trained on. `hashes`: of the image files, by path."""
    content = json.dumps([(hashes[one.path], one.caption, one.questions, one.repeats) for one in examples])
    return f"{len(examples)} images, {hashlib.sha256(content.encode()).hexdigest()[:16]}"
