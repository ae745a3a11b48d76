"""The header of every result: commit, date, versions and hardware."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from janus_core.devices import cpu_name

from . import ROOT


def run_info(device: torch.device) -> dict[str, str]:
    """What a result must be read with; to be called before the run writes anything."""
    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "hardware": hardware(device),
    }


def header(info: dict[str, str]) -> str:
    """One line of Markdown."""
    host = f"ComfyUI {info['comfyui']}" if "comfyui" in info else f"transformers {info['transformers']}"
    return (
        f"Measured at commit {info['commit']} on {info['date']} with Python {info['python']}, torch {info['torch']}, "
        f"{host} on {info['hardware']}."
    )


def commit(root: Path = ROOT) -> str:
    """The short commit id of a checkout, with "-dirty" if tracked files other than results differ; else "unknown"."""

    def git(*args) -> str:
        # The ceiling hides a repository around the pack, such as ComfyUI's own.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def hardware(device: torch.device) -> str:
    """The GPU, if the device is one, and the processor with its cores."""
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    pages = ["large pages"] if large_pages() else []
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return ", ".join([*gpu, cpu_name(), f"{cores} cores", f"{threads} thread{'s' * (threads > 1)}", *pages])


def large_pages() -> bool:
    """Whether torch asks Linux for large pages."""
    return os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
