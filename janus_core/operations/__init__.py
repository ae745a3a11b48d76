"""`operations`: namespaces of layers, other than torch.nn, that the networks can be built from."""

import torch

from . import packed, quantized


def compute_dtype(device: torch.device, file_dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in where the user names none.

    That is the file's, but float32 for float64, and on a CPU for float16 and where the processor does not multiply
    bfloat16: it would widen the weights for every product.
    """
    if file_dtype == torch.float64:
        return torch.float32
    if device.type == "cpu" and (file_dtype == torch.float16 or not multiplies_bf16()):
        return torch.float32
    return file_dtype


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AMX, AVX512-BF16, Arm's bf16) and oneDNN packs for it."""
    if not packed.available(torch.bfloat16):
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities:
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # before torch 2.11
    return supported is None or supported()


def choose_operations(device: torch.device, dtype: torch.dtype, has_quantized_layers: bool = False):
    """The fastest layers for a device.

    Args:
        dtype: of the activations.
        has_quantized_layers: whether the checkpoint holds quantised weights.

    Returns:
        A namespace with Linear, Conv2d, Embedding, GroupNorm, LayerNorm and RMSNorm.
    """
    base = packed if device.type == "cpu" and packed.available(dtype) else torch.nn
    return quantized.operations_over(base) if has_quantized_layers else base
