"""The training loop: accelerate for devices, precision and several GPUs; AdamW, warm-up, clipping, EMA, resuming.

The loop trains a module whose forward takes a batch and returns losses by name; it minimises their sum, or what the
module's own `total(losses, batch)` returns. Batches and random numbers depend on the seed and the step only, so a
resumed run equals one that was never stopped.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import AutocastKwargs, DistributedType, is_tensorboard_available

from ..errors import TrainingError
from ..files import write_atomically
from .checkpointing import is_checkpointed
from .ema import EMA, trained_parameters
from .finite import all_finite, check_step, check_weights
from .optimizers import StepInBackward, learning_rate, make_optimizer
from .settings import LoopSettings
from .sharding import is_sharded
from .state import load_state, save_state
from .streaming import stream, worker_errors


def train(
    objective: torch.nn.Module,
    batch_at: Callable,
    settings: LoopSettings,
    folder: str | Path,
    *,
    sample: Callable[[Path], None] | None = None,
    validate: Callable[[int], None] | None = None,
    export: Callable[[int], None] | None = None,
    identity: dict | None = None,
    stop_at: int | None = None,
) -> list[dict]:
    """Trains until `settings.steps`, resuming from the state in `folder` if it has one.

    At the end the objective has the averaged weights. Files are written by the main process only.

    Args:
        objective: forward(batch) -> dict of scalar losses; parameters with requires_grad are trained.
        batch_at: the batch of an index, a dict of tensors; a pure function.
        folder: for state.pt, log.jsonl, samples and TensorBoard's files.
        sample: writes a PNG image of samples to the given path, whatever its suffix; called every
            `settings.sample_every` steps with the averaged weights in place.
        validate: called like `sample`, with the number of steps.
        export: called with the number of steps after each save but the last, with the averaged weights in place.
        identity: settings by name, of which a state must have the same values to be resumed.
        stop_at: stops after this many steps in all, as if the run had been killed there.

    Returns:
        The log: one dict per logged step, with losses averaged since the previous one and over all processes.

    Raises:
        TrainingError: every weight is frozen, the folder's state is damaged or of another run, a loss, a gradient or a
            weight is not finite, a worker process died, or a library is missing.
        OutputError: the state cannot be written.
    """
    trainer = Trainer(objective, settings, Path(folder), identity or {}, sample, validate, export)
    end = settings.steps if stop_at is None else min(stop_at, settings.steps)
    batches = trainer.batches(batch_at, end)
    with worker_errors():
        for step in range(trainer.start, end):
            trainer.train_step(step, batches)
            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                trainer.log_losses(done)
            if done % settings.save_every == 0 or done in (settings.steps, stop_at):
                trainer.save(done)
            if trainer.evaluates and done % settings.sample_every == 0:
                trainer.evaluate(done)
    trainer.finish()
    return trainer.log


class Trainer:
    """A run: what it trains, with which optimizer and averages, and its log. Each event of the loop is a method.

    Every process of a run has its own trainer and calls all methods; the arguments and errors are those of `train`.

    Attributes:
        objective, optimizer: the user's module and torch's optimizer, which are saved and loaded.
        model, prepared: both as accelerate wraps them, for forward passes and steps.
        trained: the parameters that the optimizer updates.
        start: steps done when the run begins; over 0 if it is resumed.
        evaluates: whether `evaluate` has anything to do.
    """

    def __init__(self, objective, settings: LoopSettings, folder: Path, identity: dict, sample, validate, export):
        folder.mkdir(parents=True, exist_ok=True)
        self.objective, self.settings, self.folder = objective, settings, folder
        self.sample, self.validate, self.export = sample, validate, export
        self.evaluates = bool(settings.sample_every and (sample or validate))
        self.accelerator = _accelerator(settings, folder, cache_casts=not is_checkpointed(objective))
        objective.train()
        if self.accelerator.distributed_type != DistributedType.FSDP:  # which moves each process's part only
            objective.to(self.accelerator.device)
        if not trained_parameters(objective):
            raise TrainingError("Nothing to train: every weight is frozen.")
        optimizer = make_optimizer(list(trained_parameters(objective).values()), settings)
        self.model, self.prepared = self.accelerator.prepare(objective, optimizer)
        self.optimizer, self.trained = self.prepared.optimizer, list(trained_parameters(objective).values())
        check_distribution(settings, self.accelerator.num_processes, is_sharded(objective), self.evaluates)
        self.in_backward = StepInBackward(self.optimizer, settings.clip) if settings.step_in_backward else None
        self.ema = EMA(objective, settings.ema, settings.ema_warmup, None if settings.ema_device == "same" else "cpu")
        self.identity = {**identity, "processes": self.accelerator.num_processes}
        self.start, self.log = load_state(folder, objective, self.optimizer, self.ema, self.identity)
        self.sums = {}  # of each loss since the last log entry: (sum, batches)
        self.began = time.time()

    def batches(self, batch_at: Callable, end: int) -> Iterator[dict]:
        """This process's batches until step `end`; torch's generator is seeded before each."""
        settings, processes = self.settings, self.accelerator.num_processes
        per_step = settings.accumulate * processes
        indices = range(self.start * per_step + self.accelerator.process_index, end * per_step, processes)
        return stream(
            batch_at, indices, settings.workers, lambda index: torch.manual_seed(settings.seed * 1_000_003 + index)
        )

    def train_step(self, step: int, batches: Iterator[dict]):
        """One step of the optimizer on the mean gradient of `accumulate` batches, then one of the averages."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        for batch in islice(batches, self.settings.accumulate):
            batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
            with self.accelerator.accumulate(self.model):
                losses = self._backward(batch, step)
                self._update_weights(step)
            for name, value in losses.items():
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = total + value.detach(), count + 1
        self.ema.update(self.objective)

    def _backward(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """Adds a batch's gradients to those of the step; returns its losses."""
        with self.accelerator.autocast():
            losses = self.model(batch)
        for name, value in losses.items():
            check_step(f"The loss {name}", all_finite(value), step)
        total = self.objective.total(losses, batch) if hasattr(self.objective, "total") else sum(losses.values())
        self.accelerator.backward(total)
        return losses

    def _update_weights(self, step: int):
        """Clips the gradients and updates the weights; before the last batch of a step accelerate does neither."""
        if self.in_backward is not None:  # the weights have been updated
            check_step("The gradient", self.in_backward.finite, step)
            return
        if self.accelerator.sync_gradients:
            norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.clip)
            finite = norm is None or all_finite(torch.as_tensor(norm))  # None where DeepSpeed clips
            check_step("The gradient", finite, step)
        self.prepared.step()
        self.prepared.zero_grad()

    def log_losses(self, done: int):
        """Logs the losses' means since the last call: in `log`, on the console, and to TensorBoard."""
        means = {name: float(self.accelerator.reduce(total / n, "mean")) for name, (total, n) in self.sums.items()}
        self.sums = {}
        entry = {"step": done, "seconds": round(time.time() - self.began, 1)}
        self.log.append(entry | {name: round(mean, 5) for name, mean in means.items()})
        self.accelerator.print(json.dumps(self.log[-1]), flush=True)
        self.accelerator.log({**means, "learning rate": learning_rate(self.settings, done - 1)}, step=done)

    def save(self, done: int):
        """Calls `export`, and writes state.pt and log.jsonl: a run that resumes has exported all before."""
        check_weights(self.ema.result(self.objective))
        if self.export and done < self.settings.steps and self.accelerator.is_main_process:
            self.ema.swap(self.objective)
            self.export(done)
            self.ema.swap(self.objective)
        save_state(self.folder, self.objective, self.optimizer, self.ema, done, self.log, self.identity)

    def evaluate(self, done: int):
        """Calls `sample` and `validate` in the main process, with the averaged weights in place.

        Training continues as if they had not been called.
        """
        if self.accelerator.is_main_process:
            with torch.random.fork_rng(range(torch.cuda.device_count()), device_type="cuda"):
                self.ema.swap(self.objective)
                self.objective.eval()
                if self.sample:
                    write_atomically(self.folder / f"samples_{done:06}.png", self.sample)
                if self.validate:
                    self.validate(done)
                self.objective.train()
                self.ema.swap(self.objective)
        self.accelerator.wait_for_everyone()

    def finish(self):
        """Closes the log, and leaves the objective with its final weights, in evaluation mode."""
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:  # end_training would also end the process group, still in use
            tracker.finish()
        if self.in_backward is not None:
            self.in_backward.remove()
        check_weights(self.ema.result(self.objective))
        self.ema.swap(self.objective)
        self.objective.eval()


