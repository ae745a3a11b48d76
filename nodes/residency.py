"""Which MODELs keep their weights on the GPU unchanged, so that their steps can be captured as CUDA graphs.

ComfyUI's dynamic patcher, its default on NVIDIA, brings each weight to the GPU when an operation asks for it, and may
remove it between two operations. A replayed graph asks for nothing. Where graphs are turned on (JANUS_CUDA_GRAPHS=1), a
model that fits on its GPU therefore gets the patcher that loads it as a whole; otherwise ComfyUI's choice stands.
"""

import logging
from types import MethodType

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.cli_args import args

from ..janus_core.sampling.cuda_graphs import Capture, capture_for

BUS_GB_S = 12  # what PCIe 4.0 with 16 lanes reaches; an assumption, not measured here


def patcher_class(model: torch.nn.Module, device: torch.device):
    """The class of the patcher for a model that will run on a device."""
    if capture_for(device) is None or _disabled() or any(_is_modified(layer) for layer in model.modules()):
        return comfy.model_patcher.CoreModelPatcher
    memory = comfy.model_management
    needed = 1.1 * memory.module_size(model) + memory.minimum_inference_memory()  # as load_models_gpu frees memory
    fits = needed <= memory.get_total_memory(device)
    return comfy.model_patcher.ModelPatcher if fits else comfy.model_patcher.CoreModelPatcher


def capture_for_network(network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Capture | None:
    """What may capture the network's steps; None when a weight is elsewhere, of another dtype, cast or patched."""
    if _disabled() or any(_is_modified(layer) for layer in network.modules()):
        return None
    places = {(weight.device, weight.dtype) for weight in network.parameters()}
    return capture_for(device) if places == {(device, dtype)} else None


def warn_of_streaming(model, images: int, tokens: int, memory_required: int):
    """Logs a warning, once per model, where its weights do not fit on the GPU and are read over the bus per token.

    Args:
        model: the patcher.
        images: how many are generated together.
        memory_required: bytes of the run besides the weights.
    """
    memory, device = comfy.model_management, model.load_device
    if memory.is_device_cpu(device) or getattr(model.model, "warned_of_streaming", False):
        return
    free = memory.get_total_memory(device) - memory_required - memory.minimum_inference_memory()
    if message := streaming_message(model.model.generation_bytes(), free, images, tokens):
        model.model.warned_of_streaming = True
        logging.warning(message)


def streaming_message(weights: int, free: int, images: int, tokens: int) -> str | None:
    """What to say of weights (bytes) that are read for every token where `free` bytes are left; None if they fit."""
    missing = (weights - max(0, free)) / 1e9
    if missing <= 0:
        return None
    minutes = max(1, round(missing * tokens / BUS_GB_S / 60 / images))
    return (
        f"This model does not fit on the GPU: about {missing:.1f} GB of its weights are read from main memory for "
        f"every token, about {minutes} min per image. Choose int8 or int4 as weight_dtype in Load Janus-Pro, "
        "Janus-Pro-1B, more images per batch (they share the reading), or a window of 8 to 16 in Janus Token Sampler."
    )


def _disabled() -> bool:
    return getattr(args, "disable_cuda_graphs", False)


def _is_modified(layer: torch.nn.Module) -> bool:
    """Whether a layer's weights are quantised, cast or patched on the fly, or its forward is hooked or replaced."""
    if any(getattr(layer, name, None) for name in ("comfy_cast_weights", "weight_function", "bias_function")):
        return True
    if layer._forward_hooks or layer._forward_pre_hooks:
        return True
    if layer.forward != MethodType(type(layer).forward, layer):  # as ComfyUI's bypassing LoRAs replace it
        return True
    return any(type(weight) is not torch.nn.Parameter for weight in layer.parameters(recurse=False))
