"""Recording work once and doing it again without Python, as CUDA graphs do.

Starting a small kernel costs the host more than running it costs a fast GPU; replayed, all of them start together.
What is recorded reads and writes the same memory every time.
"""

import gc
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F

AGREEMENT = 0.1  # of the norm: many times what 16 bits lose, and far below what an error would change

Record = Callable[[Callable[[], None]], Callable[[], None]]  # makes of a function what does its work again

_streams = defaultdict(list)  # by device: streams that recorded a graph which is gone
_failed: set[torch.device] = set()  # where a recording broke off, which may leave the allocator in disorder


def recorder(device: torch.device) -> Record | None:
    """What records work on a device, or None where nothing can."""
    able = device.type == "cuda" and torch.version.cuda and device not in _failed
    return partial(cuda_graph, device=device) if able else None


def cuda_graph(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Records what `function` does on a GPU, without doing it; returns what does it.

    Tensors that are read after a replay have to be there before: what is made while recording belongs to the graph.
    """
    if device in _failed:
        raise RuntimeError("an earlier recording broke off")
    try:
        stream = _streams[device].pop()
    except IndexError:
        stream = torch.cuda.Stream(device)
    graph, pool, problem = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), None
    # A recording that breaks off leaves its stream the current one; the outer context sets that right.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        with torch.cuda.stream(stream):  # the libraries' workspaces for it are then ordinary memory
            x = torch.ones(8, 8, dtype=torch.float16, device=device)
            F.linear(x, x), F.linear(x, x, x[0])
        try:
            with no_garbage_collection(), torch.cuda.graph(graph, pool, stream, capture_error_mode="relaxed"):
                try:
                    function()
                except Exception as error:  # the recording itself may still end well
                    problem = error
        except Exception:
            _failed.add(device)
            with suppress(Exception):  # an allocator that was not told of the end would keep all that is freed
                torch._C._cuda_endAllocateToPool(device.index, pool)
            raise
    if problem is not None:
        try:
            raise problem
        finally:
            problem = None  # its traceback holds this frame, and with it the graph

    def replay():
        graph.replay()

    weakref.finalize(replay, _finish, graph, device, stream).atexit = False
    return replay


def _finish(graph: torch.cuda.CUDAGraph, device: torch.device, stream: torch.cuda.Stream):
    """Waits for a graph's replays before it goes, and gives its stream to the next one."""
    torch.cuda.synchronize(device)
    _streams[device].append(stream)


@contextmanager
def no_garbage_collection():
    """Old graphs and kernels are not destroyed while another is recorded."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def agree(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether both are the same up to rounding."""
    return bool((result - expected).float().norm() <= AGREEMENT * expected.float().norm())


def attempt(name: str, make: Callable, expected: torch.Tensor):
    """Tries recorded work before anything relies on it.

    Args:
        make: records and replays it; returns (what it computed, anything).
        expected: what it has to compute.

    Returns:
        What `make` returned beside the result; None, with a warning, where recording fails or computes another result.
    """
    try:
        result, made = make()
        if agree(result, expected):
            return made
        problem = "it computes something else"
    except Exception as error:  # of drivers, compilers, memory: the work can be done without
        problem = str(error).strip().split("\n")[0] or type(error).__name__
    logging.warning(f"{name} could not be recorded, drawing goes on more slowly: {problem}")
    return None


class Recorded:
    """A function of tensors whose work is recorded at the second call and replayed from the third on.

    The first call sets up what is set up on first use. Where recording does not work the function itself goes on.

    Args:
        name: of the function, for a warning.
        function: of tensors that have the same shapes at every call, to one tensor.
    """

    def __init__(self, name: str, function: Callable[..., torch.Tensor], record: Record):
        self.name, self.function, self.record = name, function, record
        self.calls, self.again = 0, None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.again is not None:
            for kept, given in zip(self.inputs, inputs):
                kept.copy_(given)
            self.again()
            return self.output.clone()
        result = self.function(*inputs)
        if self.calls == 2:
            self.inputs, self.output = [given.clone() for given in inputs], torch.empty_like(result)
            self.again = attempt(self.name, self._make, result)
        return result

    def _make(self):
        def work():
            self.output.copy_(self.function(*self.inputs))

        again = self.record(work)
        again()
        return self.output, again
