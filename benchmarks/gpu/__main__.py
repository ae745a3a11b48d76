"""Proves and measures what runs on an NVIDIA GPU, part by part: python -m benchmarks.gpu --help.

Writes DIR/<part>.json after each case and DIR/gpu.md at the end. A run that was stopped is continued by the same
command. With `--size tiny` every part is rehearsed on small models, on a CPU too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from .. import ROOT
from .parts import PARTS
from .tables import document


def results(folder: Path) -> dict[str, dict]:
    """The files of the parts in a folder, in the order of PARTS."""
    found = {name: folder / f"{name}.json" for name in PARTS}
    return {name: json.loads(path.read_text()) for name, path in found.items() if path.is_file()}


def run_part(name: str, args, limit_s: float) -> str:
    """Runs a part in a process of its own; how it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu.worker", name, str(args.out), args.device]
    command += ["--tiny"] if args.size == "tiny" else []
    log = args.out / f"{name}.log"
    with log.open("a") as output:
        part = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **PARTS[name].environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = part.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        finally:
            if part.poll() is None:  # also what it has started, which would run beside the next part
                if hasattr(os, "killpg"):
                    os.killpg(part.pid, signal.SIGKILL)
                part.kill()  # Windows has no process groups to kill
                part.wait()
    return "done" if code == 0 else f"ended with exit code {code}, see {log.name}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--budget", type=float, default=1200, metavar="SECONDS", help="of the whole run; default 1200")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cpu" and args.size != "tiny":
        parser.error("without an NVIDIA GPU only --size tiny runs")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + args.budget
    for name in args.parts:
        path, left = args.out / f"{name}.json", ends - time.monotonic()
        if path.is_file() and json.loads(path.read_text()).get("done"):
            state = "done before"
        elif left < 5:
            state = "not begun: the budget is spent"
        else:
            state = run_part(name, args, left if args.size == "tiny" else min(left, PARTS[name].limit_s))
        print(f"{name}: {state}", flush=True)
    (args.out / "gpu.md").write_text(document(results(args.out)))
    print(args.out / "gpu.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
