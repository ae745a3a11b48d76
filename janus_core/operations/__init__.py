"""`operations`: namespaces of layers, other than torch.nn, that the networks can be built from."""

import torch

from . import packed, quantized


def choose_operations(device: torch.device, dtype: torch.dtype, has_quantized_layers: bool = False):
    """The fastest layers for a device.

    Args:
        dtype: of the activations.
        has_quantized_layers: whether the checkpoint holds 8-bit weights.

    Returns:
        A namespace with Linear, Conv2d, Embedding, GroupNorm, LayerNorm and RMSNorm.
    """
    base = packed if device.type == "cpu" and packed.available(dtype) else torch.nn
    return quantized.operations_over(base) if has_quantized_layers else base
