"""How well the demo checkpoints follow prompts, answer questions and do their tasks: `python -m demo.recipe.quality`.

Prints a table of scores in plain phrasings (200 prompts, half of them with combinations held out of training, scored by
the pixel judge, and 200 questions), then each bar of bars.py and task_bars.py in phrasings held out of training: what
was measured, what it must reach, and whether it does.
"""

import argparse
import random
import sys
import time
from functools import partial
from pathlib import Path

import torch

import janus_core
from janus_core.training.validation import image_grid

from . import bars, judge, questions, scenes, task_bars
from .captions import SAMPLE_PROMPTS, plain_caption

DEMO = Path(__file__).resolve().parents[1]
AR, FLOW, VAE = DEMO / "janus-pro-demo", DEMO / "janusflow-demo", DEMO / "vae" / "janusflow-demo-vae.safetensors"
NEW_VAE = DEMO / "recipe" / "vae.safetensors"  # for the next flow demo
TASKS = DEMO / "loras" / "janus-pro-demo-tasks.safetensors"
COLUMNS = (
    "background",
    "colour",
    "shape",
    "both and relation",
    "colour, held out",
    "shape, held out",
    "both, held out",
)
PLAIN_KINDS = ("background", "count", "colour of", "shape of", "colour", "shape", "where")
PLAIN_BARS = dict(zip(COLUMNS, (95, 95, 95, 90, 90, 90, 85)))
PLAIN_RUNS = {  # of each model; the first has bars
    "AR": {"AR, cfg 5": {}},
    "flow": {"flow, cfg 2, 30 steps": {}, "flow, cfg 2, 4 steps": {"steps": 4}},
}
TASK_BARS = (task_bars.edits, task_bars.checks, task_bars.plans)
SECTIONS = ("plain", "phrasings", "variety", "negatives", "guidance", "img2img", "answers", "autoencoders", "tasks")


def prompts(count: int, seed: int = 2024) -> list[tuple[scenes.Scene, str]]:
    """Scenes and their plain prompts: one object and two, training and held-out split, in turn."""
    rng = random.Random(seed)
    sampled = [scenes.random_scene(rng, two=k % 2 == 1, held_out=k % 4 > 1) for k in range(count)]
    return [(scene, plain_caption(scene)) for scene in sampled]


def plain_questions(scene: scenes.Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Questions in the first phrasing of each kind, with their answers."""
    facts = [fact for fact in questions.facts(scene, rng) if fact[0] in PLAIN_KINDS]
    pairs = [(questions.PHRASINGS[kind][0].format(**asked), answer) for kind, asked, answer in facts]
    return [*pairs, (questions.DESCRIBE[0], plain_caption(questions.in_reading_order(scene)))]


def scores(images, asked) -> dict[str, float]:
    """Percent right, by the names of COLUMNS."""
    verdicts = [(scene, judge.judge(image, scene)) for image, (scene, _) in zip(images, asked)]
    held_out = [(scene, v) for scene, v in verdicts if scene.held_out]
    return {
        "background": bars.percent(v.background for _, v in verdicts),
        "colour": bars.percent(c for _, v in verdicts for c in v.colours),
        "shape": bars.percent(s for _, v in verdicts for s in v.shapes),
        "both and relation": bars.percent(v.relation for scene, v in verdicts if scene.relation),
        "colour, held out": bars.percent(c for _, v in held_out for c in v.colours),
        "shape, held out": bars.percent(s for _, v in held_out for s in v.shapes),
        "both, held out": bars.percent(v.relation for scene, v in held_out if scene.relation),
    }


def understanding(pipe, count: int, seed: int = 2025) -> tuple[float, float]:
    """Percent of answers that are exactly right, over all and over held-out scenes."""
    rng = random.Random(seed)
    right = {False: [], True: []}
    for k in range(count):
        scene = scenes.random_scene(rng, held_out=k % 2 == 1)
        question, answer = rng.choice(plain_questions(scene, rng))
        written = pipe.describe(scenes.render(scene), question, max_new_tokens=40)[0].strip()
        right[scene.held_out].append(written == answer)
    everything = right[False] + right[True]
    return bars.percent(everything), bars.percent(right[True])


def table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of scores."""
    lines = ["| model and settings | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.1f}" for column in COLUMNS) + " |")
    return "\n".join(lines)


