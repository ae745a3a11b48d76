"""Speed of both samplers and of a baseline, in turns in one process: python -m benchmarks.speed --help.

Weights are random at real sizes; the baselines are described in benchmarks/baselines.py. Writes a JSON file and a
Markdown table to benchmarks/results. On a GPU, CUDA graphs and the Triton decoder are measured separately.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import RESULTS, baselines, report
from janus_core.checkpoint import WEIGHT_FORMATS, build_model, quantized
from janus_core.cli_options import DTYPES
from janus_core.operations import choose_operations
from janus_core.sampling import flow
from janus_core.sampling.cuda_graphs import capture_for
from janus_core.sampling.decode_loop import decode_loop
from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens
from janus_core.triton_decoder import decoder as triton_decoder

PROMPT_TOKENS = 20


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def relative_error(found, expected) -> float:
    """Of hidden states, in the Euclidean norm."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def timed(function, device) -> float:
    """Seconds of one call."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def measure(contestants: dict, repeats: int, device, units: int) -> dict[str, dict[str, float]]:
    """Runs every contestant once, then all of them in turn `repeats` times.

    Args:
        contestants: functions by name, each of which generates `units` tokens or steps.

    Returns:
        By contestant: `seconds`, the median per unit; `first_extra_s`, how much longer the first run took (packing,
        capturing); on a GPU `run_GB`, the peak of memory that the first run allocated.
    """
    first, memory = {}, {}
    for name, function in contestants.items():
        before = start_peak(device)
        first[name] = timed(function, device)
        if before is not None:
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


def start_peak(device: torch.device) -> int | None:
    """Begins to count the peak of allocated memory. Returns the bytes that are allocated now; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def machine_rates(device, dtype) -> dict[str, float]:
    """This machine's streaming read rate (GB/s) and matmul rate (GFLOP/s)."""
    big = torch.ones(2**28 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device).view(torch.int64)
    read = min(timed(lambda: big.sum(), device) for _ in range(5))
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    product = min(timed(lambda: a @ a, device) for _ in range(5))
    return {"read_GB_s": big.nbytes / read / 1e9, "matmul_GFLOP_s": 2 * n**3 / product / 1e9}


def decode_loops(model, x) -> dict[str, Callable]:
    """The decode loops that a device has, by what a result's name gains; x are a step's embeddings [rows, hidden]."""
    loops, capture = {"": decode_loop()}, capture_for(x.device, True)
    if capture is not None:
        loops[", CUDA graph"] = decode_loop(1, None, capture, triton=False)
        if triton_decoder.usable(model.llama, x):
            loops[", CUDA graph + Triton"] = decode_loop(1, None, capture, triton=True)
    return loops


@torch.inference_mode()
def autoregressive(args, device, dtype) -> dict:
    """Seconds per token with guidance, for `args.batch` images of `args.tokens` tokens."""
    original = baselines.original_repository()
    kind = baselines.OriginalJanus if original else baselines.TransformersJanus
    baseline = kind(args.size, args.tokens, device, dtype)
    model = build_model(baseline.checkpoint, choose_operations(device, dtype), device=device)
    ids = torch.randint(10, baselines.VOCABULARY, (PROMPT_TOKENS,), device=device)
    ids[0], ids[-1] = baselines.BOS, baselines.BEGIN_OF_IMAGE
    unconditional_ids = ids.clone()
    unconditional_ids[1:-1] = baselines.PAD
    cond, uncond = (model.embed_text(row, dtype)[None] for row in (ids, unconditional_ids))

    models, model_errors = {"janus_core": model}, {}
    states = model.llama(cond)
    for weights in args.weights or ["int8"] if dtype == torch.bfloat16 else ():
        operations = choose_operations(device, dtype, has_quantized_layers=True)
        small = build_model(quantized(baseline.checkpoint, weights), operations, device=device)
        name = f"janus_core, {weights} weights"
        models[name] = small
        model_errors[name] = relative_error(small.llama(cond), states)

    def generate(model, decode):
        settings, images = TokenSamplerSettings(), range(args.batch)
        for _ in sample_image_tokens(model, cond, uncond, args.tokens, settings, image_indices=images, decode=decode):
            pass

    contestants, errors = {baseline.name: lambda: baseline.generate(ids, args.batch, args.tokens)}, {}
    for name, model in models.items():
        for suffix, decode in decode_loops(model, cond[:, -1].expand(2 * args.batch, -1)).items():
            contestants[name + suffix] = partial(generate, model, decode)
            if name in model_errors:
                errors[name + suffix] = model_errors[name]
    measured = measure(contestants, args.repeats, device, args.tokens)
    read = ("language_model.model.layers.", "gen_head.")
    weights = sum(t.numel() for name, t in baseline.checkpoint.tensors.items() if name.startswith(read))
    return {"unit": "s/token", **measured, "bytes_per_token": weights * dtype.itemsize, "errors": errors}


