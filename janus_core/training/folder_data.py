"""Fine-tuning data: a folder of images with captions, questions and answers, in sub-folders or not."""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .. import captions
from ..errors import ImageError
from ..files import parse_json, read_text, user_path
from ..prompt import PromptEncoder
from ..schema import Text, check_fields

log = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
UNREAD = (".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jfif", ".jxl")  # images that are not read
FIELDS = {"image": Text(), "caption": Text(empty=True), "question": Text(), "answer": Text()}


@dataclass(frozen=True)
class Example:
    """An image file with its caption ("" for none), its (question, answer) pairs, and how often an epoch shows it."""

    path: Path
    caption: str
    questions: tuple[tuple[str, str], ...] = ()
    repeats: int = 1


def read_folder(folder: str | Path) -> list[Example]:
    """The images of a folder and its sub-folders, sorted by path.

    A caption is in a .txt file of the image's name beside it. A metadata.jsonl has a JSON object per line, for an image
    of its folder or below: {"image": "a.png", "caption": "…"}, {"image": "a.png", "question": "…", "answer": "…"}, or
    all four. Its caption takes the place of the .txt file's; several lines may be about one image. A folder named
    `10_name` repeats its images ten times an epoch, as in kohya's scripts.

    Raises:
        ImageError: the folder has no images, an image has neither caption nor question, two share a caption file, or a
            caption or metadata.jsonl cannot be read.
    """
    folder = user_path(folder, ImageError)
    found = _image_files(folder)
    described, images = {}, set(found)
    repeats = {path: _repeats(path.relative_to(folder)) for path in found}
    for path in _visible(folder, folder.rglob(METADATA)):
        for image, entry in _read_metadata(path):
            if image not in images:
                raise ImageError(
                    f"{path} names {entry['image']!r}, which is not an image of that folder or below in one of the "
                    f"formats {', '.join(captions.SUFFIXES)}."
                )
            described.setdefault(image, []).append(entry)
    shown = [_example(path, described.get(path, ()), repeats[path]) for path in found if repeats[path]]
    if not shown:
        raise ImageError(f"{folder}: every image is in a folder whose name begins with 0, which leaves it out.")
    from_text = [one.path for one in shown if not any(entry.get("caption") for entry in described.get(one.path, ()))]
    for path, problem in captions.conflicts(from_text).items():
        if captions.caption_path(path).exists():
            raise ImageError(f"{folder}: {problem}")
    bare = [one.path.name for one in shown if not one.caption and not one.questions]
    if bare:
        raise ImageError(
            f"{folder}: {bare[0]} has no caption in a .txt file beside it or in {METADATA} "
            f"({len(bare)} of {len(shown)} lack one)."
        )
    return shown


def _image_files(folder: Path) -> list[Path]:
    """The image files below a folder. Raises ImageError if there are none."""
    if not folder.is_dir():
        return captions.image_files(folder)  # which says why
    files = _visible(folder, folder.rglob("*"))
    unread = [path for path in files if path.suffix.lower() in UNREAD]
    if unread:
        formats = ", ".join(captions.SUFFIXES)
        log.warning("%d images are left out, first %s: convert them to one of %s.", len(unread), unread[0], formats)
    paths = [path for path in files if path.suffix.lower() in captions.SUFFIXES]
    return paths or captions.image_files(folder)


def _visible(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The paths that are not hidden and in no hidden folder, sorted."""
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read_metadata(path: Path):
    """Yields (image path, entry) of each line."""
    for number, line in enumerate(read_text(path, ImageError).split("\n"), start=1):
        if not line.strip():
            continue
        name = f"{path}, line {number}"
        entry = parse_json(line, name, ImageError)
        check_fields(entry, FIELDS, name, ImageError, closed=True)
        if not entry.get("image"):
            raise ImageError(f"{name} lacks the setting 'image', the name of an image file.")
        if bool(entry.get("question")) != bool(entry.get("answer")):
            raise ImageError(f"{name} has a question without an answer, or an answer without a question: give both.")
        image = path.parent / os.path.normpath(entry["image"])
        if not image.is_file():
            raise ImageError(f"{name} names {entry['image']!r}, which is not a file in that folder.")
        yield image, entry


def _example(path: Path, entries, repeats: int) -> Example:
    written = [entry["caption"].strip() for entry in entries if (entry.get("caption") or "").strip()]
    questions = tuple((entry["question"], entry["answer"]) for entry in entries if entry.get("question"))
    return Example(path, written[-1] if written else captions.read_caption(path), questions, repeats)


def _repeats(relative: Path) -> int:
    """The number in front of the innermost folder name that begins with one; 1 without."""
    for name in reversed(relative.parts[:-1]):
        match = re.match(r"([0-9]{1,6})_", name)
        if match:
            return int(match[1])
    return 1


def cut_texts(examples: list[Example], prompts: PromptEncoder, limit: int) -> list[Example]:
    """The examples with captions and answers of at most `limit` tokens; logs how many were cut."""
    cut = []

    def shortened(text):
        ids = prompts.ids(text, bos=False)
        if len(ids) <= limit:
            return text
        cut.append(text)
        return prompts.decode(ids[:limit]).strip()

    examples = [
        replace(
            one,
            caption=shortened(one.caption),
            questions=tuple((question, shortened(answer)) for question, answer in one.questions),
        )
        for one in examples
    ]
    if cut:
        log.warning(
            "%d captions or answers have over %d tokens and were cut, first %r: raise caption_tokens to train on all.",
            len(cut), limit, cut[0][:60],
        )  # fmt: skip
    return examples
