"""Which MODELs keep their weights on the GPU as they are: what recording the work of a step needs.

ComfyUI's dynamic patcher, its default on NVIDIA, brings each weight to the GPU when an operation asks for it, and may
take it away between two. A recorded step asks for nothing, so a model that fits on its GPU is given the patcher that
loads it as a whole; one that does not is left to the dynamic patcher, and its steps are not recorded.
"""

from types import MethodType

import comfy.model_management
import comfy.model_patcher
import torch

from ..janus_core.sampling.recording import Record, recorder


def patcher_class(model: torch.nn.Module, device: torch.device):
    """The kind of patcher for a model that will run on a device."""
    if device.type != "cuda" or any(type(weight) is not torch.nn.Parameter for weight in model.parameters()):
        return comfy.model_patcher.CoreModelPatcher  # weights in 8 bits are not read by recorded steps
    memory = comfy.model_management
    needed = 1.1 * memory.module_size(model) + memory.minimum_inference_memory()  # as load_models_gpu makes room
    fits = needed <= memory.get_total_memory(device)
    return comfy.model_patcher.ModelPatcher if fits else comfy.model_patcher.CoreModelPatcher


def recorder_for(network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Record | None:
    """What may record the network's work, or None when a weight is elsewhere, of another dtype, cast or patched."""
    return recorder(device) if all(_is_plain(layer, device, dtype) for layer in network.modules()) else None


def _is_plain(layer: torch.nn.Module, device, dtype) -> bool:
    """Whether a layer does what its class says, with its own weights as they are."""
    changed = ("comfy_cast_weights", "weight_function", "bias_function")
    if any(getattr(layer, name, None) for name in changed) or layer._forward_hooks:
        return False
    if layer.forward != MethodType(type(layer).forward, layer):  # as ComfyUI's bypassing LoRAs replace it
        return False
    weights = layer.parameters(recurse=False)
    return all(type(w) is torch.nn.Parameter and (w.device, w.dtype) == (device, dtype) for w in weights)
