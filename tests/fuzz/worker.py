"""The process that runs cases: reads "AREA NUMBER" lines, answers each with a line of JSON.

A case that hangs or crashes takes only this process with it.
"""

import contextlib
import importlib
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

MEMORY = 24 * 2**30  # address space; far more than any case needs
GROWTH = 1.5 * 2**30  # of the resident set in one case


def main(seed: str, fault: str):
    answers = os.fdopen(os.dup(1), "w")
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    log = os.open(root / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)  # Rust code prints its panics there
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch

    torch.set_num_threads(1)
    from . import faults
    from .case import Case, judge

    if fault:
        faults.FAULTS[fault]()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        area, number = line.split()
        work = root / "case"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        os.chdir(root)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        case = Case("", None, ())
        try:
            case = importlib.import_module(f".{area}", __package__).make(random.Random(f"{seed} {area} {number}"), work)
            outcome, detail = judge(case)
        except Exception as error:  # a mistake in the fuzzer
            outcome, detail = "broken case", repr(error)[:500]
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if grown > GROWTH:
            outcome, detail = "memory", f"{grown / 2**30:.1f} GB"
        if (root / "executed").exists() or (work / "executed").exists():
            outcome, detail = "code executed", ""
        seconds = round(time.monotonic() - began, 2)
        answer = {"outcome": outcome, "detail": detail, "label": case.label, "seconds": seconds}
        answer["right"] = outcome in case.expected
        print(json.dumps(answer), file=answers, flush=True)
        os.ftruncate(log, 0)
    os.chdir("/")
    with contextlib.suppress(OSError):
        shutil.rmtree(root)


if __name__ == "__main__":
    main(*sys.argv[1:])
