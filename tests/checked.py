"""Comparing results with golden tensors."""

import torch

TOLERANCE = 1e-4


class Checked:
    """Compares results with the golden tensors of a case and tracks which of these were used.

    Integers must be equal, floats within a tolerance.
    """

    def __init__(self, expected: dict[str, torch.Tensor]):
        self.expected, self.seen = expected, set()

    def __call__(self, name: str, result, tolerance: float = TOLERANCE):
        expected, result = self.expected[name], torch.as_tensor(result)
        assert result.shape == expected.shape, name
        if expected.is_floating_point():
            assert (result - expected).abs().max() <= tolerance, name
        else:
            assert torch.equal(result.long(), expected.long()), name
        self.seen.add(name)

    def all(self):
        assert self.seen == set(self.expected), set(self.expected) - self.seen
