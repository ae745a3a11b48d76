"""Runs the cases of one part and writes its JSON file after each: python -m benchmarks.gpu.worker PART FOLDER DEVICE.

A case that began and has no result when the part is run again ended the process; it is not tried a second time.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

from janus_core.files import write_text

from .. import report
from .parts import PARTS, Context, NotRun

BEGAN = {"failed": "the process ended during this case"}


def write(path: Path, result: dict):
    write_text(path, json.dumps(result, indent=1) + "\n")


def run_case(function) -> dict:
    """A case's results with its time; {"failed": why} or {"not_run": why} where there are none."""
    began = time.perf_counter()
    try:
        result = function()
    except NotRun as reason:
        return {"not_run": str(reason)}
    except Exception as error:
        result = {"failed": f"{type(error).__name__}: {error}"[:2000]}
    return {**result, "took_s": round(time.perf_counter() - began, 2)}


def run_part(name: str, folder: Path, context: Context):
    path = folder / f"{name}.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    result = {"part": name, "title": PARTS[name].title, **report.run_info(torch.device(context.device)), **result}
    cases = result.setdefault("cases", {})
    result["done"] = False
    for case, function in PARTS[name].cases(context):
        if case not in cases:
            cases[case] = BEGAN
            write(path, result)
            cases[case] = run_case(function)
            write(path, result)
    result["done"] = True
    write(path, result)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("device")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
        torch.set_num_threads(1)  # the rehearsal's models are too small for more
    run_part(args.part, args.folder, Context(args.device, args.tiny, args.folder / args.part))


if __name__ == "__main__":
    main()
