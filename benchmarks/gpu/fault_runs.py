"""Failures and Cancel inside captures, and memory that stays flat over many runs.

On a CPU, operations on fixed memory stand in for CUDA graphs, as in the tests.
"""

import gc
import logging
import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache, partial
from unittest import mock

import torch

import janus_core
from janus_core.sampling import attempts
from janus_core.sampling.cuda_graphs import capture_for

from .. import AR, FLOW, ROOT
from .parts import Context, NotRun

WARM_RUNS = 3  # whose memory may still grow: workspaces, compiled kernels


class Cancel(BaseException):
    """As ComfyUI's is."""


def cases(context: Context):
    for family in ("ar", "flow"):
        for fault in (None, RuntimeError, torch.cuda.OutOfMemoryError, Cancel):
            name = "no fault" if fault is None else fault.__name__
            yield f"{family}, {name} inside a capture", partial(run, context, family, fault)
        yield f"{family}, flat memory", partial(flat_memory, context, family)


@cache
def pipeline(context: Context, family: str):
    return janus_core.load(AR if family == "ar" else FLOW, device=context.device, dtype=torch.float32)


def generate(pipe, family: str):
    """Tokens or latents of a small image; with CUDA graphs, and the Triton decoder, where the device has them."""
    if family == "ar":
        return pipe.generate_tokens("a red circle", size=(64, 64), seed=1, cuda_graphs=True, triton=True)
    return pipe.generate_latents("a red circle", steps=6, seed=1, cuda_graphs=True)


def capture_on(context: Context):
    """What captures on the device; NotRun where nothing does."""
    device = torch.device(context.device)
    capture = capture_for(device, True)
    if capture is None and device.type == "cpu":
        sys.path.insert(0, str(ROOT / "tests" / "core"))
        from cpu_graph import capture
    if capture is None:
        raise NotRun("this device captures no CUDA graphs")
    return capture


@contextmanager
def injected(capture, fault=None):
    """While open, pipelines capture by `capture`, and each captured function raises `fault` when it has run.

    Failures of other captures do not count meanwhile. Yields a list that grows by one with each capture begun.
    """
    begun = []

    def hook(function):
        begun.append(True)

        def faulty():
            function()
            raise fault("injected")

        return capture(function if fault is None else faulty)

    captures = mock.patch("janus_core.pipeline.capture_for", lambda device, enabled: hook if enabled else None)
    with captures, mock.patch.object(attempts, "_failures", Counter()):
        yield begun


def run(context: Context, family: str, fault) -> dict:
    """The fault has to leave the result as it is, Cancel has to end the run, and the next run has to be right."""
    capture, pipe = capture_on(context), pipeline(context, family)
    make = pipe.generate_tokens if family == "ar" else pipe.generate_latents
    settings = {"size": (64, 64)} if family == "ar" else {"steps": 6}
    expected = make("a red circle", seed=1, cuda_graphs=False, **settings)
    logging.disable(logging.WARNING)
    try:
        with injected(capture, fault) as faulty:
            cancelled = False
            try:
                check(generate(pipe, family), expected)
            except Cancel:
                cancelled = True
            if cancelled != (fault is Cancel):
                raise AssertionError("the run was not cancelled" if fault is Cancel else "the run was cancelled")
        with injected(capture) as after:
            check(generate(pipe, family), expected)
    finally:
        logging.disable(logging.NOTSET)
    if not faulty or not after:
        raise AssertionError("nothing was captured")
    return {"captures": len(faulty) + len(after)}


def check(result, expected):
    """AssertionError unless two runs agree; rounding may turn a few tokens."""
    if result.dtype == torch.long:
        share = (result != expected).float().mean().item()
        if share > 0.05:
            raise AssertionError(f"{share:.0%} of the tokens differ")
    elif not torch.allclose(result, expected, atol=1e-2):
        raise AssertionError(f"latents differ by {(result - expected).abs().max().item():.3g}")


def memory(context: Context) -> float:
    """MB in use: of the GPU as its driver counts, else of tensors that the process holds."""
    gc.collect()
    if context.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6
    return sum(t.numel() * t.itemsize for t in gc.get_objects() if issubclass(type(t), torch.Tensor)) / 1e6


def flat_memory(context: Context, family: str) -> dict:
    """Memory after each of many runs, every third of them with a failure or a Cancel inside its capture."""
    capture, pipe, used = capture_on(context), pipeline(context, family), []
    logging.disable(logging.WARNING)
    try:
        for k in range(WARM_RUNS + context.sizes["memory_runs"]):
            fault = (None, None, RuntimeError, None, None, Cancel)[k % 6]
            with injected(capture, fault):
                try:
                    generate(pipe, family)
                except Cancel:
                    pass
            used.append(memory(context))
    finally:
        logging.disable(logging.NOTSET)
    grown = max(used[WARM_RUNS:]) - used[WARM_RUNS - 1]
    if grown > 32:
        raise AssertionError(f"memory grew by {grown:.0f} MB: {[round(mb) for mb in used]}")
    return {"runs": len(used), "MB": used[-1], "grown_MB": grown}
