"""The repository's tests of captures, kernels and their checks, one file a case."""

import re
import subprocess
import sys
from functools import partial

from .. import ROOT
from .parts import Context, NotRun

FILES = ("test_captures", "test_cuda_graphs", "test_step_check", "test_triton_decoder", "test_finetunes_sampling")
TINY = ("test_captures",)


def cases(context: Context):
    for name in FILES:
        yield name, partial(run, name, context)


def run(name: str, context: Context) -> dict:
    if context.is_tiny and name not in TINY:
        raise NotRun("the test suite itself runs this file")
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", f"tests/core/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if done.returncode:
        counts["failed"] = counts.get("failed", 0) + counts.pop("error", 0)
        problems = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return {**counts, "problems": problems[:20] or [done.stdout[-1000:] + done.stderr[-1000:]]}
    return counts
