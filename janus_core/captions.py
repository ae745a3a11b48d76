"""Folders of captioned images, the layout of training data: beside each image a .txt file of the same name."""

from collections import defaultdict
from pathlib import Path

from .errors import ImageError
from .files import os_reason, read_text, write_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; hidden ones are left out.

    Raises:
        ImageError: there is no such folder, or it has no images.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ImageError(f"{folder} is not a folder that can be read ({os_reason(error)}).") from None
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not paths:
        raise ImageError(f"{folder} has no images ({', '.join(SUFFIXES)}).")
    return paths


def caption_path(image: Path) -> Path:
    """Where the caption of an image is."""
    return image.with_suffix(".txt")


def read_caption(image: Path) -> str:
    """The caption of an image, "" if it has none: no file, an empty one, or a link that leads nowhere.

    Raises:
        ImageError: it is not text in UTF-8.
    """
    path = caption_path(image)
    return read_text(path, ImageError).strip() if path.exists() else ""


def write_caption(image: Path, caption: str):
    """Writes the caption of an image as a whole; a link is replaced. Raises OutputError when it cannot be written."""
    write_text(caption_path(image), caption)


def conflicts(images: list[Path]) -> dict[Path, str]:
    """Images that share a caption file with another one, as {image: the problem in a sentence}."""
    by_caption = defaultdict(list)
    for image in images:
        by_caption[caption_path(image)].append(image)
    return {
        image: f"{' and '.join(other.name for other in same)} share one caption file: rename one of them."
        for same in by_caption.values()
        for image in same
        if len(same) > 1
    }
