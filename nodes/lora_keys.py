"""More LoRA key styles for our models.

ComfyUI maps `diffusion_model.…` and kohya's `lora_unet_…` keys for every model, and other styles for the model classes
it knows. This adds the prefixes that peft and diffusers write, and transformers' names, for our models alone. ComfyUI
has no hook for it, so `register` replaces one of its functions by a wrapper: the only place where this pack patches
ComfyUI.
"""

import functools

import comfy.lora

from ..janus_core.checkpoint import lora_read
from ..janus_core.checkpoint.lora_read import COMFYUI_PREFIX, PEFT_PREFIX
from ..janus_core.checkpoint.transformers_layout import LLAMA, transformers_name
from .base_model import JanusBaseModel

PREFIXES = tuple(prefix for prefix in lora_read.PREFIXES if prefix != COMFYUI_PREFIX)


def register():
    """Wraps comfy.lora.model_lora_keys_unet; a second call does nothing."""
    original = comfy.lora.model_lora_keys_unet
    if hasattr(original, "janus"):
        return

    @functools.wraps(original)
    def model_lora_keys_unet(model, key_map=None):
        key_map = original(model, {} if key_map is None else key_map)
        if isinstance(model, JanusBaseModel):
            for name in model.diffusion_model.state_dict():
                if name.endswith(".weight"):
                    layer = name.removesuffix(".weight")
                    keys = [prefix + layer for prefix in PREFIXES]
                    if name.startswith(LLAMA):
                        keys.append(PEFT_PREFIX + transformers_name(layer))
                    key_map |= dict.fromkeys(keys, f"{COMFYUI_PREFIX}{name}")
        return key_map

    model_lora_keys_unet.janus = True
    comfy.lora.model_lora_keys_unet = model_lora_keys_unet
