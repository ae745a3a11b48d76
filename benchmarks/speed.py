"""Speed of both samplers beside a baseline, in one process and alternating: python -m benchmarks.speed --help.

Weights are random at real sizes. benchmarks/baselines.py says what the baselines are; JANUS_REFERENCE may name a
checkout of the published repository to use that instead.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from janus_core.quantized import operations_over

from benchmarks import baselines
from janus_core import cpu
from janus_core.checkpoint import WEIGHT_FORMATS, build_model, quantized
from janus_core.cli import DTYPES
from janus_core.sampling import flow, tokens
from janus_core.sampling.cuda_graphs import recorder

RESULTS = Path(__file__).parent / "results"
PROMPT = 20


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(function, device) -> float:
    """Seconds of one call."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def alternate(contestants: dict, repeats: int, device, units: int) -> dict[str, dict[str, float]]:
    """Runs contestants in turns after a first run of each, whose work is `units` tokens or steps.

    Returns:
        By contestant: `seconds` per unit, medians; `first_extra_s`, how much longer the first run took (packing,
        capturing); on a GPU `run_GB`, the first run's peak of memory beyond what lay there before.
    """
    first, memory = {}, {}
    for name, function in contestants.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        first[name] = timed(function, device)
        if device.type == "cuda":
            memory[name] = (torch.cuda.max_memory_allocated(device) - before) / 1e9
    later = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            later[name].append(timed(function, device))
    medians = {name: statistics.median(values) for name, values in later.items()}
    return {
        "seconds": {name: median / units for name, median in medians.items()},
        "first_extra_s": {name: first[name] - median for name, median in medians.items()},
        **({"run_GB": memory} if memory else {}),
    }


def floors(device, dtype) -> dict[str, float]:
    """This machine's streaming read rate (GB/s) and matmul rate (GFLOP/s)."""
    big = torch.ones(2**28 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device).view(torch.int64)
    read = min(timed(lambda: big.sum(), device) for _ in range(5))
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    product = min(timed(lambda: a @ a, device) for _ in range(5))
    return {"read_GB_s": big.nbytes / read / 1e9, "matmul_GFLOP_s": 2 * n**3 / product / 1e9}


@torch.inference_mode()
def autoregressive(args, device, dtype):
    """Seconds per token of the baseline and of ours, with guidance, `args.batch` pictures of `args.tokens` tokens."""
    kind = baselines.PublishedJanus if baselines.reference() else baselines.TransformersJanus
    theirs = kind(args.size, args.tokens, device, dtype)
    ours = build_model(theirs.checkpoint, operations_for(device, dtype), device=device)
    ids = torch.randint(10, baselines.VOCABULARY, (PROMPT,), device=device)
    ids[0], ids[-1] = baselines.BOS, baselines.BEGIN_OF_IMAGE
    empty = ids.clone()
    empty[1:-1] = baselines.PAD
    positive, negative = (ours.embed_text(row, dtype)[None] for row in (ids, empty))

    record = recorder(device)

    def draw(model, record=record):
        for _ in tokens.sample_steps(model, positive, negative, args.tokens, indices=range(args.batch), record=record):
            pass

    contestants = {theirs.name: lambda: theirs.draw(ids, args.batch, args.tokens), "janus_core": lambda: draw(ours)}
    if record is not None:
        contestants["janus_core, without CUDA graphs"] = lambda: draw(ours, record=None)
    errors, states = {}, ours.llama(positive)
    for weights in args.weights or ["int8"] if dtype == torch.bfloat16 else ():
        operations = operations_over(operations_for(device, dtype))
        small = build_model(quantized(theirs.checkpoint, weights), operations, device=device)
        name = f"janus_core, {weights} weights"
        contestants[name] = lambda model=small: draw(model)
        errors[name] = ((small.llama(positive) - states).float().std() / states.float().std()).item()
    measured = alternate(contestants, args.repeats, device, args.tokens)
    read = ("language_model.model.layers.", "gen_head.")
    weights = sum(t.numel() for name, t in theirs.checkpoint.tensors.items() if name.startswith(read))
    return {
        "unit": "s/token",
        **measured,
        "bytes_per_token": weights * dtype.itemsize,
        "errors": errors,
    }


@torch.inference_mode()
def rectified_flow(args, device, dtype):
    """Seconds per guided Euler step of the baseline and of ours, on `args.batch` latents of 48x48."""
    theirs = (baselines.PublishedFlow if baselines.reference() else baselines.PlainFlow)(args.size, device, dtype)
    ours = build_model(theirs.checkpoint, operations_for(device, dtype), device=device)
    z = torch.randn(args.batch, 4, 48, 48, device=device)
    embeds = torch.randn(2, PROMPT, baselines.SIZES[args.size]["hidden_size"], device=device).to(dtype)
    visible = torch.ones(2, PROMPT, dtype=torch.bool, device=device)
    visible[1, 1:] = False
    rows = embeds.repeat_interleave(args.batch, 0), visible.repeat_interleave(args.batch, 0)
    times = flow.flow_times(args.steps)

    record = recorder(device)

    def draw(record=record):
        sides = (flow.Prompt(embeds[k : k + 1], visible[k : k + 1]) for k in range(2))
        velocity = flow.guided_velocity(ours, *sides, z, 2.0, record=record)
        for _ in flow.sample_steps(lambda x, t: velocity(x.to(dtype), t).float(), z, times):
            pass

    contestants = {theirs.name: lambda: theirs.draw(*rows, z, args.steps), "janus_core": draw}
    if record is not None:
        contestants["janus_core, without CUDA graphs"] = lambda: draw(record=None)
    measured = alternate(contestants, args.repeats, device, args.steps)
    tensors = theirs.checkpoint.tensors
    matrices = sum(t.numel() for name, t in tensors.items() if "language_model.model.layers." in name and t.dim() == 2)
    return {
        "unit": "s/step",
        **measured,
        "flop_per_step": 2 * matrices * 2 * args.batch * (baselines.PICTURE + 1),
    }


