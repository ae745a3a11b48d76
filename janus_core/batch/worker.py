"""Runs groups of outputs with a loaded pipeline, and writes and records them."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from .. import loading
from ..errors import JanusError, first_line, is_out_of_memory
from ..files import write_text
from ..image import open_image, write_image
from ..progress import Callback, Cancelled
from .groups import Group
from .outputs import BatchError, Output
from .records import RunFolder, image_bytes
from .sample import sample_answers, sample_images

GRID_COLUMNS = 2
WRITERS = 8  # threads


@dataclass(frozen=True)
class Setup:
    """What a worker needs, on any machine that sees the files.

    Attributes:
        model, device, weights, vae, loras: for janus_core.load.
        dtype: "float32", "bfloat16", "float16", or None for the checkpoint's.
        images: the folder that the jobs' images are relative to.
        out: the output folder.
        made_with: goes into every record (records.RunFolder).
        batch_size: the most images at once.
        overwrite: replace outputs that disagree.
        threads: of torch on a CPU, whose number changes the last bits of a result; None leaves it as it is.
    """

    model: str
    out: str
    device: str | None = None
    dtype: str | None = None
    weights: str | None = None
    vae: str | None = None
    loras: tuple = ()
    images: str = "."
    made_with: dict = field(default_factory=dict)
    batch_size: int = 1
    overwrite: bool = False
    threads: int | None = None

    def made_with_of(self, output: Output) -> dict:
        """`made_with`, and how large the images are that the output is about."""
        return {**self.made_with, **image_bytes(output.images, Path(self.images))}


@dataclass(frozen=True)
class Result:
    """What became of an output.

    Attributes:
        status: "done", "skipped" or "failed".
        tokens: that were sampled for it.
        seconds: its share of its group's time.
        retries: how often its group was begun before.
    """

    path: str
    job: str
    status: str
    error: str = ""
    images: int = 0
    tokens: int = 0
    seconds: float = 0.0
    retries: int = 0


def load(setup: Setup):
    """The pipeline of a setup. Raises CheckpointError or DeviceError."""
    dtype = None if setup.dtype is None else getattr(torch, setup.dtype)
    return loading.load(
        setup.model, device=setup.device, dtype=dtype, vae=setup.vae, weight_dtype=setup.weights, loras=setup.loras
    )


class Worker:
    """A loaded pipeline that runs groups, and writes files in threads: a GPU would wait for compression and disks."""

    def __init__(self, setup: Setup, pipe=None):
        self.setup, self.folder = setup, RunFolder(Path(setup.out))
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        self.pipe = load(setup) if pipe is None else pipe
        self.writers = ThreadPoolExecutor(WRITERS)

    def run(self, group: Group, callback: Callback | None = None) -> list[Result]:
        """Samples a group and writes what is missing of it. Arguments and errors are those of `start`."""
        return [one.result() for one in self.start(group, callback)]

    def start(self, group: Group, callback: Callback | None = None) -> list[Future[Result]]:
        """Samples a group and begins to write what is missing of it.

        A group is sampled as a whole even if some of it is there, so that the rest has the same bytes as without the
        interruption. If it fails, its outputs are tried one by one, and those that fail are reported.

        Raises:
            Cancelled: the callback returned False; the group is dropped.
            BatchError: memory ran out.
        """
        made_with = {output.path: self.setup.made_with_of(output) for output in group}  # before images are read
        states = {output.path: self.folder.state(output, made_with[output.path]) for output in group}
        missing = [output for output in group if states[output.path] != "done"]
        results = [_known(Result(output.path, output.job, "skipped")) for output in group if output not in missing]
        if not missing:
            return results
        try:
            return results + self._run_together(group, missing, made_with, callback)
        except Exception as error:
            self._raise_if_final(error)
            if len(group) == 1:
                return [_known(_failed(group[0], error))]
        for output in missing:
            try:
                results += self._run_together([output], [output], made_with, callback)
            except Exception as error:
                self._raise_if_final(error)
                results.append(_known(_failed(output, error)))
        return results

    def _raise_if_final(self, error: Exception):
        """Raises errors that are not of one job."""
        if isinstance(error, Cancelled):
            raise error
        if is_out_of_memory(error):
            raise BatchError(
                f"Memory ran out with {self.setup.batch_size} images at once: give a smaller --batch-size."
            ) from None

    def _run_together(
        self, group: Group, missing: list[Output], made_with: dict[str, dict], callback: Callback | None
    ) -> list[Future[Result]]:
        began = time.perf_counter()
        sample = self._answers if group[0].task == "describe" else self._images
        made = dict(zip((output.path for output in group), sample(group, callback)))
        images = sum(len(output.seeds) for output in group)
        seconds = (time.perf_counter() - began) / images

        def written(output: Output) -> Result:
            content, tokens = made[output.path]
            share = seconds * len(output.seeds)
            try:
                self._write(output, content, made_with[output.path], {"seconds": round(share, 4), "tokens": tokens})
            except Exception as error:
                return _failed(output, error)
            return Result(output.path, output.job, "done", "", len(output.seeds), tokens, share)

        return [self.writers.submit(written, output) for output in missing]

    def _write(self, output: Output, content, made_with: dict, measured: dict):
        """Writes an output with its record, and what belongs beside it; the output itself last."""
        folder, temporary = self.folder, self.folder.temporary
        self.folder.remove(output)
        measured = {**measured, "batch_size": self.setup.batch_size, "device": _device_name(self.pipe.device)}
        folder.write_record(output, made_with, measured)
        for path, text in output.beside.items():
            write_text(folder.file(path), text, temporary)
        if isinstance(content, str):
            return write_text(folder.file(output.path), content, temporary)
        model = made_with.get("model", {})
        metadata = {**output.request, "checkpoint": model.get("checkpoint", "")[:16]}
        if loras := model.get("loras"):
            metadata["loras"] = [f"{one['sha256'][:16]}:{one['strength']:g}" for one in loras]
        write_image(content, folder.file(output.path), metadata, temporary)

    def _images(self, group: Group, callback: Callback | None) -> Iterator[tuple[Image.Image, int]]:
        """(image or grid, tokens) of each output."""
        prompts, seeds = zip(*((output.prompt, seed) for output in group for seed in output.seeds))
        first = group[0]
        more = {"batch_size": self.setup.batch_size, "negative": first.negative, "callback": callback}
        images, tokens = sample_images(self.pipe, prompts, seeds, first.settings, **more)
        images = iter(images)
        for output in group:
            yield grid([next(images) for _ in output.seeds]), tokens * len(output.seeds)

    def _answers(self, group: Group, callback: Callback | None) -> Iterator[tuple[str, int]]:
        """(answer, tokens) of each output."""
        folder = Path(self.setup.images)
        images = [[open_image(folder / name) for name in output.images] for output in group]
        seeds = [output.seeds[0] for output in group]
        more = {"batch_size": self.setup.batch_size, "callback": callback}
        for answer in sample_answers(self.pipe, images, group[0].prompt, seeds, group[0].settings, **more):
            yield answer.strip(), len(self.pipe.prompts.ids(answer, bos=False))


def grid(images: list[Image.Image]) -> Image.Image:
    """One image, or several of one size in two columns, row by row without gaps."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    canvas = Image.new("RGB", (width * GRID_COLUMNS, height * -(-len(images) // GRID_COLUMNS)))
    for k, image in enumerate(images):
        canvas.paste(image, (k % GRID_COLUMNS * width, k // GRID_COLUMNS * height))
    return canvas


def _known(result: Result) -> Future[Result]:
    future = Future()
    future.set_result(result)
    return future


def _failed(output: Output, error: Exception) -> Result:
    reason = str(error) if isinstance(error, JanusError) else f"{type(error).__name__}: {first_line(error)}"
    return Result(output.path, output.job, "failed", " ".join(reason.split()))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
