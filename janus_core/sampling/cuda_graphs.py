"""CUDA graphs: a function's GPU work is captured once and replayed without Python.

Launching a small kernel costs the host more than running it costs a fast GPU; in a replay all launch together. A
captured function reads and writes the same memory every time. Opt-in, since it has not yet run on a GPU: see
`capture_for`.
"""

import gc
import logging
import os
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F

TOLERANCE = 0.1  # of the norm: many times the rounding of 16 bits, and far below the effect of a mistake
SWITCH = "JANUS_CUDA_GRAPHS"

Capture = Callable[[Callable[[], None]], Callable[[], None]]  # from a function to its replay

_streams = defaultdict(list)  # by device: capture streams whose graph is gone
_failed: set[torch.device] = set()  # where a capture was cut off, which may leave the allocator inconsistent


def capture_for(device: torch.device, enabled: bool | None = None) -> Capture | None:
    """What captures functions on a device; None where capturing is off or not possible.

    Args:
        enabled: None reads the environment: JANUS_CUDA_GRAPHS=1 turns capturing on.
    """
    if enabled is None:
        enabled = os.environ.get(SWITCH) == "1"
    able = device.type == "cuda" and torch.version.cuda and device not in _failed
    return partial(cuda_graph, device=device) if enabled and able else None


def cuda_graph(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Captures what `function` does on a GPU, without running it; returns its replay.

    Tensors that are read after a replay must exist before the capture: memory allocated in it belongs to the graph.
    """
    if device in _failed:
        raise RuntimeError("an earlier capture was cut off")
    try:
        stream = _streams[device].pop()
    except IndexError:
        stream = torch.cuda.Stream(device)
    graph, pool, problem = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), None
    # A capture that is cut off leaves its stream the current one; the outer context restores it.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        with torch.cuda.stream(stream):  # allocates the libraries' workspaces for this stream outside the graph
            x = torch.ones(8, 8, dtype=torch.float16, device=device)
            F.linear(x, x), F.linear(x, x, x[0])
        try:
            with no_garbage_collection(), torch.cuda.graph(graph, pool, stream, capture_error_mode="relaxed"):
                try:
                    function()
                except Exception as error:  # the capture itself can still end properly
                    problem = error
        except Exception:
            if not isinstance(problem, torch.cuda.OutOfMemoryError):
                _failed.add(device)
            with suppress(Exception):  # otherwise the allocator keeps everything that is freed from now on
                torch._C._cuda_endAllocateToPool(device.index, pool)
            raise
    if problem is not None:
        try:
            raise problem
        finally:
            problem = None  # its traceback holds this frame, and with it the graph

    def replay():
        graph.replay()

    weakref.finalize(replay, _release, graph, device, stream).atexit = False
    return replay


def _release(graph: torch.cuda.CUDAGraph, device: torch.device, stream: torch.cuda.Stream):
    """Waits for a graph's replays before the graph is destroyed, and returns its stream for reuse."""
    torch.cuda.synchronize(device)
    _streams[device].append(stream)


@contextmanager
def no_garbage_collection():
    """Keeps old graphs and kernels from being destroyed during a capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def agree(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether both are the same up to rounding."""
    return bool((result - expected).float().norm() <= TOLERANCE * expected.float().norm())


def try_capture(name: str, make: Callable, expected: torch.Tensor):
    """Captures a step and checks it before anything relies on it.

    Args:
        make: captures and replays the step; returns (its result, anything).
        expected: the result of the uncaptured step.

    Returns:
        What `make` returned beside the result; None, with a warning, where the capture fails or its result differs.
    """
    try:
        result, made = make()
        if agree(result, expected):
            return made
        problem = "its result differs"
    except Exception as error:  # of drivers, compilers, memory: the uncaptured step still works
        problem = str(error).strip().split("\n")[0] or type(error).__name__
    logging.warning(f"{name} could not be captured as a CUDA graph, sampling continues without it: {problem}")
    return None


class CapturedStep:
    """A function of tensors that is captured at its second call and replayed from the third on.

    The first call runs whatever is set up on first use. Where the capture fails, the function itself keeps running.

    Args:
        name: for the warning.
        function: from tensors, which have the same shapes at every call, to one tensor.
    """

    def __init__(self, name: str, function: Callable[..., torch.Tensor], capture: Capture):
        self.name, self.function, self.capture = name, function, capture
        self.calls, self.replay = 0, None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.replay is not None:
            for static, value in zip(self.inputs, inputs):
                static.copy_(value)
            self.replay()
            return self.output.clone()
        result = self.function(*inputs)
        if self.calls == 2:
            self.inputs, self.output = [value.clone() for value in inputs], torch.empty_like(result)
            self.replay = try_capture(self.name, self._make, result)
        return result

    def _make(self):
        def step():
            self.output.copy_(self.function(*self.inputs))

        replay = self.capture(step)
        replay()
        return self.output, replay