@torch.inference_mode()
def rectified_flow(args, device, dtype) -> dict:
    """Seconds per guided Euler step, for `args.batch` latents of 48 x 48."""
    kind = baselines.OriginalFlow if baselines.original_repository() else baselines.TransformersFlow
    baseline = kind(args.size, device, dtype)
    model = build_model(baseline.checkpoint, choose_operations(device, dtype), device=device)
    z = torch.randn(args.batch, 4, 48, 48, device=device)
    embeds = torch.randn(2, PROMPT_TOKENS, baselines.SIZES[args.size]["hidden_size"], device=device).to(dtype)
    visible = torch.ones(2, PROMPT_TOKENS, dtype=torch.bool, device=device)
    visible[1, 1:] = False
    rows = embeds.repeat_interleave(args.batch, 0), visible.repeat_interleave(args.batch, 0)
    cond, uncond = (flow.PromptEmbeds(embeds[k : k + 1], visible[k : k + 1]) for k in range(2))
    times = flow.flow_times(args.steps)

    def generate(capture):
        velocity = flow.guided_velocity(model, cond, uncond, z, 2.0, capture=capture)
        for _ in flow.integrate(lambda z, t: velocity(z.to(dtype), t).float(), z, times):
            pass

    contestants = {baseline.name: lambda: baseline.generate(*rows, z, args.steps), "janus_core": lambda: generate(None)}
    if capture := capture_for(device, True):
        contestants["janus_core, CUDA graph"] = lambda: generate(capture)
    measured = measure(contestants, args.repeats, device, args.steps)
    tensors = baseline.checkpoint.tensors
    matrices = sum(t.numel() for name, t in tensors.items() if "language_model.model.layers." in name and t.dim() == 2)
    flop_per_step = 2 * matrices * 2 * args.batch * (baselines.IMAGE_TOKENS + 1)
    return {"unit": "s/step", **measured, "flop_per_step": flop_per_step}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["ar", "flow", "both"], default="both")
    parser.add_argument("--size", choices=baselines.SIZES, default="1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be given more than once; default bf16")
    parser.add_argument("--weights", choices=WEIGHT_FORMATS, action="append", help="besides bf16; default int8")
    parser.add_argument("--batch", type=int, help="images at once; default 1")
    parser.add_argument("--tokens", type=int, help="per image; default 576 on a GPU and 24 on a CPU")
    parser.add_argument("--steps", type=int, help="default 30 on a GPU and 2 on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    chosen = [f"{key}{getattr(args, key)}" for key in ("batch", "tokens", "steps") if getattr(args, key) is not None]
    args.batch = args.batch or 1
    device = torch.device(args.device)
    on_cpu = device.type == "cpu"
    args.tokens = args.tokens or (24 if on_cpu else baselines.IMAGE_TOKENS)
    args.steps = args.steps or (2 if on_cpu else 30)
    result = {
        **report.run_info(device), "device": device.type,
        "size": args.size, "batch": args.batch, "tokens": args.tokens, "steps": args.steps, "repeats": args.repeats,
        "results": [],
    }  # fmt: skip
    for name in args.dtype or ["bf16"]:
        rates = machine_rates(device, DTYPES[name])
        for family, function in (("ar", autoregressive), ("flow", rectified_flow)):
            if args.family in (family, "both"):
                entry = {"family": family, "dtype": name, **rates, **function(args, device, DTYPES[name])}
                result["results"].append(entry)
                print(table_rows(entry, not on_cpu), flush=True)
    name = ["speed", device.type, args.size, args.family, *(args.dtype or []), *(args.weights or [])]
    name += chosen
    name += ["original"] if baselines.original_repository() else []
    name += ["large-pages"] if on_cpu and report.large_pages() else []
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{'-'.join(name)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(result))
    print(path.with_suffix(".md"))


def table_rows(entry: dict, absolute: bool) -> str:
    """One line per contestant. The roofline is memory reads for tokens and matrix products for steps."""
    (baseline_name, baseline), *ours = entry["seconds"].items()
    if "bytes_per_token" in entry:
        roofline = entry["bytes_per_token"] / entry["read_GB_s"] / 1e9
    else:
        roofline = entry["flop_per_step"] / entry["matmul_GFLOP_s"] / 1e9
    lines = []
    for name, seconds in ours:
        cells = [entry["family"], entry["dtype"], baseline_name, name]
        if absolute:
            cells += [f"{baseline:.4f} {entry['unit']}", f"{seconds:.4f} {entry['unit']}"]
            cells += [f"{entry['first_extra_s'][name]:.2f} s", f"{entry['run_GB'][name]:.2f}"]
        error = entry.get("errors", {}).get(name)
        cells += [f"{baseline / seconds:.2f}", f"{100 * roofline / seconds:.0f} %", f"{error:.4f}" if error else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(result: dict) -> str:
    """Markdown; absolute times on a GPU only, since a CPU's depend on its other load."""
    absolute = result["device"] != "cpu"
    head = (
        f"{report.header(result)}\n\n"
        f"Size {result['size']}, batch {result['batch']}, {result['tokens']} tokens or {result['steps']} steps, random "
        f"weights; medians of {result['repeats']} runs, the baseline and janus_core in turns.\n\n"
        "The roofline is the time to read every weight once per token in the table's dtype, or to multiply by every "
        "weight once per step, at the rates that the machine reached in the same run. The error is that of the "
        "language model's hidden states, relative to unquantized weights.\n\n"
    )
    titles = ["family", "dtype", "baseline", "measured"]
    if absolute:
        titles += ["baseline's time", "time", "extra time in the first run", "GB besides the weights"]
    titles += ["speedup", "of the roofline", "error"]
    header = "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|\n"
    return head + header + "\n".join(table_rows(entry, absolute) for entry in result["results"]) + "\n"


if __name__ == "__main__":
    main()
