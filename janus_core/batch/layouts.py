"""Benchmarks: their prompts as jobs, and outputs where their own scorers read them.

The layouts were read from the scorers: djghosh13/geneval (evaluation/evaluate_images.py), TencentQQGYLab/ELLA
(dpg_bench/compute_dpg_bench.py), PKU-YuanGroup/WISE and Karine-Huang/T2I-CompBench.
"""

from dataclasses import dataclass
from pathlib import Path

from ..files import os_reason, parse_json, read_text, user_path
from .manifest import Defaults
from .outputs import BatchError, Output, check_path, check_unique, job_seeds


@dataclass(frozen=True)
class Prompt:
    """A prompt of a benchmark: the job's id, the text, and what the scorer wants to know with it."""

    job: str
    text: str
    metadata: str = ""


def geneval_prompts(path: Path) -> list[Prompt]:
    """evaluation_metadata.jsonl: an object with tag, include and prompt per line; the ids are line numbers."""
    prompts = []
    for k, line in enumerate(_lines(path)):
        found = parse_json(line, f"{path.name}, line {k + 1}", BatchError)
        prompts.append(Prompt(f"{k:05}", _text(found, "prompt", path, k), line))
    return prompts


def geneval_layout(prompt: Prompt, seeds: tuple[int, ...], number: int) -> list[tuple[str, tuple, dict]]:
    """00000/samples/0000.png …, and 00000/metadata.jsonl with the prompt's line."""
    beside = {f"{prompt.job}/metadata.jsonl": f"{prompt.metadata}\n"}
    return [(f"{prompt.job}/samples/{k:04}.png", (seed,), beside) for k, seed in enumerate(seeds)]


def dpg_prompts(path: Path) -> list[Prompt]:
    """A folder of .txt files, each with a prompt; the ids are their names."""
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == ".txt")
    except OSError as error:
        raise BatchError(f"{path} is not a folder that can be read ({os_reason(error)}).") from None
    return [Prompt(file.stem, read_text(file, BatchError).strip()) for file in files]


def dpg_layout(prompt: Prompt, seeds: tuple[int, ...], number: int) -> list[tuple[str, tuple, dict]]:
    """One <name>.png per prompt, a grid of 2 x 2 images; the scorer reads every file of the folder."""
    if len(seeds) not in (1, 4):
        raise BatchError("DPG-Bench's scorer reads 4 images in a grid, or 1 (--pic-num 1): give --samples 4 or 1.")
    return [(f"{prompt.job}.png", seeds, {})]


def wise_prompts(path: Path) -> list[Prompt]:
    """A JSON file, or a folder of them that agree: a list of objects with prompt_id and Prompt."""
    try:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    except OSError as error:
        raise BatchError(f"{path} cannot be read ({os_reason(error)}).") from None
    prompts = {}
    for file in files:
        items = parse_json(f'{{"items": {read_text(file, BatchError)}}}', file, BatchError)["items"]
        if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
            raise BatchError(f"{file} must hold a list of objects with prompt_id and Prompt.")
        for k, item in enumerate(items):
            if type(item.get("prompt_id")) is not int:
                raise BatchError(f"{file.name}, prompt {k + 1}: prompt_id must be a whole number.")
            prompt = Prompt(str(item["prompt_id"]), _text(item, "Prompt", file, k))
            if prompts.setdefault(prompt.job, prompt) != prompt:
                raise BatchError(
                    f"{file.name} has another prompt {prompt.job} than the files before it: name one file."
                )
    return sorted(prompts.values(), key=lambda prompt: int(prompt.job))


def wise_layout(prompt: Prompt, seeds: tuple[int, ...], number: int) -> list[tuple[str, tuple, dict]]:
    """<prompt_id>.png in one folder."""
    if len(seeds) != 1:
        raise BatchError("WISE's scorer reads one image per prompt: leave --samples at 1.")
    return [(f"{prompt.job}.png", seeds, {})]


def compbench_prompts(path: Path) -> list[Prompt]:
    """A text file with a prompt per line; the ids are line numbers."""
    return [Prompt(f"{k:06}", line.strip()) for k, line in enumerate(_lines(path))]


def compbench_layout(prompt: Prompt, seeds: tuple[int, ...], number: int) -> list[tuple[str, tuple, dict]]:
    """samples/<prompt>_<six digits>.png, where the number counts on over all images."""
    if "/" in prompt.text or "_" in prompt.text:
        raise BatchError(
            f"T2I-CompBench's file names hold the prompt up to the first _, and line {int(prompt.job) + 1} has a / or "
            "a _: change it."
        )
    first = number * len(seeds)
    return [(f"samples/{prompt.text}_{first + k:06}.png", (seed,), {}) for k, seed in enumerate(seeds)]


BENCHMARKS = {  # name: (prompts, layout, samples per prompt)
    "geneval": (geneval_prompts, geneval_layout, 4),
    "dpg": (dpg_prompts, dpg_layout, 4),
    "wise": (wise_prompts, wise_layout, 1),
    "compbench": (compbench_prompts, compbench_layout, 10),
}


def benchmark_outputs(
    name: str, path: str | Path, defaults: Defaults, samples: int | None = None, limit: int | None = None
) -> list[Output]:
    """The outputs of a benchmark.

    Args:
        path: the benchmark's own prompt file or folder.
        samples: images per prompt; the benchmark's own number when None.
        limit: only this many prompts.

    Raises:
        BatchError: the prompts are not in the benchmark's form.
    """
    read, layout, own = BENCHMARKS[name]
    outputs = []
    for number, prompt in enumerate(read(user_path(path, BatchError))[:limit]):
        if not prompt.text:
            raise BatchError(f"{path}: prompt {prompt.job} is empty.")
        seeds = job_seeds(defaults.seed, None, prompt.job, samples or own)
        common = {"negative": defaults.negative, "settings": dict(defaults.settings), "task": "generate"}
        for out, its_seeds, beside in layout(prompt, seeds, number):
            out = check_path(out, f"{path}, prompt {prompt.job}")
            outputs.append(Output(out, prompt.job, prompt=prompt.text, seeds=its_seeds, beside=beside, **common))
    return check_unique(outputs)


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path, BatchError).split("\n") if line.strip()]


def _text(found: dict, name: str, path: Path, k: int) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise BatchError(f"{path.name}, prompt {k + 1}: {name} must be a text.")
    return value
