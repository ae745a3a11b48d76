"""Runs cases in a guarded worker process and tabulates the outcomes."""

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AREAS = ("weights", "configs", "images", "settings", "commands", "training", "finetunes", "loras", "settings")
HANG = 20  # seconds
START = 180  # seconds that a worker may take to import and build its checkpoints


class Worker:
    """A worker process; `run` restarts it after a hang or a crash."""

    def __init__(self, seed: str, fault: str):
        self.arguments, self.process = (seed, fault), None

    def start(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        command = [sys.executable, "-m", "tests.fuzz.worker", *self.arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)
        self.warm = set()
        assert self._answer(START) == "ready\n", "the worker did not start"

    def run(self, area: str, number: int) -> dict:
        if self.process is None:
            self.start()
        self.process.stdin.write(f"{area} {number}\n")
        self.process.stdin.flush()
        line = self._answer(HANG if area in self.warm else START)
        self.warm.add(area)
        if line:
            return json.loads(line)
        outcome = "hang" if line is None else "crash"
        self.stop()
        return {"outcome": outcome, "detail": "", "label": "", "seconds": HANG, "right": False}

    def _answer(self, seconds: float) -> str | None:
        """The next line, "" if the process ended, None if it took too long."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Report:
    """Outcomes by area and what failed."""

    seed: str
    counts: dict = field(default_factory=lambda: defaultdict(Counter))
    failures: list = field(default_factory=list)
    slowest: tuple = (0, "")

    def add(self, area: str, number: int, answer: dict):
        self.counts[area]["right" if answer["right"] else "failed"] += 1
        self.counts[area][answer["outcome"]] += 1
        self.slowest = max(self.slowest, (answer["seconds"], f"{area}/{number}"))
        if not answer["right"]:
            self.failures.append((f"{area}/{number}", answer))

    @property
    def cases(self) -> int:
        return sum(count["right"] + count["failed"] for count in self.counts.values())

    def text(self) -> str:
        columns = ["refused", "same", "ok", "failed"]
        lines = ["area          cases " + " ".join(f"{name:>8}" for name in columns)]
        for area, count in sorted(self.counts.items()):
            cases = count["right"] + count["failed"]
            lines.append(f"{area:12} {cases:6} " + " ".join(f"{count[name]:8}" for name in columns))
        lines.append(f"{self.cases} cases, {len(self.failures)} failures, slowest {self.slowest[0]} s")
        for case, answer in self.failures:
            again = f"python -m tests.fuzz --seed {self.seed} --case {case}"
            lines.append(f"FAILED {answer['outcome']}: {answer['label']}\n    {answer['detail'][:400]}\n    {again}")
        return "\n".join(lines)


def fuzz(seed: str, seconds: float, areas=AREAS, fault: str = "", case: str = "", stop_at_failure=False) -> Report:
    """Runs cases until the time is up.

    Args:
        case: AREA/NUMBER of a single case to run instead.
        stop_at_failure: ends with the first failure.
    """
    worker, report = Worker(seed, fault), Report(seed)
    try:
        if case:
            area, number = case.split("/")
            report.add(area, number, worker.run(area, int(number)))
            return report
        worker.start()
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end and not (stop_at_failure and report.failures):
            area = areas[number % len(areas)]
            report.add(area, number, worker.run(area, number))
            number += 1
        return report
    finally:
        worker.stop()
