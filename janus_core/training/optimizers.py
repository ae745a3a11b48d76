"""AdamW (arXiv 1711.05101) in 32 or 8 bits, its learning rate, and steps in the backward pass that free gradients."""

import torch

from ..errors import TrainingError
from .settings import LoopSettings


def make_optimizer(parameters: list[torch.nn.Parameter], settings: LoopSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    "adamw8bit" stores both moments in 8 bits (arXiv 2110.02861), 2 bytes for each weight instead of 8.

    Raises:
        TrainingError: a library is missing.
    """
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise TrainingError(
                "The optimizer adamw8bit needs bitsandbytes: run `pip install bitsandbytes`, or use adamw."
            ) from None
        return AdamW8bit(parameters, settings.lr, tuple(settings.betas), weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay)


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Of a step, counted from 0: linear warm-up from 0, constant, linear decay over the last `decay` of the steps."""
    rate = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.lr * min(rate, left if settings.decay else 1.0)


class StepInBackward:
    """Updates each weight as soon as its gradient is complete, and frees the gradient.

    Only one gradient is then in memory at a time. The norm of all gradients is therefore not known: each weight's
    gradient is clipped by its own norm.

    Args:
        optimizer: over the parameters; it must pass over those without a gradient.
        clip: largest norm of one parameter's gradient.

    Attributes:
        finite: whether all gradients so far were; a weight whose gradient is not is left unchanged.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float):
        self.optimizer, self.clip = optimizer, clip
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.handles = [p.register_post_accumulate_grad_hook(self._step) for p in parameters]
        self.finite = True

    def _step(self, parameter):
        norm = torch.nn.utils.clip_grad_norm_([parameter], self.clip)
        if not norm.isfinite():
            self.finite = False
        else:
            self.optimizer.step()
        parameter.grad = None

    def remove(self):
        """Removes the hooks."""
        for handle in self.handles:
            handle.remove()
