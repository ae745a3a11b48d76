"""The layers that a MODEL is built from, and the dtype that it computes in.

On a CPU ComfyUI computes in float32 and casts every weight of another dtype each time it is used. Ours are packed
instead, once, in the dtype computed in, when they are first used and patches have been applied; the weights themselves
stay where ModelPatchers look for them, in the dtype of their file. On other devices the choice is ComfyUI's.
"""

import logging
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor

from ..janus_core.checkpoint import WEIGHT_CHOICES, Checkpoint, quantized_layers
from ..janus_core.checkpoint.int4 import FORMAT as INT4_FORMAT
from ..janus_core.checkpoint.quantize import COMFY_QUANT, is_int4
from ..janus_core.errors import CheckpointError
from ..janus_core.operations import compute_dtype, multiplies_bf16
from ..janus_core.operations.packed import DTYPES, PackedProducts, available
from ..janus_core.operations.packed_quantized import PackedQuantizedProducts

CASTS = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WEIGHT_DTYPES = [*CASTS, *WEIGHT_CHOICES]
COMPUTE_DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@dataclass(frozen=True)
class Layers:
    """How a MODEL is built."""

    operations: type  # the namespace of its layers
    stored: torch.dtype  # of its weights, as far as they are not quantised
    compute: torch.dtype | None  # of its arithmetic; None where that is `stored`
    cast: torch.dtype | None  # that weights are cast to when loaded; None leaves them as in the file
    quant_config: dict | None  # of ComfyUI's model config; None where no layer is quantised


def choose_layers(checkpoint: Checkpoint, weight_dtype: str, load_device, offload_device) -> Layers:
    """The layers for a checkpoint on a device.

    Args:
        weight_dtype: one of WEIGHT_DTYPES; those of 8 and 4 bits have been applied to the checkpoint already.
    """
    quant_config = None
    if quantized_layers(checkpoint.tensors):
        quant_config = {"mixed_ops": True}  # as ComfyUI's loaders set it for such a checkpoint
    cast = CASTS.get(weight_dtype)
    stored = cast or checkpoint.dtype
    compute = comfy.model_management.unet_manual_cast(stored, load_device, COMPUTE_DTYPES)
    mixed = cast is None and any(t.dtype != stored for t in checkpoint.tensors.values())
    if quant_config or mixed:
        compute = compute or stored
    packs = False
    if load_device.type == "cpu":
        dtype = cpu_dtype(checkpoint, weight_dtype, load_device)
        packs = available(dtype)
        if packs:
            stored, compute, cast = checkpoint.dtype, dtype, dtype
            size = sum(tensor.numel() for tensor in checkpoint.tensors.values()) * dtype.itemsize
            name = str(dtype).removeprefix("torch.")
            logging.info(
                f"Janus on this CPU: {name} arithmetic, weights packed once when first used ({size / 1e9:.1f} GB)."
            )
    if quant_config:
        check_int4(checkpoint, load_device, packs)
        config = _QuantConfig(quant_config)
        operations = comfy.ops.pick_operations(stored, compute, load_device, model_config=config)
        operations = linear_layers_on(offload_device, packed_quantized(operations) if packs else operations)
    elif packs:
        operations = PackedOperations
    elif mixed:  # a file of several dtypes is cast layer by layer
        operations = comfy.ops.manual_cast
    else:
        operations = comfy.ops.pick_operations(stored, compute, load_device)
    return Layers(operations, stored, compute, cast, quant_config)


def check_int4(checkpoint: Checkpoint, load_device, packs: bool):
    """Raises CheckpointError where layers of 4 bits cannot run, or would be decoded for every token.

    Args:
        packs: whether the weights are decoded and packed once.
    """
    if not any(is_int4(tensor) for name, tensor in checkpoint.tensors.items() if name.endswith(COMFY_QUANT)):
        return
    if INT4_FORMAT not in comfy.quant_ops.QUANT_ALGOS:
        raise CheckpointError("This ComfyUI cannot compute with int4 weights: update it, or choose int8.")
    if load_device.type == "cpu" and not packs:
        raise CheckpointError("int4 weights are far too slow on this CPU: choose int8.")


