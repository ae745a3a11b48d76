"""Folders of captioned images, the layout of training data: beside each image a .txt file of the same name."""

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
    """The caption of an image, "" if it has none. Raises ImageError when it is not text in UTF-8."""
    path = caption_path(image)
    return read_text(path, ImageError).strip() if path.exists() else ""


def write_caption(image: Path, caption: str):
    """Writes the caption of an image as a whole. Raises OutputError when it cannot be written."""
    write_text(caption_path(image), caption)


def sharing_a_caption(images: list[Path]) -> dict[Path, Path]:
    """Images whose caption file belongs to an earlier image of the same name: {image: the earlier one}."""
    first, shared = {}, {}
    for image in images:
        owner = first.setdefault(caption_path(image), image)
        if owner != image:
            shared[image] = owner
    return shared
