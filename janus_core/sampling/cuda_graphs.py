"""CUDA graphs: a function's GPU work is captured once and replayed without Python.

Launching a small kernel costs the host more than running it costs a fast GPU; in a replay all launch together. A
captured function reads and writes the same memory every time. Opt-in, since it has not yet run on a GPU: see
`capture_for`.
"""

import ctypes
import gc
import os
import sys
import threading
import traceback
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F

from .attempts import log_once, may_try, note_failure

SWITCH = "JANUS_CUDA_GRAPHS"

Capture = Callable[[Callable[[], None]], Callable[[], None]]  # from a function to its replay

_lock = threading.RLock()  # one capture at a time in a process, and no graph destroyed during one
_streams = defaultdict(list)  # by device: capture streams whose graph is gone


def capture_for(device: torch.device, enabled: bool | None = None) -> Capture | None:
    """What captures functions on a device; None where capturing is off or not possible.

    Args:
        enabled: None reads the environment: JANUS_CUDA_GRAPHS=1 turns capturing on.
    """
    if device.type != "cuda" or not torch.version.cuda:
        return None
    if enabled is None:
        enabled = os.environ.get(SWITCH) == "1"
    if not enabled:
        log_once(f"Janus runs plain steps on {device}: CUDA graphs are off ({SWITCH}=1 turns them on).")
        return None
    return partial(cuda_graph, device=device) if may_try(("capture", device)) else None


def cuda_graph(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Captures what `function` does on a GPU, without running it; returns its replay.

    Tensors that are read after a replay must exist before the capture: memory allocated in it belongs to the graph.
    What the function raises, interruptions included, is raised after the capture has ended.
    """
    if not may_try(("capture", device)):
        raise RuntimeError("earlier captures were cut off")
    with _lock:
        graph, stream = _capture(function, device)

    def replay():
        graph.replay()

    weakref.finalize(replay, _release, graph, device, stream).atexit = False
    return replay


def _capture(function, device):
    """The graph of what a function does, and the stream that it was captured on."""
    stream = _streams[device].pop() if _streams[device] else torch.cuda.Stream(device)
    graph, pool, problem = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), None
    # A capture that is cut off leaves its stream the current one; the outer context restores it.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        with torch.cuda.stream(stream):  # allocates the libraries' workspaces for this stream outside the graph
            x = torch.ones(8, 8, dtype=torch.float16, device=device)
            F.linear(x, x), F.linear(x, x, x[0])
        try:
            with no_garbage_collection(), torch.cuda.graph(graph, pool, stream, capture_error_mode="relaxed"):
                problem = error_of(function)  # the capture itself can still end properly
        except Exception as error:
            note_failure(("capture", device), problem or error)  # the allocator may be inconsistent
            with suppress(Exception):  # otherwise the allocator keeps everything that is freed from now on
                torch._C._cuda_endAllocateToPool(device.index, pool)
            if problem is None or isinstance(problem, Exception):
                raise
    if problem is not None:
        try:
            raise problem
        finally:
            problem = None  # its traceback holds this frame, and with it the graph
    return graph, stream


def error_of(function: Callable[[], None]) -> BaseException | None:
    """Runs a function; returns what it raised, without the frames, which hold tensors.

    A tensor that is allocated in a capture must be freed in it: later, cudaMallocAsync may end the process.
    """
    try:
        function()
    except BaseException as error:
        chain, seen = [error], set()
        while chain:
            one = chain.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]
        return error
    return None


def _release(graph: torch.cuda.CUDAGraph, device: torch.device, stream: torch.cuda.Stream):
    """Waits for a graph's replays, destroys the graph, gives its memory back, and returns its stream for reuse."""
    with _lock:
        torch.cuda.synchronize(device)
        graph.reset()
        trim_graph_memory(device)
        _streams[device].append(stream)


def trim_graph_memory(device: torch.device) -> bool:
    """Gives memory that destroyed graphs allocated under cudaMallocAsync back to the device.

    Returns:
        Whether the driver did it; torch's own allocator keeps graphs' memory itself, so that nothing is to be done.
    """
    if torch.cuda.get_allocator_backend() != "cudaMallocAsync":
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        handle = ctypes.c_int()
        found = driver.cuDeviceGet(ctypes.byref(handle), device.index or 0) == 0
        return found and driver.cuDeviceGraphMemTrim(handle) == 0  # since CUDA 11.4
    except (OSError, AttributeError):
        return False


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
