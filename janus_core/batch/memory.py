"""How many images fit into memory at once."""

import os
from pathlib import Path

import torch

from ..networks.cache import KVCache

LARGEST = {"cpu": 8, "cuda": 64}  # beyond these, more images at once are hardly faster
SHARE = 0.7  # of the free memory
PROMPT_TOKENS = 128  # room for the prompt, in tokens
DECODER_BYTES = 2 * 2**30  # of the image decoder, which takes one image at a time
CGROUP = Path("/sys/fs/cgroup")


def batch_size_for(pipe) -> int:
    """The batch size of a loaded pipeline: what the free memory of its device holds, a power of 2.

    An image needs keys and values of two rows, and about a tenth more for the pass of a token.
    """
    largest = LARGEST.get(pipe.device.type, 8)
    fit = int((free_memory(pipe.device) * SHARE - DECODER_BYTES) / bytes_per_image(pipe))
    size = 1
    while size * 2 <= min(fit, largest):
        size *= 2
    return size


def bytes_per_image(pipe) -> float:
    """Bytes that one more image of the native size takes, both rows of guidance together."""
    positions = (pipe.image_size // pipe.patch_size) ** 2 + PROMPT_TOKENS
    return 1.1 * KVCache.bytes(pipe.model.params.llama, 2, positions, pipe.dtype, pipe.device)


def free_memory(device: torch.device) -> int:
    """Free bytes of a device; of a CPU, also within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")] if hasattr(os, "sysconf") else []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")] or free
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(limit - used)
    except (OSError, ValueError):  # not Linux, or no limit
        pass
    return min(free, default=8 * 2**30)
