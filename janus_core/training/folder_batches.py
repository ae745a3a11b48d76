"""Batches of a folder's images: to describe, and to generate."""

import random

from ..prompt import PromptEncoder
from . import batches
from .encoded import EncodedImages
from .folder_data import Example

QUESTION = "Describe this picture."


class Order:
    """Positions in an endless sequence of shuffled epochs; every epoch has each item as often as it is given."""

    def __init__(self, items, seed: str):
        self.items, self.seed = list(items), seed
        self.epoch, self.shuffled = None, None

    def __getitem__(self, position: int):
        epoch, place = divmod(position, len(self.items))
        if epoch != self.epoch:
            self.epoch, self.shuffled = epoch, self.items.copy()
            random.Random(f"{self.seed} {epoch}").shuffle(self.shuffled)
        return self.shuffled[place]


class Mixture:
    """The examples of the user's images and of the prior-preservation images (arXiv 2208.12242, section 3.2).

    Args:
        share: of the prior images in all rows, which is their weight in the loss.
    """

    def __init__(self, examples: list[Example], prior: list[Example], share: float, seed: str):
        self.orders = [
            Order((one for one in group for _ in range(one.repeats)), f"{seed} {name}")
            for name, group in (("images", examples), ("prior", prior))
        ]
        self.share = share if prior else 0.0

    def __getitem__(self, row: int) -> Example:
        before, after = int(row * self.share), int((row + 1) * self.share)
        return self.orders[1][before] if after > before else self.orders[0][row - before]


class FolderBatches:
    """Batches by index; a pure function of the seed and the index.

    Args:
        examples, prior: the user's images, and those for prior preservation.
        images: their pixels and codes.
        image_tokens: positions of an image to generate.
        question_tokens: positions of an image to describe.
        rows: (of understanding, of generation) in a batch.
        dropout: share of the generation rows without a prompt.
        prior_share: see Mixture.
        alignment: whether generation rows carry their pixels, for REPA.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        examples: list[Example],
        images: EncodedImages,
        image_tokens: int,
        question_tokens: int,
        rows: tuple[int, int],
        seed: int,
        *,
        dropout: float = batches.DROPOUT,
        prior: list[Example] = (),
        prior_share: float = 0.5,
        alignment: bool = False,
    ):
        self.prompts, self.images, self.seed = prompts, images, seed
        self.image_tokens, self.question_tokens = image_tokens, question_tokens
        self.rows, self.dropout, self.alignment = rows, dropout, alignment
        captioned = [[one for one in group if one.caption] for group in (examples, prior)]
        self.described = Mixture(examples, prior, prior_share, f"{seed} questions")
        self.generated = Mixture(*captioned, prior_share, f"{seed} captions")

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        understanding, generation = self.rows
        batch = {}
        if understanding:
            chosen = [self.described[index * understanding + k] for k in range(understanding)]
            asked = [[rng.choice(questions_of(one))] for one in chosen]
            batch |= batches.answer_rows(self.prompts, asked, self.question_tokens)
            batch["und_pixels"] = self.images.stacked(chosen, "understanding")
        if generation:
            chosen = [self.generated[index * generation + k] for k in range(generation)]
            codes = self.images.stacked(chosen, "codes")
            texts = [one.caption for one in chosen]
            batch |= batches.generation_rows(self.prompts, texts, codes, self.image_tokens, rng, self.dropout)
            if self.alignment:
                batch["gen_pixels"] = self.images.stacked(chosen, "generation")
        return batch


def parts_read(rows: tuple[int, int], alignment: bool) -> list[str]:
    """What FolderBatches with these arguments reads of each image (see encoded.PARTS)."""
    understanding, generation = rows
    read = {"understanding": understanding, "generation": generation and alignment, "codes": generation}
    return [part for part, is_read in read.items() if is_read]


def questions_of(example: Example) -> list[tuple[str, str]]:
    """An image's questions with their answers, and its caption as the answer to QUESTION."""
    return [*example.questions, *([(QUESTION, example.caption)] if example.caption else [])]
