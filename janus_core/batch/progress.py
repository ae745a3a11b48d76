"""The progress bar and the summary of a run."""

import json
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

from tqdm import tqdm

from ..files import write_text
from .records import RunFolder
from .worker import Result


class Stopped(BaseException):
    """A signal came while others were waited for. Not an Exception, which Ray would log as its own failure."""


class Stop:
    """Catches Ctrl-C and SIGTERM, so that a run can drop its batch and end in order; a second signal ends it at once.

    Attributes:
        signal: the number of the signal that came, or None.
        raises: the first signal raises Stopped, for code that waits for others.
    """

    def __init__(self):
        self.signal, self.raises, self.before = None, False, {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _caught(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if self.raises:
            raise Stopped

    def raise_if_set(self):
        """Ends the process as the signal asks to."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            sys.exit(128 + self.signal)


@dataclass
class Progress:
    """Counts results, and shows them on one bar for all workers.

    Args:
        images: how many the run will make.
    """

    images: int
    results: list[Result] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.bar = tqdm(total=self.images, unit="image", smoothing=0.1)

    def start(self):
        """Starts the clock again, when what comes before the first image is done."""
        self.began = time.perf_counter()

    def add(self, result: Result):
        """Counts a result; failures are printed at once."""
        self.results.append(result)
        if result.status == "failed":
            tqdm.write(f"{result.job} failed: {result.error}", file=sys.stderr)
        if result.status == "done":
            self.bar.update(result.images)
            tokens = self._sum("tokens")
            if tokens:
                self.bar.set_postfix_str(f"{tokens / max(self.seconds, 1e-9):.0f} tokens/s", refresh=False)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def _sum(self, name: str):
        return sum(getattr(result, name) for result in self.results)

    def close(self):
        self.bar.close()

    def summary(self, outputs: int, there: set[str], **more) -> dict:
        """The run in numbers.

        Args:
            outputs: of the whole run or shard.
            there: paths that were there before; others that are skipped were made by a worker that then died.
            more: goes into it as it is.
        """
        seconds = self.seconds
        failed = [result for result in self.results if result.status == "failed"]
        done = [result for result in self.results if result.status != "failed" and result.path not in there]
        images = self._sum("images")
        return {
            **more,
            "outputs": outputs,
            "done": len(done),
            "skipped": len(there),
            "failed": len(failed),
            "images": images,
            "tokens": self._sum("tokens"),
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 4),
            "tokens_per_second": round(self._sum("tokens") / seconds, 2),
            "sampling_seconds": round(self._sum("seconds"), 3),
            "retries": self._sum("retries"),
            "failures": [{"path": r.path, "job": r.job, "error": r.error} for r in failed],
        }


def write_summary(folder: RunFolder, summary: dict, shard: tuple[int, int]):
    """OUT.run/summary.json, or one per shard. Returns its path."""
    index, count = shard
    path = folder.run / ("summary.json" if count == 1 else f"summary-{index}-of-{count}.json")
    write_text(path, json.dumps(summary, ensure_ascii=False, indent=1) + "\n", folder.temporary)
    return path
