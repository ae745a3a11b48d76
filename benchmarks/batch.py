"""Throughput of batch runs, of the server and of Ray, as ratios within one run: `python -m benchmarks.batch`.

Writes benchmarks/results/batch.md. Needs requirements-serve.txt and requirements-scale.txt for the last two ratios.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import janus_core
from benchmarks import AR, RESULTS, ROOT, report
from janus_core.batch.groups import make_groups
from janus_core.batch.manifest import Defaults, read_outputs
from janus_core.batch.run import Options, run_batch
from janus_core.batch.sample import sample_images
from janus_core.batch.worker import Setup

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "cross")
CLIENTS = 16


def write_jobs(path: Path, count: int):
    texts = [f"a {COLOURS[k % 8]} {SHAPES[k // 8 % 4]} on a {COLOURS[(k + 3) % 8]} background" for k in range(count)]
    path.write_text("\n".join(texts) + "\n")


def sampler_seconds(pipe, outputs, batch_size: int) -> float:
    """Seconds of the bare sampler and image decoder for the groups of a run."""
    began = time.perf_counter()
    for group in make_groups(outputs, pipe.prompts, batch_size):
        seeds = [output.seeds[0] for output in group]
        sample_images(pipe, [output.prompt for output in group], seeds, {}, batch_size=batch_size)
    return time.perf_counter() - began


def served_seconds(pipe, outputs, batch_size: int) -> float:
    """Seconds of a server in this process for the same images, asked for by clients in threads."""
    import httpx

    sys.path.insert(0, str(ROOT / "tests" / "core"))
    from serving import serving

    with serving(pipe, batch_size=batch_size, queue_size=4 * CLIENTS, wait=0.02) as (address, _):
        with httpx.Client(timeout=3600) as client, ThreadPoolExecutor(CLIENTS) as pool:

            def ask(output):
                body = {"prompt": output.prompt, "seed": output.seeds[0]}
                client.post(f"{address}/v1/images/generations", json=body).raise_for_status()

            ask(outputs[0])
            began = time.perf_counter()
            list(pool.map(ask, outputs))
            return time.perf_counter() - began


def command_seconds(jobs: Path, out: Path, args, *more) -> subprocess.Popen:
    base = [sys.executable, "-m", "janus_core", "batch", "generate", str(jobs), "--model", str(args.model)]
    base += ["--out", str(out), "--device", args.device, "--batch-size", str(args.batch_size), *more]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(base, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def sharded_seconds(jobs: Path, folder: Path, args) -> float:
    """Seconds of two shards by hand, from start to end."""
    began = time.perf_counter()
    shards = [command_seconds(jobs, folder / "shards", args, "--shard", f"{k}/2") for k in range(2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    return time.perf_counter() - began


def ray_seconds(jobs: Path, folder: Path, args) -> tuple[float, float]:
    """(seconds of Ray with two workers from start to end, those of them in which the groups ran)."""
    began = time.perf_counter()
    more = ("--engine", "ray", "--workers", "2", "--cpus-per-worker", "1")
    assert command_seconds(jobs, folder / "ray", args, *more).wait() == 0
    total = time.perf_counter() - began
    return total, json.loads((folder / "ray.run" / "summary.json").read_text())["seconds"]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--model", type=Path, default=AR, help="a Janus checkpoint; the demo's by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--only", choices=("sampler", "server", "ray"), help="one part instead of all")
    args = parser.parse_args()
    info = report.run_info(torch.device(args.device))
    lines = []

    def told(text: str):
        print(text, flush=True)
        lines.append(f"- {text}")

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        jobs = folder / "jobs.txt"
        write_jobs(jobs, args.images)
        outputs, _ = read_outputs(jobs, "generate", Defaults())
        if args.only in (None, "sampler", "server"):
            pipe = janus_core.load(args.model, device=args.device)
            dtype = str(pipe.dtype).removeprefix("torch.")
            sampler_seconds(pipe, outputs[:2], 2)
            single = sampler_seconds(pipe, outputs, 1)
            before = sampler_seconds(pipe, outputs, args.batch_size)
            setup = Setup(model=str(args.model), out=str(folder / "run"), device=args.device, dtype=dtype)
            summary = run_batch(outputs, setup, Options(batch_size=args.batch_size))
            served = served_seconds(pipe, outputs, args.batch_size) if args.only != "sampler" else None
            bare = (before + sampler_seconds(pipe, outputs, args.batch_size)) / 2
            n, size = args.images, args.batch_size
            told(
                f"Batch {size}: {n / bare:.2f} images/s, batch 1: {n / single:.2f}; {single / bare:.2f} times as many."
            )
            overhead = 100 * (summary["seconds"] / bare - 1)
            told(f"The runner: {summary['images_per_second']:.2f} images/s, {overhead:+.1f} % of the sampler's time.")
            if served is not None:
                share = 100 * summary["seconds"] / served
                told(f"The server with {CLIENTS} clients: {n / served:.2f} images/s, {share:.0f} % of the runner's.")
        if args.only in (None, "ray"):
            shards = sharded_seconds(jobs, folder, args)
            total, inside = ray_seconds(jobs, folder, args)
            more = 100 * (total / shards - 1)
            told(f"From start to end: two shards {shards:.1f} s, Ray with 2 workers {total:.1f} s ({more:+.0f} %).")
            told(f"Of Ray's time, {total - inside:.1f} s were its start and end.")
    what = f"{args.images} images of `{args.model.name}`, batch size {args.batch_size}, on `{args.device}`."
    text = f"# Batch runs\n\n{report.header(info)}\n{what} Command: `python -m benchmarks.batch`.\n\n" + "\n".join(
        lines
    )
    (RESULTS / "batch.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
