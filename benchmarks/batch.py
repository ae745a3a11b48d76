"""Throughput of batch runs, of the server and of Ray, as ratios within one run: `python -m benchmarks.batch`.

Each part repeats its runs in turns and compares medians. Writes benchmarks/results/batch.md where all parts run. The
server needs requirements-serve.txt, Ray requirements-scale.txt.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

import janus_core
from benchmarks import AR, RESULTS, ROOT, report
from benchmarks.speculation import COLOURS, SHAPES
from janus_core.batch.groups import make_groups
from janus_core.batch.manifest import Defaults, read_outputs
from janus_core.batch.run import Options, run_batch
from janus_core.batch.sample import sample_images
from janus_core.batch.worker import Setup
from janus_core.cli_options import size
from janus_core.files import write_text

CLIENTS = 16
PARTS = {
    "batch": "the sampler with a batch of one and with --batch-size",
    "runner": "the batch runner and the bare sampler",
    "server": f"the server with {CLIENTS} clients and the batch runner",
    "ray": "Ray with two workers and two shards",
}
SINGLE, SAMPLER, RUNNER, SERVER = "sampler, batch size 1", "sampler", "runner", f"server, {CLIENTS} clients"
NEEDED = {"batch": (SINGLE, SAMPLER), "runner": (SAMPLER, RUNNER), "server": (RUNNER, SERVER)}
SHARDS, ON_RAY = "two shards", "Ray, 2 workers"


def write_jobs(path: Path, count: int):
    texts = [f"a {COLOURS[k % 8]} {SHAPES[k // 8 % 4]} on a {COLOURS[(k + 3) % 8]} background" for k in range(count)]
    path.write_text("\n".join(texts).replace("a orange", "an orange") + "\n")


class InProcess:
    """Runs in this process, by name: each gives seconds, without the time to load the model.

    Attributes:
        outside: shares of the runner's seconds that were not the sampler's, one per run.
    """

    def __init__(self, args, jobs: Path, folder: Path, stack: ExitStack):
        self.args, self.folder, self.stack = args, folder, stack
        self.settings = {"size": list(args.size)} if args.size else {}
        self.outputs, _ = read_outputs(jobs, "generate", Defaults(settings=self.settings), args.images)
        self.pipe = janus_core.load(args.model, device=args.device)
        self.address, self.clients, self.runs, self.outside = None, None, 0, []
        self.sampler(args.batch_size, self.outputs[: args.batch_size])  # warms up

    def run(self, name: str) -> float:
        if name == RUNNER:
            return self.runner()
        if name == SERVER:
            return self.server()
        return self.sampler(1 if name == SINGLE else self.args.batch_size)

    def sampler(self, batch_size: int, outputs=None) -> float:
        began = time.perf_counter()
        for group in make_groups(outputs or self.outputs, self.pipe.prompts, batch_size):
            prompts, seeds = [output.prompt for output in group], [output.seeds[0] for output in group]
            sample_images(self.pipe, prompts, seeds, self.settings, batch_size=batch_size)
        return time.perf_counter() - began

    def runner(self) -> float:
        self.runs += 1
        dtype = str(self.pipe.dtype).removeprefix("torch.")
        out = str(self.folder / f"run{self.runs}")
        setup = Setup(model=str(self.args.model), out=out, device=self.args.device, dtype=dtype)
        summary = run_batch(self.outputs, setup, Options(batch_size=self.args.batch_size))
        self.outside.append(1 - summary["sampling_seconds"] / summary["seconds"])
        return summary["seconds"]

    def server(self) -> float:
        """A server in this process, asked by clients in another."""
        size = {"size": "{}x{}".format(*self.args.size)} if self.args.size else {}
        bodies = [{"prompt": output.prompt, "seed": output.seeds[0], **size} for output in self.outputs]
        if self.address is None:
            sys.path.insert(0, str(ROOT / "tests" / "core"))
            from serving import serving

            settings = {"batch_size": self.args.batch_size, "queue_size": 4 * CLIENTS}
            self.address, _ = self.stack.enter_context(serving(self.pipe, **settings))
            self.clients = self.stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            self.clients.submit(asking_seconds, self.address, bodies[:1]).result()
        return self.clients.submit(asking_seconds, self.address, bodies).result()


def asking_seconds(address: str, bodies: list[dict]) -> float:
    """Seconds of CLIENTS threads that ask a server for images, an image a request."""
    import httpx

    with httpx.Client(timeout=3600) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def ask(body):
            client.post(f"{address}/v1/images/generations", json=body).raise_for_status()

        began = time.perf_counter()
        list(pool.map(ask, bodies))
        return time.perf_counter() - began


class InProcesses:
    """Runs of the command in two processes of one thread each: each gives seconds from start to end.

    Attributes:
        rates: images per second of each run from the end of its first batch to its last file, by name.
        waits: seconds until its first batch was done.
    """

    def __init__(self, args, jobs: Path, folder: Path):
        self.args, self.jobs, self.folder, self.runs = args, jobs, folder, 0
        self.rates, self.waits = ({SHARDS: [], ON_RAY: []} for _ in range(2))

    def run(self, name: str) -> float:
        self.runs += 1
        out = self.folder / f"processes{self.runs}"
        options = [("--shard", f"{k}/2") for k in range(2)]
        if name == ON_RAY:
            options = [("--engine", "ray", "--workers", "2", "--cpus-per-worker", "1")]
        began = time.time()  # as files have it
        processes = [self._start(out, *more) for more in options]
        for process in processes:
            _, errors = process.communicate()
            if process.returncode:
                raise SystemExit(f"{name} failed:\n{errors[-2000:]}")
        seconds = time.time() - began
        times = sorted(path.stat().st_mtime for path in out.glob("*.png"))
        assert len(times) == self.args.ray_images
        first = self.args.batch_size
        self.waits[name].append(times[first - 1] - began)
        self.rates[name].append((len(times) - first) / (times[-1] - times[first - 1]))
        return seconds

    def _start(self, out: Path, *more) -> subprocess.Popen:
        command = [sys.executable, "-m", "janus_core", "batch", "generate", str(self.jobs), "--out", str(out)]
        command += ["--model", str(self.args.model), "--device", self.args.device, "--threads", "1", *more]
        command += ["--batch-size", str(self.args.batch_size), "--limit", str(self.args.ray_images)]
        command += ["--size", "{}x{}".format(*self.args.size)] if self.args.size else []
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def in_turns(run: Callable[[str], float], names, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run; every other round is in reverse order."""
    seconds = {name: [] for name in names}
    for k in range(repeats):
        for name in list(names)[:: 1 - 2 * (k % 2)]:
            seconds[name].append(run(name))
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def ratios(seconds: dict[str, list[float]], outside: list[float], batch_size: int) -> list[str]:
    """What the medians say, a sentence per part."""
    middle = {name: median(values) for name, values in seconds.items()}
    lines = []
    if SINGLE in middle:
        lines.append(f"A batch of {batch_size} gives {middle[SINGLE] / middle[SAMPLER]:.2f} times the images of 1.")
    if SAMPLER in middle and RUNNER in middle:
        more = 100 * (middle[RUNNER] / middle[SAMPLER] - 1)
        share = 100 * median(outside)
        lines.append(f"The runner takes {more:+.1f} % against the sampler; {share:.1f} % of its time is not sampling.")
    if SERVER in middle:
        lines.append(f"The server has {100 * middle[RUNNER] / middle[SERVER]:.0f} % of the runner's throughput.")
    return lines


