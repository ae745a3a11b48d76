"""Batches of the demo task: scenes whose images were encoded once, with fresh captions and questions each time."""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from janus_core.finetunes.think import RECIPES
from janus_core.prompt import PromptEncoder
from janus_core.training import batches

from .captions import COMPLETE, Caption, bare_caption, caption, meaning, plain_caption, whole_caption
from .codebook import to_pixels
from .plans import plan_of
from .questions import questions
from .scenes import TASK, Scene, World, empty_scene, random_scene, render_array

WHOLE, FRAGMENT = 0.003, 0.3  # shares of the smoothing, see smoothing_shares
TEXTS = {"meaning": 0.62, "plan": 0.08, "question": 0.3}  # shares of the batches with text alone
QUESTIONS = 14  # about an image in a batch, besides its description


EMPTY = 0.04  # share of scenes without objects
CLOSE = 0.05  # mean difference up to which stored latents or tokens are those of the same scenes


def mixed_scene(rng: random.Random, held_out: bool | None = False, shared: float = 0.3, world: World = TASK) -> Scene:
    """A random scene of any kind: one object, two, or none.

    Args:
        held_out: as in random_scene; an empty scene is of the training split.
        shared: of the scenes with two objects, the share in which these have the same shape, the same colour or both.
    """
    if not held_out and rng.random() < EMPTY:
        return empty_scene(rng, world)
    two = rng.random() < 0.5
    if two and rng.random() < shared:
        return random_scene(rng, two, held_out, world, rng.choice(("shape", "shape", "colour", "colour", "both")))
    return random_scene(rng, two, held_out, world)


def scene_list(seed: int, count: int, shared: float = 0.0) -> list[Scene]:
    """Scenes of the training split; `shared` as in mixed_scene."""
    rng = random.Random(f"scenes {seed}")
    return [mixed_scene(rng, shared=shared) for _ in range(count)]


def scene_pixels(scenes) -> torch.Tensor:
    """The scenes' images, float32 [n, 3, SIZE, SIZE] in [-1, 1]."""
    return to_pixels(np.stack([render_array(scene) for scene in scenes]))


@torch.no_grad()
def encode_scenes(scenes, encode, path: Path, chunk: int = 32) -> torch.Tensor:
    """`encode` of every scene's pixels, [n, ...]; stored in the file `path`, and computed again for other scenes or
    another autoencoder."""
    first = encode(scene_pixels(scenes[:chunk]))
    if path.is_file():
        codes = load_file(path)["codes"]
        if len(codes) == len(scenes) and (codes[:chunk] - first).abs().float().mean() < CLOSE:
            return codes
    rest = [encode(scene_pixels(scenes[i : i + chunk])) for i in range(chunk, len(scenes), chunk)]
    codes = torch.cat([first, *rest])
    save_file({"codes": codes.contiguous()}, path)
    return codes


