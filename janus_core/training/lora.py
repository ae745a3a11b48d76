"""LoRA (arXiv 2106.09685) of the language model, by peft."""

import torch
from torch import nn

from ..errors import TrainingError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA_PREFIX = "diffusion_model."  # ComfyUI's prefix of the network of a MODEL


def add_lora(model: nn.Module, rank: int = 16, alpha: float | None = None, targets=ATTENTION):
    """Freezes a model and adds a LoRA in float32 to the language model's layers with these names."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainingError("Training a LoRA needs peft: run `pip install peft`.") from None

    model.requires_grad_(False)
    pattern = r"language_model\.model\.layers\.\d+\..*\.(" + "|".join(targets) + ")"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=pattern), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft takes the frozen weight's dtype


def lora_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA of a model in bfloat16: peft's names behind ComfyUI's prefix, and each layer's alpha."""
    from peft.tuners.lora import LoraLayer

    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            key = LORA_PREFIX + name
            tensors[f"{key}.lora_A.weight"] = module.lora_A["default"].weight
            tensors[f"{key}.lora_B.weight"] = module.lora_B["default"].weight
            tensors[f"{key}.alpha"] = torch.tensor(float(module.lora_alpha["default"]))
    return {name: tensor.detach().cpu().to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
