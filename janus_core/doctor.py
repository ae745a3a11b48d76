"""What a bug report needs: versions, devices, acceleration, self-tests, checkpoints.

It names no folders of the user's.
"""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

import torch

from . import __version__
from .checkpoint import detect_family
from .devices import cpu_name
from .download import models_folder
from .errors import JanusError, first_line
from .loading import load
from .operations import multiplies_bf16, packed, packed_int8
from .sampling.cuda_graphs import SWITCH, capture_for
from .sampling.graph_decode import TRITON_SWITCH
from .triton_decoder.decoder import MIN_TRITON, triton_version

DEMO = Path(__file__).resolve().parents[1] / "demo" / "janus-pro-demo"
PACKAGES = (
    "torch",
    "triton",
    "triton-windows",
    "comfy-kitchen",
    "safetensors",
    "tokenizers",
    "diffusers",
    "accelerate",
)
PROMPT, SIZE = "a red circle", (64, 64)


def report(device: torch.device, model: Path = DEMO) -> str:
    """The report as Markdown; the self-tests generate an image's tokens with a checkpoint of Janus-Pro's."""
    sections = {
        "Versions": versions(),
        "Devices": devices(),
        "Acceleration": acceleration(device),
        "Self-test": self_test(device, model),
        "Checkpoints": checkpoints(models_folder()),
    }
    lines = [f"# janus_core {__version__}"]
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", *(f"- {row}" for row in rows)]
    return "\n".join(lines)


def versions() -> list[str]:
    found = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return [*found, f"torch's CUDA: {torch.version.cuda or 'none'}"]


def devices() -> list[str]:
    """Processors and their memory, free and in total."""
    threads = torch.get_num_threads()
    found = [f"CPU {cpu_name()}, {os.cpu_count()} cores, {threads} torch threads{_host_memory()}"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
            found.append(f"cuda:{index} {name}, sm_{capability[0]}{capability[1]}, {_share(free, total)}")
        found.append(f"allocator {torch.cuda.get_allocator_backend()}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def acceleration(device: torch.device) -> list[str]:
    """Which faster ways of computing the device has, and which of them are on."""
    rows = [f"{name}={os.environ[name]}" for name in (SWITCH, TRITON_SWITCH) if name in os.environ]
    version = triton_version()
    rows.append(f"CUDA graphs: {'on' if capture_for(device) else 'off'}, opt-in ({SWITCH}=1)")
    able = "not installed, or broken" if version is None else "too old" if version < MIN_TRITON else "can be imported"
    rows.append(f"Triton: {able}; its decoder is opt-in ({TRITON_SWITCH}=1)")
    found = {
        "packed weights": packed.available(torch.float32),
        "int8 products": packed_int8.available(),
        "bf16 products": multiplies_bf16(),
    }
    rows.append("CPU: " + ", ".join(f"{name} {'yes' if value else 'no'}" for name, value in found.items()))
    return rows


def self_test(device: torch.device, model: Path) -> list[str]:
    """Tokens of one image by plain steps, by a captured step, and by the Triton decoder."""
    try:
        pipe = load(model, device=device)
        began = time.perf_counter()
        plain = _tokens(pipe, cuda_graphs=False)
        rows = [f"plain steps on {device} in {str(pipe.dtype).removeprefix('torch.')}: {_seconds(began)}"]
    except (JanusError, RuntimeError) as error:
        return [f"not run: {first_line(error)}"]
    if capture_for(device, True) is None:
        return [*rows, "CUDA graphs: not run, since they need an NVIDIA GPU"]
    for name, triton in (("CUDA graph", False), ("CUDA graph with the Triton decoder", True)):
        began = time.perf_counter()
        try:
            same = (_tokens(pipe, cuda_graphs=True, triton=triton) == plain).float().mean().item()
            rows.append(f"{name}: {same:.0%} of the tokens are the same (rounding changes a few), {_seconds(began)}")
        except RuntimeError as error:
            rows.append(f"{name}: FAILED, {first_line(error)}")
    return rows


def checkpoints(folder: Path) -> list[str]:
    """Names and families of what lies in the folder for checkpoints."""
    places = sorted((folder / "janus").glob("*")) if (folder / "janus").is_dir() else []
    rows = []
    for path in places:
        if path.is_dir() or path.suffix == ".safetensors":
            try:
                rows.append(f"{path.name}: {detect_family(path)}")
            except (JanusError, OSError) as error:
                rows.append(f"{path.name}: {type(error).__name__}")
    return rows or ["none in models/janus"]


def _tokens(pipe, **settings) -> torch.Tensor:
    return pipe.generate_tokens(PROMPT, size=SIZE, seed=0, **settings)


def _seconds(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


def _share(free: float, total: float) -> str:
    return f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _host_memory() -> str:
    """Linux only."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return ", " + _share(page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return ""
