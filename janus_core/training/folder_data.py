"""Fine-tuning data: a folder of images, each with its caption in a .txt file of the same name beside it."""

import random
from pathlib import Path

from PIL import Image, ImageOps

from .. import captions, image
from ..errors import ImageError
from ..files import user_path
from ..prompt import PromptEncoder
from . import batches

QUESTION = "Describe this picture."


def read_folder(folder: str | Path) -> list[tuple[Path, str]]:
    """The image files of a folder and their captions, sorted by name.

    Raises:
        ImageError: the folder has no images, an image has no caption or shares one, or a caption is not UTF-8.
    """
    folder = user_path(folder, ImageError)
    found = captions.image_files(folder)
    for problem in captions.conflicts(found).values():
        raise ImageError(f"{folder}: {problem}")
    pairs = [(path, captions.read_caption(path)) for path in found]
    bare = [path.name for path, caption in pairs if not caption]
    if bare:
        raise ImageError(
            f"{folder}: {bare[0]} has no caption in a .txt file beside it ({len(bare)} of {len(found)} lack one)."
        )
    return pairs


def square_image(path: Path, size: int) -> Image.Image:
    """An image file, scaled to cover a square of `size` pixels and cropped to it around the centre."""
    return ImageOps.fit(image.open_image(path), (size, size), Image.Resampling.BICUBIC)


class FolderBatches:
    """Batches by index of captioned images: to describe, and to generate.

    Args:
        pixels: all images at the model's size, [n, 3, S, S] in [-1, 1].
        codes: their VQ tokens [n, N] or scaled latents [n, 4, H, W].
        image_tokens: positions of an image to generate.
        question_tokens: positions of an image to describe.
        rows: rows per batch.
        ratio: of understanding and generation rows.
    """

    def __init__(
        self, prompts: PromptEncoder, captions, pixels, codes, image_tokens, question_tokens, rows, ratio, seed
    ):
        self.prompts, self.captions, self.pixels, self.codes = prompts, captions, pixels, codes
        self.image_tokens, self.question_tokens, self.seed = image_tokens, question_tokens, seed
        self.understanding, self.generation, _ = batches.split_rows(rows, (*ratio, 0))

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        batch = {}
        if self.understanding:
            chosen = [rng.randrange(len(self.captions)) for _ in range(self.understanding)]
            asked = [[(QUESTION, self.captions[k])] for k in chosen]
            batch |= batches.answer_rows(self.prompts, asked, self.question_tokens)
            batch["und_pixels"] = self.pixels[chosen]
        if self.generation:
            chosen = [rng.randrange(len(self.captions)) for _ in range(self.generation)]
            captions = [self.captions[k] for k in chosen]
            batch |= batches.generation_rows(self.prompts, captions, self.codes[chosen], self.image_tokens, rng)
            if self.prompts.family == "janusflow":
                batch["gen_pixels"] = self.pixels[chosen]
        return batch
