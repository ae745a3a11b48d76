"""Fine-tuning data: a folder of pictures, each with its caption in a .txt file of the same name beside it."""

import random
from pathlib import Path

from PIL import Image, ImageOps

from .. import image
from ..errors import ImageError
from ..prompt import PromptEncoder
from . import batches

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
QUESTION = "Describe this picture."


def read_folder(folder: str | Path) -> list[tuple[Path, str]]:
    """The pictures of a folder and their captions, by name.

    Raises:
        ImageError: there are none, or a picture has no caption.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ImageError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    bare = [path.name for path in found if not path.with_suffix(".txt").is_file()]
    if bare:
        raise ImageError(f"{folder}: {bare[0]} has no caption file beside it ({len(bare)} of {len(found)} lack one).")
    return [(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()) for path in found]


def native_picture(path: Path, size: int) -> Image.Image:
    """A picture file scaled to cover a square of `size` pixels, and cropped to it around the middle."""
    return ImageOps.fit(image.open_image(path), (size, size), Image.Resampling.BICUBIC)


class FolderBatches:
    """Batches by index of captioned pictures: to draw, and to describe.

    Args:
        pixels: all pictures at the native size, [n, 3, S, S] in [-1, 1].
        codes: of each picture, VQ tokens [n, N] or scaled latents [n, 4, H, W].
        image_tokens, question_tokens: of a picture to draw and of one to read.
        ratio: of rows to describe and to draw.
    """

    def __init__(
        self, prompts: PromptEncoder, captions, pixels, codes, image_tokens, question_tokens, rows, ratio, seed
    ):
        self.prompts, self.captions, self.pixels, self.codes = prompts, captions, pixels, codes
        self.image_tokens, self.question_tokens, self.seed = image_tokens, question_tokens, seed
        self.described, self.drawn, _ = batches.split_rows(rows, (*ratio, 0))

    def __call__(self, index: int) -> dict:
        rng = random.Random(f"{self.seed} {index}")
        batch = {}
        if self.described:
            chosen = [rng.randrange(len(self.captions)) for _ in range(self.described)]
            asked = [[(QUESTION, self.captions[k])] for k in chosen]
            batch |= batches.answer_rows(self.prompts, asked, self.question_tokens)
            batch["und_pixels"] = self.pixels[chosen]
        if self.drawn:
            chosen = [rng.randrange(len(self.captions)) for _ in range(self.drawn)]
            captions = [self.captions[k] for k in chosen]
            batch |= batches.drawing_rows(self.prompts, captions, self.image_tokens, rng)
            if self.prompts.family == "janusflow":
                batch["gen_latents"], batch["gen_pixels"] = self.codes[chosen].float(), self.pixels[chosen]
            else:
                batch["gen_tokens"] = self.codes[chosen].long()
        return batch
