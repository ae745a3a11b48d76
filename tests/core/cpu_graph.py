"""Captures on a CPU what a CUDA graph captures on a GPU: operations on fixed memory, without the Python around them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def writes(func) -> list[int]:
    """The positions of the arguments that an operation writes to."""
    return [k for k, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


class CPUGraph(TorchDispatchMode):
    """Logs the operations run under it, undoes their writes, and replays them on the same tensors.

    An operation that copies a value to the host raises RuntimeError, as it does in a CUDA graph capture.
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
            result = func(*args, **kwargs)
            if not writes(func):
                for old, new in zip(tensors(out), tensors(result)):
                    if old.data_ptr() != new.data_ptr():  # not a view of an argument
                        old.copy_(new)


def tensors(out):
    return [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, torch.Tensor)]


def capture(function):
    """A CPU's stand-in for janus_core.sampling.cuda_graphs.cuda_graph."""
    with CPUGraph() as graph:
        function()
    for tensor, before in reversed(graph.undo):
        tensor.copy_(before)
    return graph.replay
