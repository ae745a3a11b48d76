"""Layers of MODELs that run on the CPU: weights are packed once, and none is cast per call.

ComfyUI computes in float32 on a CPU and casts every weight of another dtype each time it is used. These layers pack a
linear layer's weight in the dtype computed in when it is first used, after patches have been applied. The weight itself
stays where ModelPatchers look for it, in the dtype of its file.
"""

import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP

from ..janus_core.operations.packed import PackedWeight


class Operations(comfy.ops.disable_weight_init):
    """comfy.ops' layers, with packed linear layers."""

    class Linear(comfy.ops.manual_cast.Linear):
        casts_weight = True

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.packed = PackedWeight()

        def forward(self, x):
            if self.weight_function or self.bias_function or torch.is_grad_enabled():
                return super().forward(x)
            comfy.ops.run_every_op()
            return self.packed.linear(x, self.weight, self.bias)

    class Embedding(comfy.ops.disable_weight_init.Embedding):
        casts_weight = True


def keep_packed_weights_current(patcher):
    """Registers callbacks on a MODEL's patcher that clear packed weights where ComfyUI changes weights in place.

    Replaced weights (LoRA on and off) are noticed by the layers. Hooks change weights in place; unloading frees memory.
    """

    def clear(patcher, *args):
        for layer in patcher.model.modules():
            if isinstance(packed := getattr(layer, "packed", None), PackedWeight):
                packed.clear()
        patcher.model.has_hooked_weights = False

    def apply_hooks(patcher, hooks):
        clear(patcher)
        patcher.model.has_hooked_weights = hooks is not None

    def clear_if_hooked(patcher, *args):
        if getattr(patcher.model, "has_hooked_weights", False):
            clear(patcher)

    for event, callback in {
        CallbacksMP.ON_APPLY_HOOKS: apply_hooks,
        CallbacksMP.ON_CLEANUP: clear_if_hooked,
        CallbacksMP.ON_LOAD: clear_if_hooked,
        CallbacksMP.ON_DETACH: clear,
    }.items():
        patcher.add_callback_with_key(event, "janus_packed", callback)
