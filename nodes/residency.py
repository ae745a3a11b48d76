"""Which MODELs keep their weights on the GPU as they are: what recording the work of a step needs.

ComfyUI's dynamic patcher, its default on NVIDIA, brings each weight to the GPU when an operation asks for it, and may
take it away between two. A recorded step asks for nothing, so a model that fits on its GPU is given the patcher that
loads it as a whole; one that does not is left to the dynamic patcher, and its steps are not recorded.
"""

from types import MethodType

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.cli_args import args

from ..janus_core.sampling.recording import Record, recorder


def patcher_class(model: torch.nn.Module, device: torch.device):
    """The kind of patcher for a model that will run on a device."""
    if recorder(device) is None or _off() or any(_changes(layer) for layer in model.modules()):
        return comfy.model_patcher.CoreModelPatcher
    memory = comfy.model_management
    needed = 1.1 * memory.module_size(model) + memory.minimum_inference_memory()  # as load_models_gpu makes room
    fits = needed <= memory.get_total_memory(device)
    return comfy.model_patcher.ModelPatcher if fits else comfy.model_patcher.CoreModelPatcher


def recorder_for(network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Record | None:
    """What may record the network's work, or None when a weight is elsewhere, of another dtype, cast or patched."""
    if _off() or any(_changes(layer) for layer in network.modules()):
        return None
    places = {(weight.device, weight.dtype) for weight in network.parameters()}
    return recorder(device) if places == {(device, dtype)} else None


def _off() -> bool:
    return getattr(args, "disable_cuda_graphs", False)


def _changes(layer: torch.nn.Module) -> bool:
    """Whether a layer does more than its class says with its weights, or these are quantised."""
    if any(getattr(layer, name, None) for name in ("comfy_cast_weights", "weight_function", "bias_function")):
        return True
    if layer._forward_hooks or layer._forward_pre_hooks:
        return True
    if layer.forward != MethodType(type(layer).forward, layer):  # as ComfyUI's bypassing LoRAs replace it
        return True
    return any(type(weight) is not torch.nn.Parameter for weight in layer.parameters(recurse=False))
