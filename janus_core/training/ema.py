"""The exponential moving average of trained weights."""

import torch


class EMA:
    """Average of a module's trained weights, updated once per step: ema = d ema + (1 - d) weights.

    Args:
        decay: d; 0 turns averaging off, and nothing is stored.
        warmup: d is min(decay, (1 + n) / (10 + n)) at update n. Without it, the initial weights make up decay^n of the
            average after n updates.
        device: of the averages; None for that of each weight.
    """

    def __init__(self, model: torch.nn.Module, decay: float, warmup: bool = False, device=None):
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.weights = {}
        if decay:
            for name, p in trained_parameters(model).items():
                self.weights[name] = p.detach().to(device=device or p.device, copy=True)

    @torch.no_grad()
    def update(self, model: torch.nn.Module):
        """Moves the averages towards the module's weights, after a step."""
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        for name, p in model.named_parameters():
            if name in self.weights:
                average = self.weights[name]
                average.lerp_(p.detach().to(average.device), 1 - decay)

    def result(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What a run ends with, by name: the averages, or the trained weights themselves if nothing is averaged."""
        return self.weights or trained_parameters(model)

    @torch.no_grad()
    def swap(self, model: torch.nn.Module):
        """Exchanges the module's weights and the averages; a second call undoes the first."""
        for name, p in model.named_parameters():
            if name in self.weights:
                average = self.weights[name]
                current = p.detach().to(average.device, copy=True)
                p.copy_(average)
                average.copy_(current)


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters with requires_grad, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
