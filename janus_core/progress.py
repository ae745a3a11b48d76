"""Progress of a run, and cancelling it."""

from collections.abc import Callable


class Cancelled(Exception):
    """A callback returned False."""


Callback = Callable[[int, int], bool | None]  # (steps done, steps in all); False cancels the run


def report(callback: Callback | None, done: int, total: int):
    """Calls a callback, if there is one. Raises Cancelled when it returns False."""
    if callback is not None and callback(done, total) is False:
        raise Cancelled(f"Cancelled after {done} of {total} steps.")
