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
from .quantize import FORMATS as WEIGHT_FORMATS
from .quantize import quantized, quantized_layers

__all__ = [
    "SAVED_PREFIX",
    "VQ_PREFIX",
    "WEIGHT_FORMATS",
    "Checkpoint",
    "build_model",
    "build_vq",
    "detect_family",
    "metadata_of",
    "quantized",
    "quantized_layers",
    "read_checkpoint",
    "save_single_file",
    "text_tensors",
]