def _accelerator(settings: LoopSettings, folder: Path, cache_casts: bool) -> Accelerator:
    """Accelerate as the settings ask for it.

    Args:
        cache_casts: whether autocast stores the 16-bit copy of a weight until the end of the step.

    Raises:
        TrainingError: tensorboard is asked for and missing.
    """
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            AutocastKwargs(cache_enabled=cache_casts),
        ],
        log_with="tensorboard" if settings.tensorboard else None,
        project_dir=folder,
    )
    if settings.tensorboard:
        if not is_tensorboard_available():
            raise TrainingError(
                "Logging to TensorBoard needs tensorboard: run `pip install tensorboard`, or set tensorboard to false."
            )
        accelerator.init_trackers("tensorboard")
    return accelerator


def check_distribution(settings: LoopSettings, processes: int, sharded: bool, evaluates: bool):
    """Raises TrainingError for settings that several processes or FSDP do not allow."""
    if settings.step_in_backward and processes > 1:
        raise TrainingError("step_in_backward works in one process only: set it to false to train on several GPUs.")
    if not sharded:
        return
    if settings.optimizer != "adamw" or settings.ema_device != "same":
        raise TrainingError("FSDP shards the optimizer and the EMA: use adamw, with ema_device 'same'.")
    if evaluates:
        raise TrainingError("Samples need the whole model on one GPU, which FSDP splits up: set sample_every to 0.")
