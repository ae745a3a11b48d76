"""What the demos must reach with prompts and questions that training never showed: one Bar for each demand."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from janus_core.networks.vq import VQModel
from janus_core.vae import LatentVAE

from . import judge, questions
from .captions import Caption, caption
from .codebook import to_pixels
from .scene_data import mixed_scene
from .scenes import Scene, render
from .textures import KINDS, texture
from .words import plural, with_article

COUNT = 100  # prompts or questions per bar
BARE = ("a red circle", "a green square", "a blue triangle")
SEEDS = 16
BATCH = 8  # images generated at once
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0)  # of the flow model
STEPS = 30


@dataclass(frozen=True)
class Bar:
    """A measurement and what it must reach; percent unless the name says something else."""

    name: str
    measured: float
    bar: float

    @property
    def passed(self) -> bool:
        return self.measured >= self.bar


def table(bars: Iterable[Bar]) -> str:
    """A Markdown table."""
    lines = ["| demand | measured | bar | |", "|---|---|---|---|"]
    for one in bars:
        lines.append(f"| {one.name} | {one.measured:.1f} | {one.bar:g} | {'pass' if one.passed else 'FAIL'} |")
    return "\n".join(lines)


def percent(values: Iterable[bool]) -> float:
    values = list(values)
    return 100.0 * sum(values) / len(values)


def held_out_prompts(count: int, seed: int) -> list[tuple[Scene, Caption]]:
    """Scenes and prompts in phrasings that are held out of training; some scenes are held out as well."""
    rng = random.Random(f"prompts {seed}")
    scenes = [mixed_scene(rng, held_out=None) for _ in range(count)]
    return [(scene, caption(scene, rng, test=True)) for scene in scenes]


def generate(pipe, prompts: Sequence, **settings) -> list[Image.Image]:
    """An image of each prompt; prompt k has seed k."""
    images = []
    for first in range(0, len(prompts), BATCH):
        part = list(prompts[first : first + BATCH])
        images += pipe(part, seeds=list(range(first, first + len(part))), **settings)
    return images


def follow_rate(images: Iterable[Image.Image], asked: Iterable[tuple[Scene, Caption]]) -> float:
    """Percent of images that have all that their prompt says."""
    return percent(judge.follows(image, scene, says) for image, (scene, says) in zip(images, asked))


def phrasings(name: str, pipe, count: int) -> list[Bar]:
    asked = held_out_prompts(count, 1)
    images = generate(pipe, [says.text for _, says in asked])
    return [Bar(f"{name}: all right on held-out phrasings", follow_rate(images, asked), 85)]


def variety(name: str, pipe) -> list[Bar]:
    """What a short prompt does not say must vary with the seed."""
    found = [[judge.find_objects(image) for image in generate(pipe, [text] * SEEDS)] for text in BARE]
    fewest = min(len({background for background, _ in images}) for images in found)
    right = []
    for text, images in zip(BARE, found):
        _, colour, shape = text.split()
        right += [[(f.colour, f.shape) for f in objects] == [(colour, shape)] for _, objects in images]
    return [
        Bar(f"{name}: bare names all right", percent(right), 85),
        Bar(f"{name}: distinct backgrounds in {SEEDS} seeds of a bare name (number)", fewest, 4),
    ]


def negatives(name: str, pipe, count: int) -> list[Bar]:
    """A negative prompt names what the same seed shows without it; the image must lose that, and nothing else."""
    rng, obeyed, followed = random.Random("negatives"), [], []
    for k in range(count):
        scene = mixed_scene(rng, shared=0.0)
        while len(scene.objects) != 1:
            scene = mixed_scene(rng, shared=0.0)
        o, kind = scene.objects[0], ("background", "colour", "shape")[k % 3]
        text = {
            "background": with_article(o.name),
            "colour": f"{with_article(o.shape)} on {with_article(scene.background)} background",
            "shape": f"{with_article(o.colour)} shape on {with_article(scene.background)} background",
        }[kind]
        says = Caption(text, kind != "background", False, (kind != "colour",), (kind != "shape",), (False,))
        background, found = judge.find_objects(pipe(text, seed=k)[0])
        if not found or found[0].shape is None:
            obeyed.append(False)
            followed.append(False)
            continue
        word = {"background": background, "colour": found[0].colour, "shape": found[0].shape}[kind]
        forms = {"background": ("{} background", "{}"), "colour": ("{}", "{} colour"), "shape": ("{}", "{p}", "a {}")}
        negative = rng.choice(forms[kind]).format(word, p=plural(word))
        result = pipe(text, seed=k, negative_prompt=negative)[0]
        background, found = judge.find_objects(result)
        there = {"background": [background], "colour": [f.colour for f in found], "shape": [f.shape for f in found]}
        whole = judge.follows(result, scene, says)
        obeyed.append(word not in there[kind] and whole)
        followed.append(whole)
    return [
        Bar(f"{name}: negative prompts obeyed, nothing else spoilt", percent(obeyed), 80),
        Bar(f"{name}: the prompt still followed with a negative prompt", percent(followed), 80),
    ]


def flow_guidance(pipe, count: int) -> list[Bar]:
    asked, found = held_out_prompts(count, 2), []
    for w in GUIDANCE:
        images = generate(pipe, [says.text for _, says in asked], guidance=w)
        found.append(Bar(f"flow: all right at cfg {w:g}", follow_rate(images, asked), 85))
    return found


def image_to_image(pipe, count: int) -> list[Bar]:
    """A little noise keeps places and colours whatever the prompt says; much noise follows the prompt."""
    rng, preserved, followed = random.Random("image to image"), [], []
    for k in range(count):
        source, scene = mixed_scene(rng), mixed_scene(rng)
        while not source.objects:
            source = mixed_scene(rng)
        says, count_of = caption(scene, rng, test=True), len(source.objects)
        latents = pipe.encode(render(source))

        def run(denoise, text=says.text, latents=latents, k=k):
            steps = max(1, round(STEPS * denoise))
            return pipe.decode(pipe.generate_latents(text, latents=latents, denoise=denoise, steps=steps, seed=k))[0]

        same = Caption("", True, True, (True,) * count_of, (False,) * count_of, (False,) * count_of)
        preserved.append(judge.follows(run(0.3), source, same))
        followed.append(judge.follows(run(0.8), scene, says))
    return [
        Bar("flow: image to image at 0.3 keeps places and colours", percent(preserved), 85),
        Bar("flow: image to image at 0.8 follows the prompt", percent(followed), 85),
    ]


def answers(name: str, pipe, count: int) -> list[Bar]:
    """Questions in held-out phrasings: those with the answer yes or no, and the others."""
    rng, right = random.Random("questions"), {True: [], False: []}
    while min(map(len, right.values())) < count:
        scene = mixed_scene(rng, held_out=None)
        pairs = questions.questions(scene, rng, test=True)
        for yes_no in right:
            fitting = [pair for pair in pairs if (pair[1] in ("yes", "no")) == yes_no]
            question, answer = rng.choice(fitting)
            written = pipe.describe(render(scene), question, max_new_tokens=40)[0].strip()
            right[yes_no].append(written.lower().rstrip(".") == answer)
    return [
        Bar(f"{name}: yes or no", percent(right[True]), 85),
        Bar(f"{name}: other questions in held-out phrasings", percent(right[False]), 85),
    ]


def textures(name: str, autoencoder: VQModel | LatentVAE, count: int) -> list[Bar]:
    """Mean peak signal-to-noise ratio of encoded and decoded textures, in decibels."""
    found = []
    for kind in KINDS:
        rng = random.Random(f"held-out {kind}")
        pixels = torch.cat([to_pixels(texture(kind, rng, test=True)[None]) for _ in range(count)])
        restored = torch.cat([autoencoder.decode(autoencoder.encode(part)).float() for part in pixels.split(8)])
        found.append(Bar(f"{name}: {kind} (dB)", float(psnr(restored.clamp(-1, 1), pixels).mean()), 20))
    return found


def psnr(restored, pixels):
    """Peak signal-to-noise ratio of images [n, 3, H, W] in [-1, 1], in decibels: [n]."""
    return -10 * (((restored - pixels) / 2) ** 2).flatten(1).mean(1).log10()
