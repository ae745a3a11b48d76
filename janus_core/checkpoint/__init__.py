"""Checkpoint files in, models out."""

from .load import (
    Checkpoint,
    build_model,
    build_vq,
    detect_family,
    metadata_of,
    read_checkpoint,
    save_single_file,
)

__all__ = [
    "Checkpoint",
    "build_model",
    "build_vq",
    "detect_family",
    "metadata_of",
    "read_checkpoint",
    "save_single_file",
]
