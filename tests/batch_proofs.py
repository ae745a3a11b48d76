"""Batch runs that are killed, on Ray and as shards: `python -m tests.batch_proofs [--images N] [--only NAME …]`.

Every output must be there exactly once, with the bytes of a run in one process. Needs requirements-scale.txt.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import AR

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
RAY = ("--engine", "ray", "--workers", "2", "--cpus-per-worker", "1")


def command(jobs: Path, out: Path, *more) -> list[str]:
    base = [sys.executable, "-m", "janus_core", "batch", "generate", str(jobs), "--model", str(AR), "--out", str(out)]
    return [*base, "--device", "cpu", "--dtype", "fp32", "--batch-size", "4", *map(str, more)]


def start(*arguments) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(*arguments), cwd=ROOT, env=environment, **pipes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def summary(out: Path) -> dict:
    return json.loads((out.with_name(f"{out.name}.run") / "summary.json").read_text())


def wait_for_outputs(out: Path, count: int, process: subprocess.Popen):
    while len(list(out.glob("*.png"))) < count:
        assert process.poll() is None, f"the run ended with {process.returncode}"
        time.sleep(0.02)


def workers_of(driver: int) -> list[int]:
    """Processes of Ray that run an actor and descend from a driver, by /proc."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(folder.name)] = int(fields[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, IndexError):
            continue

    def descends(pid: int) -> bool:
        while pid > 1:
            if pid == driver:
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid, name in names.items() if "MapWorker" in name and descends(pid)]


def worker_killed(jobs, out, count):
    """A worker killed by the system in mid-batch."""
    process = start(jobs, out, *RAY)
    wait_for_outputs(out, count // 4, process)
    killed = workers_of(process.pid)[:1]
    assert killed, "no worker was found"
    os.kill(killed[0], signal.SIGKILL)
    assert process.wait() == 0
    assert summary(out)["retries"] >= 1, summary(out)
    return f"{summary(out)['retries']} groups were run again"


def driver_killed(jobs, out, count):
    """The driver killed and started again."""
    process = start(jobs, out, *RAY)
    wait_for_outputs(out, count // 4, process)
    process.kill()
    process.wait()
    before = files_of(out)
    assert start(jobs, out, *RAY).wait() == 0
    assert before.items() <= files_of(out).items(), "an output was changed"
    return f"{len(before)} outputs before, {summary(out)['done']} after"


def shard_killed(jobs, out, count):
    """Two shards in processes of their own, one of them killed and started again."""
    shards = [start(jobs, out, "--shard", f"{k}/2") for k in range(2)]
    wait_for_outputs(out, count // 4, shards[0])
    shards[0].kill()
    assert shards[1].wait() == 0 and shards[0].wait() == -signal.SIGKILL
    there = len(files_of(out))
    assert start(jobs, out, "--shard", "0/2").wait() == 0
    return f"{there} outputs before the restart"


def terminated(jobs, out, count):
    """Ray's driver asked to end by SIGTERM, and started again."""
    process = start(jobs, out, *RAY)
    wait_for_outputs(out, count // 4, process)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM and summary(out)["interrupted"]
    there = len(files_of(out))
    assert start(jobs, out, *RAY).wait() == 0
    return f"{there} outputs before the restart"


PROOFS = (shard_killed, worker_killed, driver_killed, terminated)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.batch_proofs", description=__doc__)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--only", nargs="+", choices=[proof.__name__ for proof in PROOFS], help="these instead of all")
    args = parser.parse_args()
    count = args.images
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        jobs = folder / "jobs.txt"
        shapes = ("circle", "square", "triangle", "cross", "circle left of a white square")
        texts = [f"a {COLOURS[k % 8]} {shapes[k % 5]} on a {COLOURS[k * 3 % 7]} background" for k in range(count)]
        jobs.write_text("\n".join(texts) + "\n")
        assert start(jobs, folder / "expected").wait() == 0
        expected = files_of(folder / "expected")
        assert len(expected) == count
        for proof in PROOFS:
            if args.only and proof.__name__ not in args.only:
                continue
            began = time.monotonic()
            told = proof(jobs, folder / proof.__name__, count)
            found = files_of(folder / proof.__name__)
            assert found == expected, f"{proof.__name__}: {len(found)} files, or other bytes"
            print(f"{proof.__doc__} {told}; {count} of {count} identical, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