def ray_ratios(seconds: dict, rates: dict, waits: dict) -> list[str]:
    """As `ratios`; the arguments are by run."""
    more = 100 * (median(seconds[ON_RAY]) / median(seconds[SHARDS]) - 1)
    slower = 100 * (median(rates[SHARDS]) / median(rates[ON_RAY]) - 1)
    shards, on_ray = (median(waits[name]) for name in (SHARDS, ON_RAY))
    return [
        f"From start to end, Ray takes {more:+.0f} % against the shards, {slower:+.0f} % once the first batch is done.",
        f"The first batch was done after {shards:.1f} s with shards and {on_ray:.1f} s with Ray.",
    ]


def table(seconds: dict[str, list[float]], images: int) -> list[str]:
    lines = ["| run | images | seconds of each | images/s |", "|---|---|---|---|"]
    for name, values in seconds.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {images} | {each} | {images / median(values):.2f} |")
    return lines


def measure(args) -> str:
    """Runs the parts. Returns Markdown."""
    info = report.run_info(torch.device(args.device))
    text = [f"{report.header(info)}\n"]
    batch = f"batch size {args.batch_size}" + (", {}x{} pixels".format(*args.size) if args.size else "")
    text += [f"`{args.model.name}` on `{args.device}`, {batch}; runs in turns, ratios of medians."]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        folder = Path(folder)
        jobs = folder / "jobs.txt"
        write_jobs(jobs, max(args.images, args.ray_images))
        names = {name: None for part in args.parts for name in NEEDED.get(part, ())}
        if names:
            runs = InProcess(args, jobs, folder, stack)
            seconds = in_turns(runs.run, names, args.repeats)
            threads = torch.get_num_threads()
            text.append(
                f"\nIn one process with {threads} thread{'s' * (threads > 1)}, clients in another; loading left out.\n"
            )
            text += table(seconds, args.images)
            text += ["", *(f"- {line}" for line in ratios(seconds, runs.outside, args.batch_size))]
        if "ray" in args.parts:
            runs = InProcesses(args, jobs, folder)
            seconds = in_turns(runs.run, runs.rates, args.ray_repeats)
            text.append("\nTwo processes with a thread each, from start to end, with imports and loading.\n")
            text += table(seconds, args.ray_images)
            text += ["", *(f"- {line}" for line in ray_ratios(seconds, runs.rates, runs.waits))]
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--model", type=Path, default=AR, help="a Janus checkpoint; the demo's by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=64, help="of each run in this process (64)")
    parser.add_argument("--repeats", type=int, default=3, help="of these runs (3)")
    parser.add_argument("--ray-images", type=int, default=1920, help="of each run of the part ray (1920)")
    parser.add_argument("--ray-repeats", type=int, default=2, help="of these runs (2)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=size, help="WIDTHxHEIGHT in pixels; the model's own by default")
    text = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help=f"all by default. {text}")
    parser.add_argument("--out", type=Path, help="Markdown file; benchmarks/results/batch.md if all parts run")
    args = parser.parse_args()
    if "ray" in args.parts and args.ray_images < 4 * args.batch_size:
        parser.error("--ray-images must be at least four times --batch-size: two batches of each worker.")
    text = measure(args)
    print(text)
    out = args.out or (RESULTS / "batch.md" if set(args.parts) == set(PARTS) else None)
    if out is not None:
        write_text(out, text)


if __name__ == "__main__":
    main()
