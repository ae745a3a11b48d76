"""Recording work on a CPU as a CUDA graph does on a GPU: operations on fixed memory, without the Python around them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def writes(func) -> list[int]:
    """The places of the arguments that an operation writes to."""
    return [k for k, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


class Recording(TorchDispatchMode):
    """Keeps the operations done under it, undoes what they wrote, and does them again on the same tensors.

    An operation that brings a value to the host raises RuntimeError, as it does while a GPU records.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.undo = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            raise RuntimeError(f"{func} needs the host")
        kwargs = kwargs or {}
        self.undo += [(args[k], args[k].clone()) for k in writes(func)]
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            if not writes(func):
                for before, now in zip(tensors(out), tensors(again)):
                    if before.data_ptr() != now.data_ptr():  # not a view of an argument
                        before.copy_(now)


def tensors(out):
    return [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, torch.Tensor)]


def record(function):
    """What janus_core.sampling.cuda_graphs.recorder gives, on a CPU."""
    with Recording() as recording:
        function()
    for tensor, before in reversed(recording.undo):
        tensor.copy_(before)
    return recording.replay