class SceneBatches:
    """Batches by index, of one family.

    Args:
        codes: of each scene: VQ tokens int64 [n, N], or scaled latents [n, 4, H, W].
        image_tokens: positions of an image to generate.
        question_tokens: positions of an image in a question.
        rows: rows per batch.
        ratio: of understanding, generation and text.
        alignment: whether generation rows carry their pixels, for REPA.
        text_held_out: whether text alone also describes held-out combinations.
        late: of the flow's rows, the share with the prompt of another scene and a late time (see flow_objective.py).
        complete: see captions.caption.
        plain: share of the prompts in plain words (captions.plain_caption), which tell soonest what belongs together.
        pairs: share of the images to generate that are chosen among those of two objects only.
        bare: of a batch, the groups of generation rows with one bare name as the prompt: an image with each background.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        scenes,
        codes,
        image_tokens,
        question_tokens,
        rows,
        ratio,
        seed,
        alignment=False,
        text_held_out=False,
        late=0.0,
        complete=COMPLETE,
        plain=0.0,
        pairs=0.0,
        bare=0,
    ):
        self.prompts, self.scenes, self.codes = prompts, scenes, codes
        self.image_tokens, self.question_tokens = image_tokens, question_tokens
        self.rows, self.seed, self.alignment = batches.split_rows(rows, ratio), seed, alignment
        self.text_split, self.late, self.complete = None if text_held_out else False, late, complete
        self.plain, self.pairs = plain, pairs
        self.of_two = [k for k, scene in enumerate(scenes) if len(scene.objects) == 2]
        self.bare, self.by_name = bare, {}
        for k, scene in enumerate(scenes):
            if len(scene.objects) == 1:
                backgrounds = self.by_name.setdefault(scene.objects[0].name, {})
                backgrounds.setdefault(scene.background, []).append(k)

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        understanding, generation, text = self.rows
        batch = {}
        if understanding:
            scenes = [mixed_scene(rng) for _ in range(understanding)]
            asked = [pick_questions(scene, rng) for scene in scenes]
            batch |= batches.answer_rows(self.prompts, asked, self.question_tokens)
            batch["und_pixels"] = scene_pixels(scenes)
        if text:
            scenes = [mixed_scene(rng, self.text_split) for _ in range(text)]
            batch |= batches.text_rows(self.prompts, text_pairs(scenes, rng))
        if generation:
            chosen, captions = self.bare_names(rng, generation)
            others = [self.any_scene(rng) for _ in range(generation - len(chosen))]
            late = [False] * len(chosen) + [rng.random() < self.late for _ in others]
            chosen += others
            scenes = [self.scenes[k] for k in chosen]
            said = [rng.choice(self.scenes) if other else one for one, other in zip(scenes, late)]
            captions += [self.caption(scene, rng) for scene in said[len(captions) :]]
            texts = [one.text for one in captions]
            batch |= batches.generation_rows(self.prompts, texts, self.codes[chosen], self.image_tokens, rng)
            batch["gen_smoothing"] = smoothing_shares(captions, batch["gen_smoothing"] == 1)
            batch["gen_late"] = torch.tensor(late)
            if self.alignment:
                batch["gen_pixels"] = scene_pixels(scenes)
        return batch

    def any_scene(self, rng: random.Random) -> int:
        """A scene to generate, by index."""
        if rng.random() < self.pairs:
            return rng.choice(self.of_two)
        return rng.randrange(len(self.scenes))

    def caption(self, scene: Scene, rng: random.Random) -> Caption:
        if rng.random() < self.plain:
            every = (True,) * len(scene.objects)
            return Caption(plain_caption(scene), True, bool(scene.relation), every, every, every)
        return caption(scene, rng, complete=self.complete)

    def bare_names(self, rng: random.Random, most: int) -> tuple[list[int], list[Caption]]:
        """Scenes, by index, and their prompts: of every background one, so that none is more likely than another."""
        chosen, captions = [], []
        for name in rng.sample(list(self.by_name), min(self.bare, len(self.by_name))):
            group = [rng.choice(scenes) for scenes in self.by_name[name].values()]
            chosen += group
            captions += [bare_caption(self.scenes[group[0]], rng)] * len(group)
        return chosen[:most], captions[:most]


def smoothing_shares(captions: list[Caption], dropped: torch.Tensor) -> torch.Tensor:
    """How much of the unconditional rows' label smoothing each row gets, [B].

    Guidance divides by the probabilities of the row that it moves away from (see unified.JanusObjective). That row may
    be any prompt, and is mostly a short one; so these are smoothed as well, and whole prompts a little.
    """
    light = torch.tensor([FRAGMENT if one.fragment else WHOLE for one in captions])
    return torch.where(dropped, 1.0, light)


def pick_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Some of the questions about a scene and one that asks for a description, with their answers."""
    *pairs, describe = questions(scene, rng)
    return [*rng.sample(pairs, min(QUESTIONS, len(pairs))), describe]


def text_pairs(scenes: list[Scene], rng: random.Random) -> list[tuple[str, str]]:
    """Requests and their answers in text alone, one per scene: what a prompt means, a plan, or a question; all of one
    kind, since plans are requested in long texts, to which a batch is padded."""
    (kind,) = rng.choices(list(TEXTS), list(TEXTS.values()))
    make = {"meaning": meaning_of_prompt, "plan": plan_request, "question": text_question}[kind]
    return [make(scene, rng) for scene in scenes]


def meaning_of_prompt(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A prompt and what it means (captions.meaning)."""
    says = whole_caption(scene, rng)
    return says.text, meaning(scene, says)


def text_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about a scene that is described in words instead of shown, and its answer."""
    question, answer = rng.choice(questions(scene, rng)[:-1])
    description = plain_caption(scene)
    if scene.place:
        description = description.replace(" on ", f" {scene.place} on ", 1)
    return f"There is {description}. {question}", answer


def plan_request(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A request for a plan of an image, in one of the recipes' forms, and the plan; their words are learnt from it."""
    name = rng.choice(list(RECIPES))
    return RECIPES[name].template.replace("{}", caption(scene, rng).text), plan_of(scene, name)
