"""Captures of CUDA graphs, with torch.cuda replaced: streams, failures, interruptions, memory."""

import gc
import threading
import time
import weakref
from collections import Counter, defaultdict
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from janus_core.sampling import attempts, cuda_graphs

GPU = torch.device("cuda", 0)


class Cancel(BaseException):
    """As ComfyUI's is."""


def fails():
    raise RuntimeError("operation not permitted when stream is capturing")


def runs_out_of_memory():
    raise torch.cuda.OutOfMemoryError("out of memory")


@pytest.fixture
def fake_cuda(monkeypatch):
    """What capturing needs of torch.cuda, without a GPU: a graph that keeps the function it captured."""
    state = SimpleNamespace(streams=0, waits=0, resets=0, capturing=0, function=None, is_cut_off=False)

    class Graph:
        def replay(self):
            self.function()

        def reset(self):
            state.resets += 1

    class Stream:
        def __init__(self, device):
            state.streams += 1

    @contextmanager
    def graph(new, pool, stream, capture_error_mode):
        new.function = state.function
        state.capturing += 1
        assert state.capturing == 1, "two captures at a time"
        yield
        state.ended = True
        state.capturing -= 1
        if state.is_cut_off:
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, value in dict(
        CUDAGraph=Graph,
        Stream=Stream,
        graph=graph,
        graph_pool_handle=lambda: (0, 1),
        device=lambda device: nullcontext(),
        stream=lambda stream: nullcontext(),
        current_stream=lambda device: None,
        get_allocator_backend=lambda: "native",
        synchronize=lambda device: setattr(state, "waits", state.waits + 1),
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda_graphs, "_streams", defaultdict(list))
    monkeypatch.setattr(attempts, "_failures", Counter())
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device, **kwargs: ones(*size))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return state


def test_a_stream_captures_one_live_graph_at_a_time(fake_cuda):
    calls = []
    fake_cuda.function = lambda: calls.append(1)
    first, second = (cuda_graphs.cuda_graph(fake_cuda.function, GPU) for _ in range(2))
    first(), second()
    assert fake_cuda.streams == 2 and fake_cuda.waits == 0 and len(calls) == 4  # two of them in the captures
    del first
    assert fake_cuda.waits == fake_cuda.resets == 1
    cuda_graphs.cuda_graph(fake_cuda.function, GPU)
    assert fake_cuda.streams == 2


def test_after_two_captures_that_were_cut_off_none_is_tried(fake_cuda):
    capture = cuda_graphs.capture_for(GPU, True)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not permitted"):
            capture(fails)
    assert cuda_graphs.capture_for(GPU, True) is not None  # the function failed, the captures ended properly
    fake_cuda.is_cut_off = True
    for _ in range(3):
        with pytest.raises(RuntimeError, match="previous error"):
            capture(runs_out_of_memory)
    assert cuda_graphs.capture_for(GPU, True) is not None  # the next run may have more
    for _ in range(2):
        assert cuda_graphs.capture_for(GPU, True) is not None
        with pytest.raises(RuntimeError, match="previous error"):
            capture(fails)
    assert cuda_graphs.capture_for(GPU, True) is None
    with pytest.raises(RuntimeError, match="earlier"):
        capture(print)
    assert cuda_graphs.capture_for(torch.device("cuda", 1), True) is not None


@pytest.mark.parametrize("cut_off", [False, True])
def test_an_interruption_is_raised_after_the_capture_has_ended(fake_cuda, cut_off):
    def interrupted():
        raise Cancel

    fake_cuda.is_cut_off = cut_off
    with pytest.raises(Cancel):
        cuda_graphs.cuda_graph(interrupted, GPU)
    assert fake_cuda.ended


@pytest.mark.parametrize("error", [RuntimeError, KeyError, Cancel])
def test_no_tensor_of_a_failed_capture_outlives_it(fake_cuda, monkeypatch, error):
    """Also those of an error that was being handled; without garbage collection."""
    tensors = []

    def allocate():
        tensor = torch.zeros(3)
        tensors.append(weakref.ref(tensor))
        return tensor

    def inner():
        held = allocate()
        raise ValueError(len(held))

    def step():
        held = allocate()
        try:
            inner()
        except ValueError as first:
            raise error(len(held)) from first

    capture_of = torch.cuda.graph

    @contextmanager
    def checked(*args, **kwargs):
        with capture_of(*args, **kwargs):
            yield
            assert len(tensors) == 2 and all(tensor() is None for tensor in tensors)

    monkeypatch.setattr(torch.cuda, "graph", checked)
    gc.disable()
    try:
        with pytest.raises(error):
            cuda_graphs.cuda_graph(step, GPU)
    finally:
        gc.enable()
    assert tensors


def test_captures_of_two_threads_take_turns(fake_cuda):
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(cuda_graphs.cuda_graph(lambda: time.sleep(0.05), GPU)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3


def test_memory_of_graphs_goes_back_to_the_driver_where_it_can(fake_cuda, monkeypatch):
    calls = []
    driver = SimpleNamespace(
        cuDeviceGet=lambda handle, index: 0, cuDeviceGraphMemTrim=lambda handle: calls.append(1) or 0
    )
    monkeypatch.setattr(cuda_graphs.ctypes, "CDLL", lambda name: driver)
    assert not cuda_graphs.trim_graph_memory(GPU) and not calls  # torch's own allocator
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    fake_cuda.function = print
    del [cuda_graphs.cuda_graph(print, GPU)][0]
    assert len(calls) == 1
    del driver.cuDeviceGraphMemTrim  # an older driver
    assert not cuda_graphs.trim_graph_memory(GPU)

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(cuda_graphs.ctypes, "CDLL", missing)
    assert not cuda_graphs.trim_graph_memory(GPU)


def test_what_runs_is_logged_once(fake_cuda, monkeypatch, caplog):
    attempts.log_once.cache_clear()
    monkeypatch.delenv(cuda_graphs.SWITCH, raising=False)
    with caplog.at_level("INFO"):
        for _ in range(3):
            cuda_graphs.capture_for(GPU)
            cuda_graphs.capture_for(torch.device("cpu"))
    (record,) = caplog.records
    assert record.levelname == "INFO" and cuda_graphs.SWITCH in record.getMessage()
