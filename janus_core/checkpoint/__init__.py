"""Checkpoint files in, models out."""

from .load import (
    SAVED_PREFIX,
    VQ_PREFIX,
    Checkpoint,
    build_model,
    build_vq,
    detect_family,
    metadata_of,
    read_checkpoint,
    save_single_file,
    text_tensors,
)

__all__ = [
    "SAVED_PREFIX",
    "VQ_PREFIX",
    "Checkpoint",
    "build_model",
    "build_vq",
    "detect_family",
    "metadata_of",
    "read_checkpoint",
    "save_single_file",
    "text_tensors",
]
