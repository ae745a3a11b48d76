"""Reading and writing checkpoints, quantising them, and building models from them."""

from .build import build_model, build_vq, check_checkpoint, params_of
from .lora import Lora, lora_changes, with_loras
from .lora_read import lora_hash
from .lora_write import save_lora
from .quantize import FORMATS as WEIGHT_FORMATS
from .quantize import WEIGHT_CHOICES, quantized, quantized_layers
from .read import SAVED_PREFIX, VQ_PREFIX, Checkpoint, detect_family, read_checkpoint
from .write import config_of, metadata_of, save_folder, save_single_file, text_tensors

__all__ = [
    "SAVED_PREFIX",
    "VQ_PREFIX",
    "WEIGHT_CHOICES",
    "WEIGHT_FORMATS",
    "Checkpoint",
    "Lora",
    "build_model",
    "build_vq",
    "check_checkpoint",
    "config_of",
    "detect_family",
    "lora_changes",
    "lora_hash",
    "metadata_of",
    "params_of",
    "quantized",
    "quantized_layers",
    "read_checkpoint",
    "save_folder",
    "save_lora",
    "save_single_file",
    "text_tensors",
    "with_loras",
]
