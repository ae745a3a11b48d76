"""A batch run, from outputs to summary."""

import logging
from collections import deque
from dataclasses import dataclass, replace

from ..checkpoint import lora_changes, lora_hash, read_checkpoint
from ..devices import usable_device
from ..operations import compute_dtype
from ..progress import Cancelled
from ..prompt import PromptEncoder
from ..sampling.settings import check_range
from .contact_sheet import write_contact_sheet
from .groups import Group, check_settings, make_groups, shard_of
from .memory import batch_size_for
from .outputs import BatchError, Output
from .progress import Progress, Stop, write_summary
from .records import RunFolder, content_hash, versions
from .worker import Setup, Worker, load

logger = logging.getLogger(__name__)

MOST_BEGUN = 64  # outputs in memory whose files are being written; a slow disk makes the sampler wait


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes an output.

    Attributes:
        batch_size: the most images at once; None takes the run's earlier one, or finds it from memory.
        shard: (i, n), this process does the i-th of n parts.
        engine: "process" or "ray".
        workers: of Ray; None is one per GPU, or per `cpus_per_worker`.
        contact_sheet: write an overview into OUT.run.
    """

    batch_size: int | None = None
    shard: tuple[int, int] = (0, 1)
    engine: str = "process"
    workers: int | None = None
    cpus_per_worker: int | None = None
    contact_sheet: bool = False


class InProcess:
    """Runs the groups one after the other here."""

    def __init__(self, setup: Setup):
        self.setup, self.pipe = setup, None
        self.device = usable_device(setup.device)

    def find_batch_size(self) -> int:
        return batch_size_for(self._loaded(self.setup))

    def run(self, groups: list[Group], setup: Setup, progress: Progress, stop: Stop):
        worker = Worker(setup, self._loaded(setup))
        progress.start()
        begun = deque()  # results, while their files are written

        def callback(done: int, total: int) -> bool:
            while begun and begun[0].done():
                progress.add(begun.popleft().result())
            progress.bar.set_description_str(f"step {done}/{total}", refresh=False)
            progress.bar.update(0)
            return stop.signal is None

        try:
            for group in groups:
                if stop.signal is not None:
                    return
                begun += worker.start(group, callback)
                while len(begun) > MOST_BEGUN:
                    progress.add(begun.popleft().result())
        except Cancelled:
            return
        finally:
            for one in begun:
                progress.add(one.result())

    def _loaded(self, setup: Setup):
        if self.pipe is None:
            self.pipe = load(setup)
        return self.pipe


def engine_for(setup: Setup, options: Options):
    """The engine that the options name. Raises BatchError when Ray is not installed."""
    if options.engine == "process":
        return InProcess(setup)
    from .ray_engine import OnRay  # needs ray

    return OnRay(setup, options.workers, options.cpus_per_worker)


def run_batch(outputs: list[Output], setup: Setup, options: Options) -> dict:
    """Makes the outputs that are not there yet.

    Args:
        setup: without made_with and batch_size, which are found here.

    Returns:
        The summary, which is also in OUT.run.

    Raises:
        BatchError: an output was made in another way, or what an earlier run left cannot be used.
        CheckpointError, SamplingError, DeviceError.
    """
    if options.batch_size is not None:
        check_range("batch_size", options.batch_size, 1, 4096, whole=True)
    checkpoint = read_checkpoint(setup.model)
    check_settings(outputs, checkpoint.family)
    lora_changes(checkpoint, setup.loras)  # raises for one that does not fit
    folder = RunFolder.create(setup.out)
    prompts = PromptEncoder.of(checkpoint)
    engine = engine_for(setup, options)
    dtype = setup.dtype or str(compute_dtype(engine.device, checkpoint.dtype)).removeprefix("torch.")
    setup = replace(setup, out=str(folder.out), dtype=dtype)
    setup = replace(setup, made_with=_made_with(setup))
    with Stop() as stop:
        batch_size = _batch_size(folder, engine, options)
        setup = replace(setup, batch_size=batch_size)
        groups = shard_of(make_groups(outputs, prompts, batch_size), *options.shard)
        todo, there = _todo(groups, folder, setup)
        progress = Progress(sum(len(output.seeds) for group in todo for output in group))
        try:
            if todo:
                engine.run(todo, setup, progress, stop)
        finally:
            progress.close()
            summary = progress.summary(
                sum(map(len, groups)),
                there,
                **{"engine": options.engine, "shard": "/".join(map(str, options.shard)), "batch_size": batch_size},
                interrupted=stop.signal is not None,
                model=setup.made_with["model"],
                versions=setup.made_with["versions"],
            )
            write_summary(folder, summary, options.shard)
    if options.contact_sheet:
        write_contact_sheet(folder, outputs)
    stop.raise_if_set()
    return summary


def _made_with(setup: Setup) -> dict:
    """What the outputs depend on apart from their jobs."""
    model = {"checkpoint": content_hash(setup.model), "dtype": setup.dtype, "weights": setup.weights}
    if setup.vae is not None:
        model["vae"] = content_hash(setup.vae)
    if setup.loras:
        model["loras"] = [{"sha256": lora_hash(path), "strength": strength} for path, strength in setup.loras]
    return {"model": model, "versions": versions()}


def _batch_size(folder: RunFolder, engine, options: Options) -> int:
    """The batch size that was asked for, else the one of the run so far, else what fits."""
    before = folder.shared().get("batch_size")
    if options.batch_size is not None:
        if before not in (None, options.batch_size):
            logger.warning("The batch size was %s: what is missing may differ in rounding from a run with it.", before)
        return folder.share({"batch_size": options.batch_size}, replace=before != options.batch_size)["batch_size"]
    if before is None:
        before = folder.share({"batch_size": engine.find_batch_size()})["batch_size"]
    check_range(f"{folder.run / 'run.json'}: batch_size", before, 1, 4096, whole=True)
    return before


def _todo(groups: list[Group], folder: RunFolder, setup: Setup) -> tuple[list[Group], set[str]]:
    """Groups with missing outputs, and the paths that are there. Raises BatchError for outputs that disagree."""
    todo, there, wrong = [], set(), []
    for group in groups:
        states = [folder.state(output, setup.made_with_of(output)) for output in group]
        wrong += [(output, state) for output, state in zip(group, states) if state not in (None, "done")]
        there |= {output.path for output, state in zip(group, states) if state == "done"}
        if any(state != "done" for state in states):
            todo.append(group)
    if wrong and not setup.overwrite:
        output, why = wrong[0]
        others = f", and {len(wrong) - 1} other outputs disagree" if len(wrong) > 1 else ""
        raise BatchError(
            f"{folder.file(output.path)} is there, but {why}{others}: choose another --out, or give --overwrite."
        )
    return todo, there