def operations_for(device, dtype):
    """What janus_core.load picks."""
    return cpu if device.type == "cpu" and cpu.available(dtype) else torch.nn


def machine(device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    pages = ", large pages" if large_pages() else ""
    return f"{model[0] if model else platform.processor()}, {torch.get_num_threads()} threads{pages}"


def large_pages() -> bool:
    """Whether torch asks Linux for large pages."""
    return os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"


def main():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--family", choices=["ar", "flow", "both"], default="both")
    top.add_argument("--size", choices=baselines.SIZES, default="1b")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    top.add_argument("--dtype", choices=DTYPES, action="append", help="may be given more than once; bf16 by default")
    top.add_argument("--weights", choices=WEIGHT_FORMATS, action="append", help="beside bf16; int8 by default")
    top.add_argument("--batch", type=int, default=1)
    top.add_argument("--tokens", type=int, help="per picture; 576 on a GPU and 24 on a CPU by default")
    top.add_argument("--steps", type=int, help="30 on a GPU and 2 on a CPU by default")
    top.add_argument("--repeats", type=int, default=3)
    args = top.parse_args()
    device = torch.device(args.device)
    on_cpu = device.type == "cpu"
    args.tokens = args.tokens or (24 if on_cpu else baselines.PICTURE)
    args.steps = args.steps or (2 if on_cpu else 30)
    report = {
        "machine": machine(device), "device": device.type,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "size": args.size, "batch": args.batch, "tokens": args.tokens, "steps": args.steps, "repeats": args.repeats,
        "results": [],
    }  # fmt: skip
    for name in args.dtype or ["bf16"]:
        floor = floors(device, DTYPES[name])
        for family, function in (("ar", autoregressive), ("flow", rectified_flow)):
            if args.family in (family, "both"):
                result = {"family": family, "dtype": name, **floor, **function(args, device, DTYPES[name])}
                report["results"].append(result)
                print(rows(result, not on_cpu), flush=True)
    RESULTS.mkdir(exist_ok=True)
    name = ["speed", device.type, args.size, args.family, *(args.dtype or []), *(args.weights or [])]
    name += ["published"] if baselines.reference() else []
    name += ["large-pages"] if device.type == "cpu" and large_pages() else []
    path = RESULTS / f"{'-'.join(name)}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(report))
    print(path.with_suffix(".md"))


def rows(result: dict, absolute: bool) -> str:
    """Lines of the table, one per contestant. The floor is memory reads for tokens and matrix products for steps."""
    (baseline_name, baseline), *ours = result["seconds"].items()
    if "bytes_per_token" in result:
        floor = result["bytes_per_token"] / result["read_GB_s"] / 1e9
    else:
        floor = result["flop_per_step"] / result["matmul_GFLOP_s"] / 1e9
    lines = []
    for name, seconds in ours:
        cells = [result["family"], result["dtype"], baseline_name, name]
        if absolute:
            cells += [f"{baseline:.4f} {result['unit']}", f"{seconds:.4f} {result['unit']}"]
            cells += [f"{result['first_extra_s'][name]:.2f} s", f"{result['run_GB'][name]:.2f}"]
        error = result.get("errors", {}).get(name)
        cells += [f"{baseline / seconds:.2f}", f"{100 * floor / seconds:.0f} %", f"{error:.4f}" if error else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(report: dict) -> str:
    """Markdown; seconds on a GPU alone, since a CPU's depend on what else it does."""
    absolute = report["device"] != "cpu"
    head = (
        f"Size {report['size']}, batch {report['batch']}, {report['machine']}, torch {report['torch']}, transformers "
        f"{report['transformers']}; {report['tokens']} tokens or {report['steps']} steps, medians of "
        f"{report['repeats']}, baseline and ours in turns.\n\n"
        "The floor is the time to read every weight once per token in the table's dtype, or to multiply by every "
        "weight once per step, at the rates that this machine reached in the same run. The error is that of the "
        "language model's states, relative to the table's dtype.\n\n"
    )
    titles = ["family", "dtype", "baseline", "ours"]
    if absolute:
        titles += ["its time", "our time", "more in the first run", "GB beside the weights"]
    titles += ["times the baseline's speed", "of the floor", "error"]
    header = "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|\n"
    return head + header + "\n".join(rows(result, absolute) for result in report["results"]) + "\n"


if __name__ == "__main__":
    main()
