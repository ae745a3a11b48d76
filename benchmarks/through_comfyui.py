"""The parts of an image through ComfyUI and in janus_core, in turns: python -m benchmarks.through_comfyui --help.

Checkpoints are synthetic (benchmarks/synthetic.py). Every row has a ComfyUI and a janus_core process of its own with
the same number of threads; while one works the other waits. Writes a JSON file and Markdown tables to
benchmarks/results.

With --url a running ComfyUI is used, on whose memory nothing is then known: link the folders of the cache into its
models/janus, and for JanusFlow sdxl-vae/diffusion_pytorch_model.safetensors into models/vae as
synthetic-sdxl-vae.safetensors, and for int8-lora the lora-*.safetensors into models/loras.
"""

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import RESULTS, baselines, memory, report, synthetic, through_comfyui_tables
from benchmarks.comfyui_runs import VAE, ThroughComfyUI
from benchmarks.comfyui_server import Client, Server, find_comfyui, python_of
from benchmarks.core_worker import Worker
from benchmarks.workload import PARTS, RUNS, Workload
from janus_core.checkpoint import WEIGHT_FORMATS

LORA = "-lora"
WEIGHTS = ("default", "bf16", "fp32", "int8", "fp16", "fp8_e4m3fn", "int8" + LORA)
LORA_RUNS = ("first", "generate")  # the LoRA is the MODEL's; describing uses the CLIP
LOADING = "loading"
SEEDS = itertools.count(random.randrange(2**32))  # that a running server has not cached


