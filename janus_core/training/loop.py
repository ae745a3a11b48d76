"""The training loop: accelerate for devices, precision and several GPUs; AdamW, warm-up, clipping, EMA, resuming.

The loop trains a module whose forward takes a batch and returns losses by name; it minimises their sum, or what the
module's own `total(losses, batch)` returns. Batches and random numbers depend on the seed and the step only, so a
resumed run equals one that was never stopped.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import AutocastKwargs, DistributedType, is_tensorboard_available

from ..errors import TrainingError
from ..files import write_atomically
from .checkpointing import is_checkpointed
from .ema import EMA, all_finite, check_finite, trained_parameters
from .optimizers import StepInBackward, make_optimizer
from .settings import LoopSettings
from .sharding import is_sharded
from .state import load_state, save_state
from .streaming import stream

__all__ = ["EMA", "LoopSettings", "learning_rate", "train"]


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Linear warm-up from 0, constant, linear decay over the last `decay` of the steps."""
    rate = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.lr * min(rate, left if settings.decay else 1.0)


def train(
    objective: torch.nn.Module,
    batch_at: Callable,
    settings: LoopSettings,
    folder: str | Path,
    *,
    sample: Callable[[Path], None] | None = None,
    validate: Callable[[int], None] | None = None,
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
        identity: settings by name, of which a state must have the same values to be resumed.
        stop_at: stops after this many steps in all, as if the run had been killed there.

    Returns:
        The log: one dict per logged step, with losses averaged since the previous one and over all processes.

    Raises:
        TrainingError: every weight is frozen, the folder's state is damaged or of another run, a loss, a gradient or a
            weight is not finite, or a library is missing.
        OutputError: the state cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(settings, folder, cache_casts=not is_checkpointed(objective))
    objective.train()
    if accelerator.distributed_type != DistributedType.FSDP:  # which moves each process's part only
        objective.to(accelerator.device)
    if not trained_parameters(objective):
        raise TrainingError("Nothing to train: every weight is frozen.")
    optimizer = make_optimizer(list(trained_parameters(objective).values()), settings)
    model, prepared = accelerator.prepare(objective, optimizer)
    optimizer, trained = prepared.optimizer, list(trained_parameters(objective).values())
    _check_distribution(settings, accelerator, objective, sample or validate)
    in_backward = StepInBackward(optimizer, settings.clip) if settings.step_in_backward else None
    ema = EMA(objective, settings.ema, settings.ema_warmup, None if settings.ema_device == "same" else "cpu")
    identity = {**(identity or {}), "processes": accelerator.num_processes}
    start, log = load_state(folder, objective, optimizer, ema, identity)
    end = settings.steps if stop_at is None else min(stop_at, settings.steps)
    per_step = settings.accumulate * accelerator.num_processes
    indices = range(start * per_step + accelerator.process_index, end * per_step, accelerator.num_processes)
    batches = stream(
        batch_at, indices, settings.workers, lambda index: torch.manual_seed(settings.seed * 1_000_003 + index)
    )
    sums, began = {}, time.time()
    for step in range(start, end):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        for _ in range(settings.accumulate):
            batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in next(batches).items()}
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    losses = model(batch)
                for name, value in losses.items():
                    _check_finite(f"The loss {name}", value, step)
                total = objective.total(losses, batch) if hasattr(objective, "total") else sum(losses.values())
                accelerator.backward(total)
                if in_backward is not None:
                    _check_finite("The gradient", 0.0 if in_backward.finite else float("nan"), step)
                elif accelerator.sync_gradients:
                    _check_finite("The gradient", accelerator.clip_grad_norm_(trained, settings.clip), step)
                if in_backward is None:
                    prepared.step()
                    prepared.zero_grad()
            for name, value in losses.items():
                so_far, count = sums.get(name, (0.0, 0))
                sums[name] = (so_far + value.detach(), count + 1)
        ema.update(objective)
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            means = {name: float(accelerator.reduce(so_far / count, "mean")) for name, (so_far, count) in sums.items()}
            entry = {"step": done, "seconds": round(time.time() - began, 1)}
            log.append(entry | {name: round(mean, 5) for name, mean in means.items()})
            sums = {}
            accelerator.print(json.dumps(log[-1]), flush=True)
            accelerator.log({**means, "learning rate": learning_rate(settings, step)}, step=done)
        if done % settings.save_every == 0 or done in (settings.steps, stop_at):
            save_state(folder, objective, optimizer, ema, done, log, identity, accelerator.is_main_process)
        if (sample or validate) and settings.sample_every and done % settings.sample_every == 0:
            if accelerator.is_main_process:
                _sample(objective, ema, sample, validate, folder, done)
            accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:  # end_training would also end the process group, which the caller may need
        tracker.finish()
    if in_backward is not None:
        in_backward.remove()
    check_finite(ema.weights or trained_parameters(objective))
    ema.swap(objective)
    objective.eval()
    return log


def _accelerator(settings: LoopSettings, folder: Path, cache_casts: bool) -> Accelerator:
    """Accelerate as the settings ask for it.

    Args:
        cache_casts: whether autocast stores the 16-bit copy of a weight until the end of the step.
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


def _check_distribution(settings, accelerator, objective, samples):
    """Raises TrainingError for settings that several processes or FSDP do not allow."""
    if settings.step_in_backward and accelerator.num_processes > 1:
        raise TrainingError("step_in_backward works in one process only: set it to false to train on several GPUs.")
    if not is_sharded(objective):
        return
    if settings.optimizer != "adamw" or settings.ema_device != "same":
        raise TrainingError("FSDP shards the optimizer and the EMA: use adamw, with ema_device 'same'.")
    if samples and settings.sample_every:
        raise TrainingError("Samples need the whole model on one GPU, which FSDP splits up: set sample_every to 0.")


def _sample(objective, ema, sample, validate, folder, done: int):
    """Calls what makes samples with the averaged weights in place; training goes on as if it had not been called."""
    state, device_states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    ema.swap(objective)
    objective.eval()
    if sample:
        write_atomically(folder / f"samples_{done:06}.png", sample)
    if validate:
        validate(done)
    objective.train()
    ema.swap(objective)
    torch.set_rng_state(state)
    if device_states is not None:
        torch.cuda.set_rng_state_all(device_states)


def _check_finite(what: str, value, step: int):
    if value is not None and not all_finite(torch.as_tensor(value)):
        raise TrainingError(
            f"{what} is not finite at step {step + 1}: use a lower learning rate, or the weights of an earlier run."
        )
