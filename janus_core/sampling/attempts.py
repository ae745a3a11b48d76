"""What may fail on a GPU while a slower way works: tried twice per process, with a warning each time."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from functools import cache

import torch

ATTEMPTS = 2

_failures: Counter[Hashable] = Counter()


class CheckFailed(RuntimeError):
    """A captured or fused step does not compute what the plain one does."""


def may_try(what: Hashable) -> bool:
    """Whether something has failed fewer than ATTEMPTS times."""
    return _failures[what] < ATTEMPTS


def note_failure(what: Hashable, error: BaseException):
    """Counts a failure, unless memory ran out: the next run may have more."""
    if not isinstance(error, torch.cuda.OutOfMemoryError):
        _failures[what] += 1


def attempt(name: str, what: Hashable, make: Callable):
    """Returns make(), or None where it fails or has failed too often.

    Args:
        name: for the warning.
        what: what counts as the same attempt: the device, the shapes, the kernels.
    """
    if not may_try(what):
        return None
    try:
        return make()
    except Exception as error:  # of drivers, compilers, memory: the plain step still works
        note_failure(what, error)
        problem = str(error).strip().split("\n")[0] or type(error).__name__
        logging.warning(f"{name} could not be captured as a CUDA graph, sampling continues without it: {problem}")
        return None


@cache
def log_once(message: str):
    """Logs a message at info, the first time in a process."""
    logging.info(message)