def accelerator(python: str) -> str:
    """The type of the device that ComfyUI would use with this Python: "cuda", "mps" or "cpu"."""
    code = (
        "import torch; "
        "print('cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu')"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


class Hosts:
    """Where the graphs run: a ComfyUI that is started for every row, or a running one.

    Args:
        url: of a running one, or None.
        threads: CPU threads of one that is started.
    """

    def __init__(self, url: str | None, threads: int):
        self.url, self.threads = url, threads
        if url is None:
            self.comfyui = find_comfyui()
            if self.comfyui is None:
                raise SystemExit("There is no ComfyUI here: name its folder in COMFYUI_PATH, or give --url.")
            self.device = accelerator(python_of(self.comfyui))
        else:
            self.device = Client(url).get("/system_stats")["devices"][0]["type"]

    @contextmanager
    def host(self, models: dict[str, Path]):
        """A (Client, process id or None), with files or folders linked into models/ where it is started here."""
        if self.url is not None:
            client = Client(self.url)
            client.connect()
            try:
                yield client, None
            finally:
                client.post("/free", {"unload_models": True, "free_memory": True})
                client.stop()
            return
        arguments = ["--cpu"] if self.device == "cpu" else []
        with tempfile.TemporaryDirectory(prefix="janus-through-") as base:
            server = Server(self.comfyui, Path(base), models, arguments, self.threads)
            try:
                yield server, server.process.pid
            finally:
                server.stop()


def read_once(folder: Path) -> int:
    """Reads a folder's weights, so that loading is timed with the files in memory. Returns their bytes."""
    total = 0
    for path in folder.iterdir():
        if path.suffix in (".safetensors", ".bin"):
            with path.open("rb", buffering=0) as file:
                while count := len(file.read(2**24)):
                    total += count
    return total


def measure(row: dict, hosts: Hosts, size: str, runs: list[str], repeats: int):
    """Fills in a row of the results.

    Args:
        row: its `family`, `weights` and `layout` are given.
        runs: names of workload.RUNS.
        repeats: how often each run is timed after the first time.
    """
    family, weights = row["family"], row["weights"]
    workload = Workload.of(family, synthetic.siglip_of(size).image_size, is_short=hosts.device == "cpu")
    checkpoint = synthetic.synthetic_checkpoint(family, size, row["layout"])
    row["file_bytes"] = read_once(checkpoint)
    models, vae, lora = {f"janus/{checkpoint.name}": checkpoint}, None, None
    if family == "flow":
        vae = synthetic.synthetic_vae()
        models[f"vae/{VAE}"] = vae / "diffusion_pytorch_model.safetensors"
    if weights.endswith(LORA):
        lora = synthetic.synthetic_lora(family, size)
        models[f"loras/{lora.name}"] = lora
    with Worker(workload, hosts.device, hosts.threads) as worker, hosts.host(models) as (client, pid):
        system = client.get("/system_stats")["system"]
        row["versions"] = {"comfyui": system.get("comfyui_version"), "torch": system.get("pytorch_version")}
        stored = weights.removesuffix(LORA)
        host = ThroughComfyUI(client, workload, checkpoint.name, stored, lora and lora.name)
        worker.ask("ready")
        row["load"], row["first"], row["memory"], row["parts"] = {}, {}, {}, {}
        for name, contestant, process, load in (
            ("comfyui", host, pid, host.load),
            ("core", worker, worker.pid, lambda: worker.load(checkpoint, weights, vae)),
        ):
            row["load"][name], row["first"][name], row["memory"][name] = _first_time(contestant, process, load, runs)
        row["dtype"] = worker.ask("dtype")
        weight_dtype = stored if stored in WEIGHT_FORMATS else None
        row["weight_bytes"] = synthetic.weight_bytes(family, size, getattr(torch, row["dtype"]), weight_dtype)
        for repeat in range(repeats):
            for run in runs:
                _in_turns(row["parts"], run, {"comfyui": host, "core": worker}, repeat)
        for name, process in (("comfyui", pid), ("core", worker.pid)):
            row["memory"][name]["end"] = memory.read(process)


def _first_time(contestant, process: int | None, load, runs: list[str]):
    """Loads and does each run once.

    Returns:
        Seconds of loading; seconds of each part; memory.read at the start, when loaded and after the first run, and
        `private_peak`, the bytes of private memory at its peak until then.
    """
    memories, parts = {"start": memory.read(process)}, {}
    with memory.PrivatePeak(process) as private:
        seconds = load()
        memories["loaded"] = memory.read(process)
        for run in runs[:1]:
            parts |= contestant.run(run, next(SEEDS))
            memories["first"] = memory.read(process)
    for run in runs[1:]:
        parts |= contestant.run(run, next(SEEDS))
    return seconds, parts, memories | {"private_peak": private.bytes or None}


def _in_turns(parts: dict, run: str, contestants: dict, repeat: int):
    """Times a run in both; who begins changes with every repeat."""
    for name in sorted(contestants, reverse=repeat % 2):
        for part, seconds in contestants[name].run(run, next(SEEDS)).items():
            parts.setdefault(part, {}).setdefault(name, []).append(seconds)


def rows_of(args) -> list[tuple[dict, list[str], int]]:
    """(row, runs, repeats) of everything that is measured."""
    layouts = [layout for layout in synthetic.LAYOUTS if args.size == "1b" or layout != "bin"]  # a 7B has shards
    rows, runs = [], [run for run, parts in RUNS.items() if set(parts) & set(args.parts)]
    for family in args.family:
        for weights in args.weights if runs else ():
            own = [run for run in runs if run in LORA_RUNS or not weights.endswith(LORA)]
            row = {"family": family, "weights": weights, "layout": "safetensors"}
            rows.append((row, own, args.runs))
        if LOADING in args.parts:
            is_timed = runs and "default" in args.weights  # the first layout, above
            for layout in layouts[1 if is_timed else 0 :]:
                row = {"family": family, "weights": "default", "layout": layout}
                rows.append((row, [] if args.size == "7b" else ["first"], 0))
    return rows


def _versions(row: dict, torch_version: str) -> dict[str, str]:
    """ComfyUI's version, and both torch versions where they differ."""
    found = row.get("versions", {})
    versions = {"comfyui": found["comfyui"]} if found.get("comfyui") else {}
    if found.get("torch") and found["torch"].partition("+")[0] != torch_version.partition("+")[0]:
        versions["torch"] = f"{torch_version} (ComfyUI's is {found['torch']})"
    return versions


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=baselines.SIZES, default="1b", help="7b has no JanusFlow")
    parser.add_argument("--url", help="of a running ComfyUI; by default one is started ($COMFYUI_PATH, ~/ComfyUI)")
    parser.add_argument("--family", nargs="+", choices=["ar", "flow"])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, help="the demo's default is default and int8-lora")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[*PARTS, LOADING],
        default=[*PARTS, LOADING],
        help="what to measure, with the other parts of the same run; loading is that of .bin files too",
    )
    parser.add_argument("--runs", type=int, help="after a first one (3, with the demo 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results")
    args = parser.parse_args(argv)
    named = [*(args.family or []), *(args.weights or [])]
    demo = args.size == "demo"
    args.name = "-".join([args.size, *named, *(args.parts if len(args.parts) <= len(PARTS) else [])])
    args.family = args.family or (["ar"] if args.size == "7b" else ["ar", "flow"])
    args.weights = args.weights or (["default", "int8" + LORA] if demo else list(WEIGHTS))
    args.runs = args.runs or (1 if demo else 3)
    return args


def main(argv=None):
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    hosts = Hosts(args.url, args.threads)
    result = {
        **report.run_info(torch.device(hosts.device)), "device": hosts.device, "size": args.size, "runs": args.runs,
        "threads": args.threads, "rows": [],
    }  # fmt: skip
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"through-comfyui-{hosts.device}-{args.name}.json"
    for row, runs, repeats in rows_of(args):
        try:
            measure(row, hosts, args.size, runs, repeats)
        except Exception as error:  # the other rows are still worth measuring
            row["error"] = f"{type(error).__name__}: {error}"
        result |= _versions(row, report.version("torch"))
        result["rows"].append(row)
        path.write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".md").write_text(through_comfyui_tables.tables(result))
        print(through_comfyui_tables.summary(row), flush=True)
    print(path.with_suffix(".md"))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the started processes end as well
    main()
