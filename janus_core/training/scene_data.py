"""Batches of the demo task: scenes whose pictures were encoded once, with fresh captions and questions each time."""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..prompt import PromptEncoder
from . import batches
from .scenes import DESCRIBE, Scene, caption, draw_array, questions, random_scene


def scene_list(seed: int, count: int, alike: float = 0.0) -> list[Scene]:
    """Scenes of the training split, one thing and two in turn; of those with two, a share has them `alike`."""
    rng = random.Random(f"scenes {seed}")

    def scene(two: bool):
        return random_scene(rng, two, alike=bool(two and alike) and rng.random() < alike)

    return [scene(bool(k % 2)) for k in range(count)]


def scene_pixels(scenes) -> torch.Tensor:
    """float32 [n, 3, SIZE, SIZE] in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([draw_array(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(scenes, encode, path: Path, chunk: int = 32) -> torch.Tensor:
    """What `encode` makes of every scene's pixels, [n, ...]; kept in the file `path`."""
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
        image_tokens: of a picture to draw, N.
        question_tokens: of a picture that is read.
        rows: rows per batch.
        ratio: of understanding, generation and text.
        read_targets: whether drawing rows carry their pixels, for REPA.
        tell_all: whether text alone tells of held-out combinations as well.
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
        read_targets=False,
        tell_all=False,
    ):
        self.prompts, self.scenes, self.codes = prompts, scenes, codes
        self.image_tokens, self.question_tokens = image_tokens, question_tokens
        self.rows, self.seed, self.read_targets = batches.split_rows(rows, ratio), seed, read_targets
        self.told_split = None if tell_all else False

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        asked, drawn, told = self.rows
        batch = {}
        if asked:
            scenes = [random_scene(rng) for _ in range(asked)]
            batch |= batches.answer_rows(self.prompts, [pick_questions(s, rng) for s in scenes], self.question_tokens)
            batch["und_pixels"] = scene_pixels(scenes)
        if told:
            scenes = [random_scene(rng, held_out=self.told_split) for _ in range(told)]
            batch |= batches.text_rows(self.prompts, [told_question(scene, rng) for scene in scenes])
        if drawn:
            chosen = [rng.randrange(len(self.scenes)) for _ in range(drawn)]
            scenes = [self.scenes[k] for k in chosen]
            captions = [caption(scene, rng) for scene in scenes]
            batch |= batches.drawing_rows(self.prompts, captions, self.image_tokens, rng)
            codes = self.codes[chosen]
            if self.prompts.family == "janusflow":
                batch["gen_latents"] = codes.float()
                if self.read_targets:
                    batch["gen_pixels"] = scene_pixels(scenes)
            else:
                batch["gen_tokens"] = codes.long()
        return batch


def pick_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Every question about a scene, and one of the ways to ask for a description, with their answers."""
    pairs = questions(scene)
    short = [pair for pair in pairs if pair[0] not in DESCRIBE]
    return [*short, rng.choice([pair for pair in pairs if pair[0] in DESCRIBE])]


def told_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question about a scene that is told in words instead of shown."""
    question, answer = rng.choice([pair for pair in questions(scene) if pair[0] not in DESCRIBE])
    told = caption(scene)
    if scene.place:
        told = told.replace(" on ", f" {scene.place} on ", 1)
    return f"There is {told}. {question}", answer
