"""How well the demo checkpoints do what they are told: `python -m benchmarks.demo_quality`.

200 prompts, half of them with combinations that training never showed, are drawn with seeds 0 to 199 and read back by
the pixel judge (janus_core/training/judge.py). Then 200 questions are asked about drawn scenes, half of them held out.
"""

import argparse
import random
import time
from pathlib import Path

import torch

import janus_core
from janus_core.training import judge, scenes

DEMO = Path(__file__).resolve().parents[1] / "demo"
AR, FLOW, VAE = DEMO / "janus-pro-demo", DEMO / "janusflow-demo", DEMO / "vae" / "janusflow-demo-vae.safetensors"
COLUMNS = (
    "background",
    "colour",
    "shape",
    "both and relation",
    "colour, held out",
    "shape, held out",
    "both, held out",
)


def prompts(count: int, seed: int = 2024) -> list[tuple[scenes.Scene, str]]:
    """Scenes and their prompts: one thing and two, seen and held out, in turn."""
    rng = random.Random(seed)
    made = []
    for k in range(count):
        scene = scenes.random_scene(rng, two=k % 2 == 1, held_out=k % 4 > 1)
        made.append((scene, scenes.caption(scene, rng)))
    return made


def draw(pipe, asked, **settings):
    """One picture per prompt; prompt k is drawn with seed k."""
    return [pipe(text, seed=k, **settings)[0] for k, (_, text) in enumerate(asked)]


def scores(pictures, asked) -> dict[str, float]:
    """Percent right, by the names of COLUMNS."""
    verdicts = [(scene, judge.judge(picture, scene)) for picture, (scene, _) in zip(pictures, asked)]

    def percent(values):
        values = list(values)
        return 100.0 * float(sum(values)) / len(values)

    held_out = [(scene, v) for scene, v in verdicts if scene.held_out]
    return {
        "background": percent(v.background for _, v in verdicts),
        "colour": percent(c for _, v in verdicts for c in v.colours),
        "shape": percent(s for _, v in verdicts for s in v.shapes),
        "both and relation": percent(v.relation for scene, v in verdicts if scene.relation),
        "colour, held out": percent(c for _, v in held_out for c in v.colours),
        "shape, held out": percent(s for _, v in held_out for s in v.shapes),
        "both, held out": percent(v.relation for scene, v in held_out if scene.relation),
    }


def understanding(pipe, count: int, seed: int = 2025) -> tuple[float, float]:
    """Percent of answers that are exactly right, over all and over held-out scenes."""
    rng = random.Random(seed)
    right = {False: [], True: []}
    for k in range(count):
        scene = scenes.random_scene(rng, held_out=k % 2 == 1)
        question, answer = rng.choice(scenes.questions(scene))
        written = pipe.describe(scenes.draw(scene), question, max_new_tokens=40)[0].strip()
        right[scene.held_out].append(written == answer)
    everything = right[False] + right[True]
    return 100 * sum(everything) / len(everything), 100 * sum(right[True]) / len(right[True])


def table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of scores."""
    lines = ["| model and settings | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.1f}" for column in COLUMNS) + " |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_quality", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="prompts, and questions (200)")
    parser.add_argument("--defaults", action="store_true", help="only the default settings of each model")
    parser.add_argument("--ar", type=Path, default=AR)
    parser.add_argument("--flow", type=Path, default=FLOW)
    parser.add_argument("--vae", type=Path, default=VAE)
    parser.add_argument("--without-repa", type=Path, help="a flow checkpoint to show beside the demo")
    parser.add_argument("--pictures", type=Path, help="folder that takes every picture drawn")
    args = parser.parse_args(argv)
    torch.set_grad_enabled(False)
    asked = prompts(args.count)
    load = {"device": "cpu", "dtype": torch.float32}
    ar = janus_core.load(args.ar, **load)
    flow = janus_core.load(args.flow, vae=args.vae, **load)
    runs = {"AR, cfg 5": (ar, {}), "flow, cfg 2, 30 steps": (flow, {})}
    if not args.defaults:
        runs["AR, cfg 1"] = (ar, {"guidance": 1.0})
        runs["flow, cfg 1, 30 steps"] = (flow, {"guidance": 1.0})
        runs["flow, cfg 2, 4 steps"] = (flow, {"steps": 4})
    if args.without_repa:
        without = janus_core.load(args.without_repa, vae=args.vae, **load)
        runs["flow trained without REPA, cfg 2, 30 steps"] = (without, {})
    rows = {"drawings of the task itself": scores([scenes.draw(scene) for scene, _ in asked], asked)}
    for name, (pipe, settings) in runs.items():
        began = time.time()
        pictures = draw(pipe, asked, **settings)
        rows[name] = scores(pictures, asked)
        print(f"{name}: {len(asked)} pictures in {time.time() - began:.0f} s", flush=True)
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            for k, picture in enumerate(pictures):
                picture.save(args.pictures / f"{name.replace(' ', '_').replace(',', '')}_{k:03}.png")
    print(f"\nPercent right on {args.count} prompts:\n\n{table(rows)}\n")
    for name, pipe in (("AR", ar), ("flow", flow)):
        everything, held_out = understanding(pipe, args.count)
        print(f"{name} understanding: {everything:.1f} % of answers exactly right, {held_out:.1f} % on held-out scenes")


if __name__ == "__main__":
    main()
