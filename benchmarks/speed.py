"""Speed of both samplers beside a baseline, in one process and alternating: python -m benchmarks.speed --help.

Weights are random at real sizes. The baseline of the autoregressive family is transformers'
`generate(generation_mode="image")`; of JanusFlow, the published loop written plainly on transformers' LlamaModel (the
whole sequence in every step). Parts that do not run while sampling (vision tower, picture tokenizer) are kept small.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from janus_core import cpu
from janus_core.checkpoint import WEIGHT_FORMATS, Checkpoint, build_model, quantized
from janus_core.checkpoint.transformers_layout import published_tensors
from janus_core.janusflow import JanusFlow, JanusFlowParams
from janus_core.networks.llama import LlamaParams
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.uvit import UViTParams
from janus_core.quantized import operations_over
from janus_core.sampling import flow, tokens
from janus_core.sampling.choice import Choice

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SIZES = {
    "1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, num_attention_heads=32),
    "demo": dict(hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6),
}
VOCABULARY, PROMPT, PICTURE = 102400, 20, 24 * 24


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


def alternate(contestants: dict, repeats: int, device) -> dict[str, float]:
    """Median seconds of each contestant, run in turns after one warm-up each."""
    for function in contestants.values():
        function()
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            seconds[name].append(timed(function, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def floors(device, dtype) -> dict[str, float]:
    """This machine's streaming read rate (GB/s) and matmul rate (GFLOP/s)."""
    big = torch.ones(2**28 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device).view(torch.int64)
    read = min(timed(lambda: big.sum(), device) for _ in range(5))
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    product = min(timed(lambda: a @ a, device) for _ in range(5))
    return {"read_GB_s": big.nbytes / read / 1e9, "matmul_GFLOP_s": 2 * n**3 / product / 1e9}


