"""LoRA (arXiv 2106.09685) of the language model, by peft."""

from torch import nn

from ..errors import TrainingError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def add_lora(model: nn.Module, rank: int = 16, alpha: float | None = None, targets=ATTENTION):
    """Freezes a model and adds a LoRA in float32 to the language model's layers with these names, in place.

    Args:
        alpha: the LoRA is multiplied by alpha / rank; None for the rank.

    Raises:
        TrainingError: peft is missing.
    """
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
