"""Manifests: JSON lines, CSV, Parquet, a text of prompts, or a folder of images."""

import csv
import io
import json
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath

from ..captions import caption_path, conflicts, image_files
from ..errors import PromptError, library_errors
from ..files import parse_json, read_text, user_path
from ..questions import ANSWERS, question_for
from ..sampling.settings import SEED, FlowSamplerSettings, TextSamplerSettings, TokenSamplerSettings
from ..schema import Items, OneOf, Section, Text, Whole, check, check_fields
from .outputs import BatchError, Output, check_path, check_unique, job_seeds

SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")
COLUMNS = {
    "id": Text(),
    "prompt": Text(empty=True),
    "negative": Text(empty=True),
    "question": Text(),
    "image": None,
    "answer": OneOf(ANSWERS),
    "options": Items(Text(), 0, 26),
    "seed": SEED,
    "count": Whole(1, 4096),
    "out": Text(),
    "settings": Section(),
}
OTHER_SETTINGS = ("size", "roles", "system_prompt")
SETTINGS = {
    *(one.name for kind in (FlowSamplerSettings, TextSamplerSettings, TokenSamplerSettings) for one in fields(kind)),
    *OTHER_SETTINGS,
} - {"seed", "denoise"}


@dataclass(frozen=True)
class Defaults:
    """What holds for jobs that do not say otherwise.

    Attributes:
        seed: the base of the images' seeds (outputs.image_seed).
        answer, options: the form of the answers (questions.question_for).
    """

    seed: int = 0
    count: int = 1
    negative: str = ""
    question: str = ""
    answer: str = "free"
    options: tuple[str, ...] = ()
    settings: dict = field(default_factory=dict)


def read_outputs(path: str | Path, task: str, defaults: Defaults, limit: int | None = None):
    """The outputs of a manifest.

    Args:
        path: a .jsonl, .csv, .parquet or .txt file; for "describe" also a folder of images.
        task: "generate" or "describe".
        limit: only this many jobs.

    Returns:
        (outputs, folder that image paths are relative to).

    Raises:
        BatchError: a job cannot be used; the message names its line.
        ImageError: there are no images in the folder.
    """
    check("seed", defaults.seed, SEED, BatchError)
    path = user_path(path, BatchError)
    if task == "describe" and path.is_dir():
        rows, folder = _folder_rows(path), path
    else:
        rows, folder = _rows(path), path.parent
    outputs = []
    for number, row in enumerate(rows[:limit]):
        outputs += _outputs_of(row, number, f"{path.name}, job {number + 1}", task, defaults)
    return check_unique(outputs), folder


def _rows(path: Path) -> list[dict]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix not in SUFFIXES:
        raise BatchError(f"{path} is not a manifest: it must be a {', '.join(SUFFIXES)} file.")
    text = read_text(path, BatchError)
    if suffix == ".csv":
        with library_errors(BatchError, f"{path} cannot be read as CSV: close every quote, or save it as .jsonl"):
            return [_without_empty(row, path) for row in csv.DictReader(io.StringIO(text, newline=""))]
    lines = [line for line in text.split("\n") if line.strip()]
    if suffix == ".txt":
        return [{"prompt": line.strip()} for line in lines]
    return [parse_json(line, f"{path.name}, job {k + 1}", BatchError) for k, line in enumerate(lines)]


def _parquet_rows(path: Path) -> list[dict]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise BatchError(f"{path.name} needs pyarrow: `pip install pyarrow`, or save it as .jsonl.") from None
    with library_errors(BatchError, f"{path} cannot be read as Parquet: write it again, or save it as .jsonl"):
        rows = pyarrow.parquet.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _without_empty(row: dict, path: Path) -> dict:
    """A CSV row without its empty cells, numbers as numbers."""
    if None in row:
        raise BatchError(f"{path.name} has a row with more cells than columns: put quotes around text with commas.")
    found = {}
    for name, cell in row.items():
        if cell:
            found[name] = cell if isinstance(COLUMNS.get(name), Text) or name == "image" else _value(cell)
    return found


def _value(cell: str):
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _folder_rows(folder: Path) -> list[dict]:
    """A job per image, whose answer has the caption's place in the layout of training data."""
    images = image_files(folder)
    for problem in conflicts(images).values():
        raise BatchError(f"{folder}: {problem}")
    return [{"id": image.stem, "image": image.name, "out": caption_path(image).name} for image in images]


def _outputs_of(row: dict, number: int, where: str, task: str, defaults: Defaults) -> list[Output]:
    inline = {name: value for name, value in row.items() if name in SETTINGS}
    row = {name: value for name, value in row.items() if name not in SETTINGS}
    if "id" in row and type(row["id"]) is int:
        row["id"] = str(row["id"])
    check_fields(row, COLUMNS | {"image": _IMAGE}, where, BatchError, closed=True)
    settings = {**defaults.settings, **(row.get("settings") or {}), **inline}
    for name in settings:
        if name not in SETTINGS:
            raise BatchError(f"{where}: there is no setting {name!r}, only {', '.join(sorted(SETTINGS))}.")
    job = row.get("id") or f"{number:06}"
    text = {
        "job": job,
        "task": task,
        "negative": row.get("negative", defaults.negative),
        "settings": settings,
    }
    if task == "describe":
        return [_answer(row, text, where, defaults)]
    if "prompt" not in row:
        raise BatchError(f"{where} has no prompt.")
    count = row.get("count") or defaults.count
    out = PurePosixPath(check_path(row.get("out") or f"{job}.png", where))
    if out.suffix.lower() != ".png":
        raise BatchError(f"{where}: images are PNG files, so `out` must end in .png, not {out.name[-20:]!r}.")
    paths = [str(out)] if count == 1 else [str(out.with_name(f"{out.stem}_{k:03}.png")) for k in range(count)]
    seeds = job_seeds(defaults.seed, row.get("seed"), job, count)
    return [Output(path, prompt=row["prompt"], seeds=(seed,), **text) for path, seed in zip(paths, seeds)]


def _answer(row: dict, text: dict, where: str, defaults: Defaults) -> Output:
    question = row.get("question") or row.get("prompt") or defaults.question
    if not question:
        raise BatchError(f"{where} has no question: add one, or give --question.")
    if row.get("count", 1) != 1:
        raise BatchError(f"{where}: a question has one answer, leave `count` out.")
    images = row.get("image") or ()
    images = (images,) if isinstance(images, str) else tuple(images)
    if not images:
        raise BatchError(f"{where} has no image.")
    options = row.get("options") or defaults.options
    try:
        question = question_for(question, row.get("answer") or defaults.answer, options)
    except PromptError as error:
        raise BatchError(f"{where}: {error}") from None
    path = check_path(row.get("out") or f"{text['job']}.txt", where)
    return Output(
        path, prompt=question, images=images, seeds=job_seeds(defaults.seed, row.get("seed"), text["job"], 1), **text
    )


class _ImageField:
    """The name of an image file, or a list of them."""

    def problem(self, value) -> str | None:
        names = [value] if isinstance(value, str) else value
        return Items(Text()).problem(names) and "the name of an image file, or a list of them"


_IMAGE = _ImageField()