def randomise(model):
    """Random weights of a trained model's magnitude, without a float32 copy of the whole."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(1 if parameter.numel() > 1 else 0)


def llama_config(size: str):
    return transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **SIZES[size])


@torch.inference_mode()
def autoregressive(args, device, dtype):
    """Seconds per token of transformers and of ours, with guidance, `args.batch` pictures of `args.tokens` tokens."""
    hidden = SIZES[args.size]["hidden_size"]
    config = transformers.JanusConfig(
        text_config=llama_config(args.size),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=1, projection_dim=hidden,
            num_image_tokens=args.tokens,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            base_channels=32, latent_channels=32, projection_dim=hidden, image_token_embed_dim=hidden
        ),
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    theirs = transformers.JanusForConditionalGeneration(config).to(device).eval()
    torch.set_default_dtype(torch.float32)
    randomise(theirs)
    theirs.generation_config.generation_kwargs = {"boi_token_id": 3}

    published = {"language_config": config.text_config.to_dict(), "vision_config": {}, "gen_vision_config": {}}
    published["language_config"]["rope_scaling"] = None
    checkpoint = Checkpoint(Path("random"), "janus", published_tensors(theirs.state_dict()), published, "")
    ours = build_model(checkpoint, operations_for(device, dtype), device=device)
    ids = torch.randint(10, VOCABULARY, (PROMPT,), device=device)
    ids[0], ids[-1] = 2, 3
    empty = torch.full_like(ids, 1)
    empty[0], empty[-1] = 2, 3
    positive, negative = (ours.embed_text(row, dtype)[None] for row in (ids, empty))
    common = dict(bos_token_id=2, pad_token_id=1, eos_token_id=0, max_length=2048)

    def baseline():
        theirs.generate(
            ids.repeat(args.batch, 1), attention_mask=torch.ones(args.batch, PROMPT, dtype=torch.long, device=device),
            generation_mode="image", do_sample=True, guidance_scale=5, **common,
        )  # fmt: skip

    def draw(model):
        steps = tokens.sample_steps(model, positive, negative, args.tokens, indices=range(args.batch), choice=Choice())
        for _ in steps:
            pass

    contestants, errors = {"transformers": baseline, "janus_core": lambda: draw(ours)}, {}
    states = ours.llama(positive)
    for weights in args.weights or ["int8"] if dtype == torch.bfloat16 else ():
        operations = operations_over(operations_for(device, dtype))
        small = build_model(quantized(checkpoint, weights), operations, device=device)
        name = f"janus_core, {weights} weights"
        contestants[name] = lambda model=small: draw(model)
        errors[name] = ((small.llama(positive) - states).float().std() / states.float().std()).item()
    seconds = alternate(contestants, args.repeats, device)
    weights = sum(
        p.numel() for n, p in theirs.named_parameters() if "language_model.layers" in n or "generation_head" in n
    )
    return {
        "unit": "s/token",
        "seconds": {name: value / args.tokens for name, value in seconds.items()},
        "bytes_per_token": weights * dtype.itemsize,
        "errors": errors,
    }


class PublishedLoop:
    """The published JanusFlow step on transformers' LlamaModel: every row's whole sequence, in every step."""

    def __init__(self, model: JanusFlow, llama):
        self.model, self.llama = model, llama

    def step(self, embeds, visible, z, t, cfg=2.0):
        rows = torch.cat((z, z))
        skip, t_emb = self.model.vision_gen_enc_model(rows, torch.full((len(rows),), t, device=z.device))
        image = self.model.vision_gen_enc_aligner(skip.flatten(2).transpose(1, 2))
        x = torch.cat((embeds, t_emb[:, None], image), dim=1)
        mask = torch.cat((visible, visible.new_ones(len(rows), 1 + image.shape[1])), dim=1).long()
        states = self.llama(inputs_embeds=x, attention_mask=mask, use_cache=True).last_hidden_state
        states = states[:, -image.shape[1] :]
        states = self.model.vision_gen_dec_aligner(self.model.vision_gen_dec_aligner_norm(states))
        v = self.model.vision_gen_dec_model(states.transpose(1, 2).unflatten(2, skip.shape[2:]), skip, t_emb)
        c, u = v.chunk(2)
        return cfg * c - (cfg - 1) * u


@torch.inference_mode()
def rectified_flow(args, device, dtype):
    """Seconds per guided Euler step of the published loop and of ours, on `args.batch` latents of 48x48."""
    sizes = SIZES[args.size]
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    llama = LlamaParams(
        VOCABULARY, hidden, sizes["intermediate_size"], sizes["num_hidden_layers"], heads, heads, hidden // heads
    )
    uvit = UViTParams(4, 768, 768, sizes["hidden_size"], 2, 2, 2, 2, 0, 1)
    params = JanusFlowParams(llama, SiglipParams(64, 64, 1, 1, 16, 576), uvit)
    plain = JanusFlow(params, device=device, dtype=dtype).eval()
    randomise(plain)
    state = plain.state_dict()
    theirs = transformers.LlamaModel(llama_config(args.size)).to(device, dtype).eval()
    prefix = "language_model.model."
    theirs.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, assign=True)
    ours = JanusFlow(params, operations_for(device, dtype), device=device, dtype=dtype).eval()
    ours.load_state_dict(state, assign=True)

    z = torch.randn(args.batch, 4, 48, 48, device=device)
    embeds = torch.randn(2, PROMPT, sizes["hidden_size"], device=device).to(dtype)
    visible = torch.ones(2, PROMPT, dtype=torch.bool, device=device)
    visible[1, 1:] = False
    loop = PublishedLoop(plain, theirs)
    rows = embeds.repeat_interleave(args.batch, 0), visible.repeat_interleave(args.batch, 0)
    times = flow.flow_times(args.steps)

    def baseline():
        x = z
        for k in range(args.steps):
            x = x + loop.step(*rows, x.to(dtype), 1000 * k / args.steps).float() / args.steps

    def mine():
        sides = (flow.Prompt(embeds[k : k + 1], visible[k : k + 1]) for k in range(2))
        velocity = flow.guided_velocity(ours, *sides, z, 2.0)
        for _ in flow.sample_steps(lambda x, t: velocity(x.to(dtype), t).float(), z, times):
            pass

    seconds = alternate({"published loop": baseline, "janus_core": mine}, args.repeats, device)
    matrices = sum(p.numel() for n, p in plain.named_parameters() if ".layers." in n and p.dim() == 2)
    return {
        "unit": "s/step",
        "seconds": {name: value / args.steps for name, value in seconds.items()},
        "flop_per_step": 2 * matrices * 2 * args.batch * (PICTURE + 1),
    }


def operations_for(device, dtype):
    """What janus_core.load picks."""
    return cpu if device.type == "cpu" and cpu.available(dtype) else torch.nn


def machine(device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{model[0] if model else platform.processor()}, {torch.get_num_threads()} threads"


def main():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--family", choices=["ar", "flow", "both"], default="both")
    top.add_argument("--size", choices=SIZES, default="1b")
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
    args.tokens = args.tokens or (24 if on_cpu else PICTURE)
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
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                result = {"family": family, "dtype": name, **floor, **function(args, device, DTYPES[name])}
                if device.type == "cuda":
                    result["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
                report["results"].append(result)
                print(rows(result, not on_cpu), flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{'-'.join(['speed', device.type, args.size, args.family, *(args.dtype or [])])}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(report))
    print(path.with_suffix(".md"))


def rows(result: dict, absolute: bool) -> str:
    """Lines of the table, one per contestant. The floor is memory reads for tokens and matrix products for steps."""
    (_, baseline), *ours = result["seconds"].items()
    if "bytes_per_token" in result:
        floor = result["bytes_per_token"] / result["read_GB_s"] / 1e9
    else:
        floor = result["flop_per_step"] / result["matmul_GFLOP_s"] / 1e9
    lines = []
    for name, seconds in ours:
        cells = [result["family"], result["dtype"], name]
        if absolute:
            cells += [f"{baseline:.4f} {result['unit']}", f"{seconds:.4f} {result['unit']}"]
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
    titles = ["family", "dtype", "ours", *(["baseline", "seconds"] if absolute else []), "times the baseline's speed"]
    titles += ["of the floor", "error"]
    header = "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|\n"
    return head + header + "\n".join(rows(result, absolute) for result in report["results"]) + "\n"


if __name__ == "__main__":
    main()
