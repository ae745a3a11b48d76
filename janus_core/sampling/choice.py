"""Choosing a token from logits: greedy, or by temperature, top-k and top-p with counter-based noise."""

from dataclasses import dataclass

import torch

from ..errors import SamplingError


def check_range(name: str, value, low, high, whole: bool = False):
    """Raises SamplingError unless value is a number (a whole one if asked) and low <= value <= high."""
    if not isinstance(value, int if whole else (int, float)) or not low <= value <= high:  # also false for NaN
        raise SamplingError(f"{name} is {value}, it must be a {'whole ' * whole}number between {low} and {high}.")


def check_guidance(cfg, interval):
    """Raises SamplingError unless cfg is in 0 to 100 and the interval in order within 0 to 1."""
    check_range("cfg", cfg, 0, 100)
    for value in interval:
        check_range("cfg_interval", value, 0, 1)
    if interval[0] > interval[1]:
        raise SamplingError(f"cfg_interval starts at {interval[0]}, after its end at {interval[1]}.")


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 is off.
        top_p: only the smallest set of tokens that together have this probability; 1 is off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        check_range("temperature", self.temperature, 0, 5)
        check_range("top_k", self.top_k, 0, 2**31, whole=True)
        check_range("top_p", self.top_p, 0, 1)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def __call__(self, logits, noise=None):
        """Picks one token per row.

        Args:
            logits: float32 [B, V].
            noise: float32 [B, V] (noise.gumbel); a greedy choice needs none.

        Returns:
            int64 [B].
        """
        if self.is_greedy:
            return logits.argmax(-1)
        log_p = torch.log_softmax(logits / self.temperature, dim=-1)
        if 0 < self.top_k < log_p.shape[-1]:
            least = log_p.topk(self.top_k, dim=-1).values[:, -1:]
            log_p = log_p.masked_fill(log_p < least, -torch.inf)
        if self.top_p < 1:
            log_p = _nucleus(log_p, self.top_p)
        return (log_p + noise).argmax(-1)


def _nucleus(log_p, top_p: float):
    """Nucleus filtering (arXiv 1904.09751): the most likely token always stays."""
    ordered, order = log_p.softmax(-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= top_p
    outside[:, 0] = False
    return log_p.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
