"""Peak memory of a computation, counted from the sizes of the tensors that it makes; no memory is needed for them."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations in its context make, and when they are freed.

    Under FakeTensorMode, tensors have a size and no data. Storages that existed before are not counted. What kernels
    allocate and free inside one operation is not seen.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in inputs:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += self.sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key):
        self.now -= self.sizes.pop(key)


def _key(tensor):
    return tensor.untyped_storage()._cdata


class _FusedAttention(torch.autograd.Function):
    """The memory of an attention kernel on a GPU, which never stores the scores."""

    @staticmethod
    def forward(ctx, q, k, v, mask):
        out = torch.empty_like(q)
        log_sums = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, mask, out, log_sums)
        return out

    @staticmethod
    def backward(ctx, grad):
        return *(torch.empty_like(x) for x in ctx.saved_tensors[:3]), None


def fused_attention(q, k, v, mask=None, transformer_options=None):
    """Attention (see janus_core.attention) of undefined values, with the memory of a GPU's kernel."""
    return _FusedAttention.apply(q, k, v, mask)
