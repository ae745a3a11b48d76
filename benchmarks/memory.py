"""Memory of a process, as Linux counts it."""

import threading
from pathlib import Path


def read(pid: int | None) -> dict[str, int] | None:
    """Bytes: `peak` (VmHWM, with pages of mapped files) and `private` (RssAnon); None where they cannot be known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: 1024 * int(values[key].split()[0]) for name, key in (("peak", "VmHWM"), ("private", "RssAnon"))}


class PrivatePeak:
    """The largest private memory of a process while the `with` block runs, looked up every 20 ms, as `bytes`."""

    def __init__(self, pid: int | None):
        self.pid, self.bytes = pid, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self._end.wait(0.02) and (now := read(self.pid)):
            self.bytes = max(self.bytes, now["private"])

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
