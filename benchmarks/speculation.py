"""Passes and time that speculative decoding saves on trained weights: `python -m benchmarks.speculation`.

Draws pictures of the demo's prompts with several windows, in turns, and checks that the tokens are those of plain
sampling. Writes benchmarks/results/speculation.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

import janus_core
from benchmarks.demo_quality import AR, prompts
from janus_core.sampling import tokens

WINDOWS = (1, 2, 4, 8, 16, 32)
RESULT = Path(__file__).parent / "results" / "speculation.md"


@torch.inference_mode()
def draw(pipe, prompt: str, seed: int, window: int) -> tuple[torch.Tensor, int, float]:
    """(tokens, passes of the model, seconds) of one picture."""
    began = time.perf_counter()
    h, w = pipe.grid()
    for step in tokens.sample_steps(pipe.model, *pipe.sides(prompt), h * w, seed=seed, window=window, width=w):
        pass
    return step.tokens, step.passes, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speculation", description=__doc__)
    parser.add_argument("--model", type=Path, default=AR)
    parser.add_argument("--count", type=int, default=40, help="pictures per window (40)")
    parser.add_argument("--device")
    args = parser.parse_args()
    pipe = janus_core.load(args.model, device=args.device, dtype=torch.float32)
    passes, seconds, same = ({window: [] for window in WINDOWS} for _ in range(3))
    for seed, (_, prompt) in enumerate(prompts(args.count)):
        runs = {window: draw(pipe, prompt, seed, window) for window in WINDOWS}
        plain = runs[1][0]
        for window, (drawn, count, spent) in runs.items():
            passes[window].append(count)
            seconds[window].append(spent)
            same[window].append(torch.equal(drawn, plain))
    plain_time = statistics.median(seconds[1])
    lines = ["| window | passes per picture | times the speed | same tokens |", "|---|---|---|---|"]
    for window in WINDOWS:
        gain = plain_time / statistics.median(seconds[window])
        equal = f"{sum(same[window])} of {args.count}"
        lines.append(f"| {window} | {statistics.mean(passes[window]):.1f} | {gain:.2f} | {equal} |")
    head = (
        f"{args.model.name} on {pipe.device}, float32, torch {torch.__version__}: {args.count} pictures of "
        f"{len(plain[0])} tokens, cfg 5, temperature 1.\n\n"
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
