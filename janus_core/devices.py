"""The devices that models run on."""

import platform
from pathlib import Path

import torch

from .errors import DeviceError, first_line
from .schema import shown

DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "mlu")


def usable_device(device=None) -> torch.device:
    """The named device; for None CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        DeviceError: there is no such device here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch raises any for a device it lacks
        raise DeviceError(f"There is no device {shown(device)} here ({first_line(error)}).") from None
    if found.type not in DEVICES:
        raise DeviceError(f"The device {device} cannot compute images: use one of {', '.join(DEVICES[:3])}.")
    return found


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
