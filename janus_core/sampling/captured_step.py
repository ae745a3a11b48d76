"""A function of tensors that replaces itself by a CUDA graph of its work."""

from collections.abc import Callable

import torch

from .attempts import attempt, log_once
from .cuda_graphs import Capture
from .step_check import SAME_KERNELS_BAR, relative_error, require


class CapturedStep:
    """A function of tensors that is captured at its second call and replayed from the third on.

    The first call runs whatever is set up on first use. The replay is used only if it gives both calls' results; where
    it does not, or the capture fails, the function itself keeps running.

    Args:
        name: for the log.
        function: from tensors, which have the same shapes at every call, to one tensor.
    """

    def __init__(self, name: str, function: Callable[..., torch.Tensor], capture: Capture):
        self.name, self.function, self.capture = name, function, capture
        self.calls, self.first, self.replay = 0, None, None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.replay is not None:
            return self._replayed(inputs).clone()
        result = self.function(*inputs)
        if self.calls == 1:
            self.first = [value.clone() for value in inputs], result.clone()
        elif self.first is not None:
            what = self.name, result.device, result.dtype, result.shape
            self.replay = attempt(self.name, what, lambda: self._make([self.first, (inputs, result)]))
            self.first = None
        return result

    def _make(self, cases):
        """The replay; CheckFailed where it does not give the result of each (inputs, result)."""
        inputs, result = cases[-1]
        self.inputs, self.output = [value.clone() for value in inputs], torch.empty_like(result)

        def step():
            self.output.copy_(self.function(*self.inputs))

        self.replay = self.capture(step)
        try:
            errors = [relative_error(self._replayed(inputs), result) for inputs, result in cases]
            require((errors, SAME_KERNELS_BAR))
            log_once(f"{self.name} runs as a CUDA graph.")
            return self.replay
        finally:
            self.replay = None

    def _replayed(self, inputs):
        for static, value in zip(self.inputs, inputs):
            static.copy_(value)
        self.replay()
        return self.output