@dataclass
class _QuantConfig:
    """What pick_operations reads of a model config."""

    quant_config: dict


def linear_layers_on(device, operations):
    """Mixed-precision operations whose linear layers load their weights to `device`.

    build_model constructs layers on the meta device, and these would otherwise load their weights there too.
    """

    class Operations(operations):
        class Linear(operations.Linear):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **{**kwargs, "device": device})

    return Operations


def cpu_dtype(checkpoint: Checkpoint, weight_dtype: str, device) -> torch.dtype:
    """The dtype to compute in on a CPU: bfloat16 where the processor multiplies it natively, else float32."""
    if weight_dtype in ("fp16", "fp32"):
        return torch.float32
    if weight_dtype == "bf16":
        return torch.bfloat16 if multiplies_bf16() else torch.float32
    return compute_dtype(device, checkpoint.dtype)


class PackedInComfyUI:
    """Placed before PackedProducts among the bases of a layer of ComfyUI's: what else ComfyUI asks of its products."""

    def can_pack(self, x) -> bool:
        """As PackedProducts, but not where patches are applied on the fly or the layer is compiled or replaced."""
        if self.weight_function or self.bias_function or "forward" in vars(self):
            return False
        return x.dtype in DTYPES and not torch.compiler.is_compiling() and super().can_pack(x)

    def packed_product(self, x, layers):
        comfy.ops.run_every_op()
        return super().packed_product(x, layers)


class PackedOperations(comfy.ops.disable_weight_init):
    """comfy.ops' layers, with packed linear layers."""

    class Linear(PackedInComfyUI, PackedProducts, comfy.ops.manual_cast.Linear):
        pass

    class Embedding(comfy.ops.disable_weight_init.Embedding):
        casts_weight = True


def packed_quantized(operations) -> type:
    """Mixed-precision operations of ComfyUI whose linear layers are packed too."""

    class Operations(PackedOperations):
        class Linear(PackedInComfyUI, PackedQuantizedProducts, operations.Linear):
            def can_pack(self, x) -> bool:
                return getattr(self, "pre_quant_scale", None) is None and super().can_pack(x)

            def is_quantized(self) -> bool:
                return isinstance(self.weight, QuantizedTensor)

            def int8_parts(self) -> tuple[torch.Tensor, torch.Tensor] | None:
                if self.quant_format != "int8_tensorwise" or self.weight.params.convrot:
                    return None
                return self.weight._qdata, self.weight.params.scale

            def dequantized(self):
                return self.weight.dequantize()

    return Operations


def keep_packed_weights_current(patcher):
    """Registers callbacks on a MODEL's patcher that clear packed weights where ComfyUI changes weights in place.

    The layers notice replaced weights (LoRA on and off). Hooks change weights in place, and unloading frees memory.
    """

    def clear(patcher, *args):
        for layer in patcher.model.modules():
            if isinstance(layer, PackedProducts):
                layer.clear_packed()
        patcher.model.has_hooked_weights = False

    def clear_if_hooked(patcher, *args):
        if getattr(patcher.model, "has_hooked_weights", False):
            clear(patcher)

    def apply_hooks(patcher, hooks):  # called with None whenever a model is loaded
        if hooks is None:
            clear_if_hooked(patcher)
        else:
            clear(patcher)
        patcher.model.has_hooked_weights = hooks is not None

    def detach(patcher, unpatch_all):
        if unpatch_all:  # else the module stays loaded for a clone of the patcher, such as the CLIP's
            clear(patcher)

    for event, callback in {
        CallbacksMP.ON_APPLY_HOOKS: apply_hooks,
        CallbacksMP.ON_CLEANUP: clear_if_hooked,
        CallbacksMP.ON_LOAD: clear_if_hooked,
        CallbacksMP.ON_DETACH: detach,
    }.items():
        patcher.add_callback_with_key(event, "janus_packed", callback)
