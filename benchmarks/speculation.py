"""What speculative decoding saves on trained weights: `python -m benchmarks.speculation`.

Generates images of the demo's world with several window sizes in turn, and checks that the tokens equal those of plain
sampling. Writes benchmarks/results/speculation.md.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch

import janus_core
from benchmarks import AR, RESULTS, report
from janus_core.sampling.decode_loop import decode_loop
from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens

WINDOWS = (1, 2, 4, 8, 16, 32)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "cross")


def prompts(count: int) -> list[str]:
    """Prompts in the demo's phrasing, one and two objects in turn."""
    rng = random.Random(0)
    texts = []
    for k in range(count):
        background, *colours = rng.sample(COLOURS, 3)
        objects = [f"a {colour} {rng.choice(SHAPES)}" for colour in colours]
        text = f"{objects[0]} left of {objects[1]}" if k % 2 else objects[0]
        texts.append(f"{text} on a {background} background".replace("a orange", "an orange"))
    return texts


@torch.inference_mode()
def generate(pipe, prompt: str, seed: int, window: int) -> tuple[torch.Tensor, int, float]:
    """(tokens, decoder passes, seconds) of one image."""
    began = time.perf_counter()
    h, w = pipe.grid()
    settings = TokenSamplerSettings(seed=seed, window=window)
    cond, uncond = pipe.encode_prompt(prompt)
    for step in sample_image_tokens(pipe.model, cond, uncond, h * w, settings, decode=decode_loop(window, w)):
        pass
    return step.tokens, step.passes, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speculation", description=__doc__)
    parser.add_argument("--model", type=Path, default=AR)
    parser.add_argument("--count", type=int, default=40, help="images per window size (40)")
    parser.add_argument("--device")
    args = parser.parse_args()
    pipe = janus_core.load(args.model, device=args.device, dtype=torch.float32)
    info = report.run_info(pipe.device)
    passes, seconds, same = ({window: [] for window in WINDOWS} for _ in range(3))
    for seed, prompt in enumerate(prompts(args.count)):
        runs = {window: generate(pipe, prompt, seed, window) for window in WINDOWS}
        plain_tokens = runs[1][0]
        for window, (tokens, decoder_passes, elapsed) in runs.items():
            passes[window].append(decoder_passes)
            seconds[window].append(elapsed)
            same[window].append(torch.equal(tokens, plain_tokens))
    plain_time = statistics.median(seconds[1])
    lines = [
        report.header(info),
        "",
        f"{args.model.name}, float32, {args.count} images of {plain_tokens.shape[1]} tokens, cfg 5, temperature 1. "
        "Passes are means, speedups are of median times.",
        "",
        "| window | passes per image | speedup | same tokens |",
        "|---|---|---|---|",
    ]
    for window in WINDOWS:
        speedup = plain_time / statistics.median(seconds[window])
        equal = f"{sum(same[window])} of {args.count}"
        lines.append(f"| {window} | {statistics.mean(passes[window]):.1f} | {speedup:.2f} | {equal} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
