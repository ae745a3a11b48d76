"""The parts of a run: their names, modules, time limits, and what they prove or measure."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ASYNC_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}


class NotRun(Exception):
    """A case cannot run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """What the cases of a part are given."""

    device: str
    is_tiny: bool  # small models and short runs, to rehearse where there is no GPU
    folder: Path  # for files of the part

    @property
    def sizes(self) -> dict:
        """Tokens, steps, repeats and batches of the speed parts."""
        if self.is_tiny:
            return dict(tokens=6, steps=3, repeats=1, batches=(2,), memory_runs=3)
        return dict(tokens=576, steps=30, repeats=3, batches=(8, 32), memory_runs=20)


Case = tuple[str, Callable[[], dict]]  # a name and what returns the case's results


@dataclass(frozen=True)
class Part:
    """A part of a run.

    `module` is in this package; its `cases(context, **arguments)` yields the cases.
    """

    module: str
    title: str
    limit_s: int
    arguments: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)

    def cases(self, context: Context) -> Iterator[Case]:
        module = importlib.import_module(f"benchmarks.gpu.{self.module}")
        for name, function in module.cases(context, **self.arguments):
            yield name, _no_such_allocator if self.environment and context.device == "cpu" else function


def _no_such_allocator():
    raise NotRun("cudaMallocAsync is an allocator of NVIDIA GPUs")


PARTS = {
    "tests": Part("test_runs", "The tests of captures and kernels", 240),
    "tests-async": Part("test_runs", "The same under cudaMallocAsync", 240, environment=ASYNC_ALLOCATOR),
    "faults": Part("fault_runs", "Failures and Cancel inside captures, and flat memory", 120),
    "faults-async": Part("fault_runs", "The same under cudaMallocAsync", 120, environment=ASYNC_ALLOCATOR),
    "kernels": Part("kernel_runs", "Each Triton kernel", 240),
    "ar-1b": Part("token_runs", "Janus-Pro-1B", 240, {"size": "1b"}),
    "flow-1b": Part("flow_runs", "JanusFlow-1.3B", 240, {"size": "1b"}),
    "comfyui": Part("comfyui_runs", "In ComfyUI's process", 240),
    "ar-7b": Part("token_runs", "Janus-Pro-7B", 300, {"size": "7b"}),
    "batches-1b": Part("token_runs", "Janus-Pro-1B, batches", 240, {"size": "1b", "batches": True}),
    "batches-7b": Part("token_runs", "Janus-Pro-7B, batches", 240, {"size": "7b", "batches": True}),
}
