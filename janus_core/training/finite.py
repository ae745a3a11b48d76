"""Checks that a run's losses, gradients and weights are finite."""

import torch

from ..errors import TrainingError


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite; of a tensor that FSDP has sharded, those of this process."""
    tensor = tensor.detach()
    return bool((tensor.to_local() if hasattr(tensor, "to_local") else tensor).isfinite().all())


def check_step(what: str, finite: bool, step: int):
    """Raises TrainingError, which names a loss or the gradient and its step (counted from 0), unless it is finite."""
    if not finite:
        raise TrainingError(
            f"{what} is not finite at step {step + 1}: use a lower learning rate, or the weights of an earlier run."
        )


def check_weights(weights: dict[str, torch.Tensor]):
    """Raises TrainingError for a weight that is not finite."""
    for name, weight in weights.items():
        if not all_finite(weight):
            raise TrainingError(f"The weight {name} is not finite after training: use a lower learning rate.")
