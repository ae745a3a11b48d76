"""A long run of mixed graphs in a real ComfyUI: python -m benchmarks.soak --runs 500.

Two clients queue the templates of both families with new seeds. Some runs are interrupted at a random moment, and the
models are unloaded now and then. Every 25 runs the reference graphs are run: their images must equal the first ones bit
for bit, and the server's private memory is noted. Its growth after run 100 must stay under 5 %.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import RESULTS, ROOT, memory, report
from .comfyui_server import Client, Server, find_comfyui

GRAPHS = {path.stem: path for path in sorted((ROOT / "tests" / "data" / "api").glob("*.json"))}
del GRAPHS["JanusFlow - Refine with SDXL"]  # needs another model's checkpoint
REFERENCES = ("Janus-Pro - Text to Image", "JanusFlow - Text to Image", "JanusFlow - KSampler and SamplerCustom")
CLIENTS = 2
EVERY = 25  # runs between two looks at the server
SETTLED = 100  # runs after which memory should not grow
GROWTH = 0.05
INTERRUPTED, FREED = 0.3, 0.05  # shares of the runs
LATEST = 1.0  # seconds after a run's start until it is interrupted, at most; most runs take longer
DONE, STOPPED, FAILED = "done", "interrupted", "failed"
ENDS = {"execution_success": DONE, "execution_interrupted": STOPPED, "execution_error": FAILED}


@dataclass
class Soak:
    """What happened.

    Attributes:
        outcomes: how many runs ended in DONE, STOPPED and FAILED, and by "freed" how often models were unloaded.
        rows: (runs so far, bytes of private memory, whether all reference images were the first ones).
        errors: messages of the runs that failed.
    """

    outcomes: Counter = field(default_factory=Counter)
    rows: list[tuple[int, int, bool]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth(self) -> float | None:
        """The largest growth of memory after SETTLED runs, as a share; None before that."""
        settled = [size for runs, size, _ in self.rows if runs >= SETTLED]
        return max(settled) / settled[0] - 1 if len(settled) > 1 else None

    @property
    def passed(self) -> bool:
        equal = all(equal for _, _, equal in self.rows)
        return equal and not self.outcomes[FAILED] and (self.growth is None or self.growth < GROWTH)


def graph(name: str, seed: int) -> dict:
    """The API form of a template with this seed in every node that has one."""
    nodes = json.loads(GRAPHS[name].read_text(encoding="utf-8"))
    for node in nodes.values():
        for key in ("seed", "noise_seed"):
            if key in node["inputs"]:
                node["inputs"][key] = seed
    return nodes


def images(server: Server, name: str) -> list[np.ndarray]:
    """The images of a template with the seed 0, as uint8 [H, W, 3]."""
    outputs = server.run(graph(name, 0))
    files = [server.file(entry) for output in outputs.values() for entry in output.get("images", ())]
    return [np.array(Image.open(file).convert("RGB")) for file in files]


def run_one(client: Client, name: str, rng: random.Random) -> tuple[str, str, bool]:
    """Runs a template, and perhaps interrupts ComfyUI or unloads its models meanwhile.

    Returns:
        (DONE, STOPPED or FAILED; the error's message; whether models were unloaded).
    """
    moment = rng.uniform(0, LATEST) if rng.random() < INTERRUPTED else None
    is_freed = rng.random() < FREED
    prompt_id = client.queue(graph(name, rng.randrange(1, 2**63)))
    if is_freed:
        client.post("/free", {"unload_models": True, "free_memory": True})
    timer = None
    for kind, data in client.events(prompt_id):
        if kind == "execution_start" and moment is not None:
            timer = threading.Timer(moment, client.post, ("/interrupt", {}))
            timer.start()
    if timer is not None:
        timer.cancel()
        timer.join()
    return ENDS[kind], data.get("exception_message", "").strip(), is_freed


def run_part(server: Server, soak: Soak, count: int, rng: random.Random):
    """Runs `count` graphs from CLIENTS clients at once."""
    names = [rng.choice(list(GRAPHS)) for _ in range(count)]
    lock = threading.Lock()

    def work(own: random.Random):
        client = Client(server.url)
        client.connect()
        try:
            while True:
                with lock:
                    if not names:
                        return
                    name = names.pop()
                outcome, message, is_freed = run_one(client, name, own)
                with lock:
                    soak.outcomes[outcome] += 1
                    soak.outcomes["freed"] += is_freed
                    if outcome == FAILED:
                        soak.errors.append(f"{name}: {message}")
        except Exception as error:
            with lock:
                soak.outcomes[FAILED] += 1
                soak.errors.append(f"client: {error!r}")
        finally:
            client.stop()

    threads = [threading.Thread(target=work, args=(random.Random(rng.random()),)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_all(server: Server, runs: int, seed: int, show) -> Soak:
    """The whole soak; `show` is called with it after every part."""
    rng, soak, began = random.Random(seed), Soak(), time.monotonic()
    first = {name: images(server, name) for name in REFERENCES}
    for done in range(0, runs, EVERY):
        count = min(EVERY, runs - done)
        run_part(server, soak, count, rng)
        again = {name: images(server, name) for name in REFERENCES}
        equal = all(np.array_equal(a, b) for name in first for a, b in zip(first[name], again[name], strict=True))
        soak.rows.append((done + count, memory.read(server.process.pid)["private"], equal))
        soak.seconds = time.monotonic() - began
        show(soak)
    return soak


def text(soak: Soak, info: dict, seed: int) -> str:
    """The result as Markdown."""
    outcomes = soak.outcomes
    total = sum(outcomes[kind] for kind in (DONE, STOPPED, FAILED))
    growth = "" if soak.growth is None else f" Memory grew by {100 * soak.growth:.1f} % after run {SETTLED}."
    lines = [
        report.header(info),
        "",
        f"{total} runs of {len(GRAPHS)} templates on the demo checkpoints in {soak.seconds / 60:.0f} minutes, from "
        f"{CLIENTS} clients at once, seed {seed}: {outcomes[DONE]} done, {outcomes[STOPPED]} interrupted at a random "
        f"moment, {outcomes[FAILED]} failed; models were unloaded {outcomes['freed']} times.{growth}",
        "",
        "| runs | private memory (MB) | reference images |",
        "|---|---|---|",
    ]
    for runs, size, equal in soak.rows:
        lines.append(f"| {runs} | {size / 1e6:.0f} | {'equal' if equal else 'DIFFERENT'} |")
    lines += ["", *(f"- {error}" for error in soak.errors)] if soak.errors else []
    return "\n".join(lines) + "\n"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the result")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    info, comfyui = report.run_info(torch.device("cpu")), find_comfyui()
    if comfyui is None:
        raise SystemExit("There is no ComfyUI: set COMFYUI_PATH to its folder.")
    with tempfile.TemporaryDirectory() as base:
        server = Server(comfyui, Path(base), {}, ("--cpu",), threads=args.threads)
        try:
            info["comfyui"] = server.get("/system_stats")["system"]["comfyui_version"]
            args.folder.mkdir(parents=True, exist_ok=True)
            path = args.folder / "soak.md"

            def show(soak):
                path.write_text(text(soak, info, args.seed))
                print(soak.rows[-1], dict(soak.outcomes), f"{soak.seconds:.0f} s", flush=True)

            soak = run_all(server, args.runs, args.seed, show)
        finally:
            server.stop()
    print("\n".join([str(path), *soak.errors]))
    return not soak.passed


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends as well
    sys.exit(main())
