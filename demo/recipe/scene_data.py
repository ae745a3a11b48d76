"""Batches of the demo task: scenes whose images were encoded once, with fresh captions and questions each time."""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from janus_core.prompt import PromptEncoder
from janus_core.training import batches

from .scenes import DESCRIBE, Scene, caption, questions, random_scene, render_array


def scene_list(seed: int, count: int, share: float = 0.0) -> list[Scene]:
    """Scenes of the training split, one object and two in turn; a share of those with two has a `shared_attribute`."""
    rng = random.Random(f"scenes {seed}")

    def scene(two: bool):
        return random_scene(rng, two, shared_attribute=bool(two and share) and rng.random() < share)

    return [scene(bool(k % 2)) for k in range(count)]


def scene_pixels(scenes) -> torch.Tensor:
    """The scenes' images, float32 [n, 3, SIZE, SIZE] in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(scenes, encode, path: Path, chunk: int = 32) -> torch.Tensor:
    """`encode` of every scene's pixels, [n, ...]; stored in the file `path`."""
    if path.is_file():
        codes = load_file(path)["codes"]
        if len(codes) == len(scenes):
            return codes
    codes = torch.cat([encode(scene_pixels(scenes[i : i + chunk])) for i in range(0, len(scenes), chunk)])
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
    ):
        self.prompts, self.scenes, self.codes = prompts, scenes, codes
        self.image_tokens, self.question_tokens = image_tokens, question_tokens
        self.rows, self.seed, self.alignment = batches.split_rows(rows, ratio), seed, alignment
        self.text_split = None if text_held_out else False

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        understanding, generation, text = self.rows
        batch = {}
        if understanding:
            scenes = [random_scene(rng) for _ in range(understanding)]
            batch |= batches.answer_rows(self.prompts, [pick_questions(s, rng) for s in scenes], self.question_tokens)
            batch["und_pixels"] = scene_pixels(scenes)
        if text:
            scenes = [random_scene(rng, held_out=self.text_split) for _ in range(text)]
            batch |= batches.text_rows(self.prompts, [text_question(scene, rng) for scene in scenes])
        if generation:
            chosen = [rng.randrange(len(self.scenes)) for _ in range(generation)]
            scenes = [self.scenes[k] for k in chosen]
            captions = [caption(scene, rng) for scene in scenes]
            batch |= batches.generation_rows(self.prompts, captions, self.codes[chosen], self.image_tokens, rng)
            if self.alignment:
                batch["gen_pixels"] = scene_pixels(scenes)
        return batch


def pick_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """All questions about a scene, but only one of those that ask for a description, with their answers."""
    pairs = questions(scene)
    short = [pair for pair in pairs if pair[0] not in DESCRIBE]
    return [*short, rng.choice([pair for pair in pairs if pair[0] in DESCRIBE])]


def text_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about a scene that is described in words instead of shown, and its answer."""
    question, answer = rng.choice([pair for pair in questions(scene) if pair[0] not in DESCRIBE])
    description = caption(scene)
    if scene.place:
        description = description.replace(" on ", f" {scene.place} on ", 1)
    return f"There is {description}. {question}", answer