def plain_scores(pipes: dict, count: int, folder: Path | None):
    """Prints the table of plain prompts and questions. Returns these as bars as well."""
    asked = prompts(count)
    rows, found = {"ground truth": scores([scenes.render(scene) for scene, _ in asked], asked)}, []
    for name, pipe in pipes.items():
        for run, settings in PLAIN_RUNS[name].items():
            images = bars.generate(pipe, [text for _, text in asked], **settings)
            rows[run] = scores(images, asked)
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                for k, image in enumerate(images):
                    image.save(folder / f"{run.replace(' ', '_').replace(',', '')}_{k:03}.png")
        first, (everything, held_out) = rows[next(iter(PLAIN_RUNS[name]))], understanding(pipe, count)
        found += [bars.Bar(f"{name}: plain prompts, {column}", first[column], PLAIN_BARS[column]) for column in COLUMNS]
        found.append(bars.Bar(f"{name}: plain questions", everything, 95))
        found.append(bars.Bar(f"{name}: plain questions, held-out scenes", held_out, 90))
    print(f"Percent right on {count} plain prompts:\n\n{table(rows)}\n", flush=True)
    return found


def main(argv=None) -> int:
    """Prints the tables; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m demo.recipe.quality", description=__doc__)
    parser.add_argument("--count", type=int, default=bars.COUNT, help=f"prompts or questions per bar ({bars.COUNT})")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections, all by default")
    parser.add_argument(
        "--models", nargs="+", choices=list(PLAIN_RUNS), default=list(PLAIN_RUNS), help="both by default"
    )
    parser.add_argument("--ar", type=Path, default=AR)
    parser.add_argument("--flow", type=Path, default=FLOW)
    parser.add_argument("--vae", type=Path, default=VAE)
    parser.add_argument("--tasks", type=Path, default=TASKS, help="the LoRA of the toy tasks")
    parser.add_argument("--images", type=Path, help="folder to save the images of the plain prompts in")
    parser.add_argument("--samples", type=Path, help="image file: a row of samples of each model")
    args = parser.parse_args(argv)
    torch.set_grad_enabled(False)
    load = {"device": "cpu", "dtype": torch.float32}
    files = {"AR": {"path": args.ar}, "flow": {"path": args.flow, "vae": args.vae}}
    pipes = {name: janus_core.load(**files[name], **load) for name in args.models}
    ar, flow = pipes.get("AR"), pipes.get("flow")

    if args.samples:
        rows = [bars.generate(pipe, SAMPLE_PROMPTS) for pipe in pipes.values()]
        image_grid([image for row in rows for image in row], len(SAMPLE_PROMPTS)).save(args.samples)

    def each(measure, *settings):
        return [one for name, pipe in pipes.items() for one in measure(name, pipe, *settings)]

    def autoencoders():
        found = {"VQ": ar and ar.vq, "VAE": flow and flow.vae}
        return [one for name, model in found.items() if model for one in bars.textures(name, model, args.count)]

    def tasks():
        pipe = janus_core.load(args.ar, loras=args.tasks, **load)
        return [one for measure in TASK_BARS for one in measure(pipe, args.count)]

    sections = {
        "plain": partial(plain_scores, pipes, 2 * args.count, args.images),
        "phrasings": partial(each, bars.phrasings, args.count),
        "variety": partial(each, bars.variety),
        "negatives": partial(each, bars.negatives, args.count),
        "answers": partial(each, bars.answers, args.count),
        "autoencoders": autoencoders,
    }
    if flow:
        sections["guidance"] = partial(bars.flow_guidance, flow, args.count)
        sections["img2img"] = partial(bars.image_to_image, flow, args.count)
    if ar:
        sections["tasks"] = tasks
    found = []
    for name in args.only:
        if name in sections:
            began = time.time()
            found += sections[name]()
            print(f"{name}: {time.time() - began:.0f} s", flush=True)
    print(f"\n{bars.table(found)}")
    return 0 if all(one.passed for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
