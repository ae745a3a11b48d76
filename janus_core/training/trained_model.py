"""The model that a fine-tuning config trains: what is frozen, and in which dtypes."""

from functools import partial

import torch
from torch import nn

from ..checkpoint import build_model, quantized, quantized_layers
from ..checkpoint.read import Checkpoint
from ..errors import CheckpointError, TrainingError
from ..janusflow import JanusFlow
from ..operations.quantized import operations_over
from ..schema import check_fields
from . import sharding, stages
from .checkpointing import checkpoint_blocks
from .lora import add_lora
from .nf4 import to_nf4
from .settings import FINETUNE, setting
from .unified import JanusFlowObjective, JanusObjective, Objective

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FULL_SIZE = 500_000_000  # parameters from which activations are checkpointed by default
TRAINED_WITH = "training"  # the part of config.json with the settings of the objective that trained a checkpoint
OBJECTIVE = {"repa": 1.0, "time_mean": 0.0, "unconditional_smoothing": 0.0}  # the papers'


def build_trained_model(checkpoint: Checkpoint, config: dict):
    """The checkpoint's model as a config trains it: float32 for what is trained, the rest frozen in its own dtype.

    Without autocast (`precision` "no"), a model that is trained as a whole or by stage is float32 throughout, since its
    layers must fit together. A LoRA's layers convert to and from the frozen model's dtype.

    Raises:
        CheckpointError: the weights do not fit together, or are of 8 or 4 bits and would be trained.
        TrainingError: peft is missing.
    """
    lora = config.get("lora")
    if lora and lora.get("base") == "int8":
        checkpoint = quantized(checkpoint, "int8")
    has_8_bits = bool(quantized_layers(checkpoint.tensors))
    if has_8_bits and not lora:
        raise CheckpointError(
            f"{checkpoint.path} has quantised weights, which cannot be trained: use the original one."
        )
    operations = operations_over(nn) if has_8_bits else nn
    model = build_model(checkpoint, operations, dtype=frozen_dtype(checkpoint.dtype, config))
    if lora and lora.get("base") == "nf4":
        to_nf4(model)
    train_parts(model, config)
    return model


def train_parts(model, config: dict):
    """Freezes what a config does not train, adds its LoRA, and checkpoints activations; all in place.

    Raises:
        TrainingError: peft is missing.
    """
    full_size = sum(p.numel() for p in model.parameters()) >= FULL_SIZE
    if config.get("lora"):
        add_lora(model, **{key: value for key, value in config["lora"].items() if value is not None and key != "base"})
    else:
        stages.freeze(model, config["stage"])
        to_float = torch.Tensor.float if sharding.loads_weights() else partial(torch.empty_like, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = to_float(parameter.data)
    if setting(config, "gradient_checkpointing", full_size):
        checkpoint_blocks(model)


def frozen_dtype(own: torch.dtype, config: dict) -> torch.dtype:
    """The dtype of frozen weights. `own`: that of the checkpoint."""
    lora = config.get("lora")
    if not lora and config["loop"].get("precision") == "no":
        return torch.float32
    asked = DTYPES.get((lora or {}).get("base"))
    own = torch.float32 if own == torch.float64 else own
    return asked or (torch.bfloat16 if own == torch.float16 else own)  # float16 overflows in training


def objective_settings(config: dict, checkpoint_config: dict, name="config.json") -> dict:
    """repa, time_mean and unconditional_smoothing: the config's, else those that trained the base, else the papers'.

    A LoRA has no alignment loss unless the config names its weight: the loss needs a head that checkpoints do not
    contain, and a short run would pay for training it.

    Args:
        checkpoint_config: the config.json of the base.

    Raises:
        TrainingError: config.json has other values than numbers in their range.
    """
    own = checkpoint_config.get(TRAINED_WITH) or {}
    if not isinstance(own, dict):
        raise TrainingError(f"{name}: {TRAINED_WITH} must be an object.")
    fields = {key: FINETUNE[key] for key in OBJECTIVE}
    check_fields(own, fields, f"{name}: {TRAINED_WITH}", TrainingError)
    defaults = {key: setting(own, key, default) for key, default in OBJECTIVE.items()}
    if config.get("lora"):
        defaults["repa"] = 0.0
    return {key: setting(config, key, default) for key, default in defaults.items()}


def make_objective(model, settings: dict, loss_weighting: str | None) -> Objective:
    """The training objective of a model.

    Args:
        settings: what objective_settings returns.
        loss_weighting: see Objective; by default "examples".
    """
    loss_weighting = loss_weighting or "examples"
    if model.family == JanusFlow.family:
        return JanusFlowObjective(model, loss_weighting, settings["repa"], settings["time_mean"])
    return JanusObjective(model, loss_weighting, settings["unconditional_smoothing"])
