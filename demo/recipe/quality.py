"""How well the demo checkpoints follow their prompts: `python -m demo.recipe.quality`.

Generates images of 200 prompts, half of them with combinations held out of training, with seeds 0 to 199; the pixel
judge (judge.py) compares each with its prompt. Then asks 200 questions about rendered scenes, half of them held out.
"""

import argparse
import random
import time
from pathlib import Path

import torch

import janus_core

from . import judge, scenes

DEMO = Path(__file__).resolve().parents[1]
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
    """Scenes and their prompts: one object and two, training and held-out split, in turn."""
    rng = random.Random(seed)
    pairs = []
    for k in range(count):
        scene = scenes.random_scene(rng, two=k % 2 == 1, held_out=k % 4 > 1)
        pairs.append((scene, scenes.caption(scene, rng)))
    return pairs


def generate(pipe, asked, **settings):
    """One image per (scene, prompt); prompt k is generated with seed k."""
    return [pipe(text, seed=k, **settings)[0] for k, (_, text) in enumerate(asked)]


def scores(images, asked) -> dict[str, float]:
    """Percent right, by the names of COLUMNS."""
    verdicts = [(scene, judge.judge(image, scene)) for image, (scene, _) in zip(images, asked)]

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
        written = pipe.describe(scenes.render(scene), question, max_new_tokens=40)[0].strip()
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
    parser = argparse.ArgumentParser(prog="python -m demo.recipe.quality", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="prompts, and questions (200)")
    parser.add_argument("--defaults", action="store_true", help="only the default settings of each model")
    parser.add_argument("--ar", type=Path, default=AR)
    parser.add_argument("--flow", type=Path, default=FLOW)
    parser.add_argument("--vae", type=Path, default=VAE)
    parser.add_argument("--without-repa", type=Path, help="a flow checkpoint to compare with the demo's")
    parser.add_argument("--images", type=Path, help="folder to save all generated images in")
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
    rows = {"ground truth": scores([scenes.render(scene) for scene, _ in asked], asked)}
    for name, (pipe, settings) in runs.items():
        began = time.time()
        images = generate(pipe, asked, **settings)
        rows[name] = scores(images, asked)
        print(f"{name}: {len(asked)} images in {time.time() - began:.0f} s", flush=True)
        if args.images:
            args.images.mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(images):
                image.save(args.images / f"{name.replace(' ', '_').replace(',', '')}_{k:03}.png")
    print(f"\nPercent right on {args.count} prompts:\n\n{table(rows)}\n")
    for name, pipe in (("AR", ar), ("flow", flow)):
        everything, held_out = understanding(pipe, args.count)
        print(f"{name} understanding: {everything:.1f} % of answers exactly right, {held_out:.1f} % on held-out scenes")


if __name__ == "__main__":
    main()
