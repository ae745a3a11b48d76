"""The training loop: accelerate for devices, precision and several GPUs; AdamW, warm-up, clipping, EMA, resuming.

The loop trains a module whose forward takes a batch and returns losses by name; it minimises their sum. Batches and
random numbers depend on the seed and the step only, so a resumed run equals one that was never stopped.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from ..checkpoint.files import read_pickle
from ..errors import TrainingError, library_errors
from ..files import write_atomically, write_text
from .settings import LoopSettings

STATE = ("step", "weights", "optimizer", "ema", "log")  # what state.pt holds

__all__ = ["EMA", "LoopSettings", "learning_rate", "train"]


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Linear warm-up from 0, constant, linear decay over the last `decay` of the steps."""
    rate = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.lr * min(rate, left if settings.decay else 1.0)


class EMA:
    """Exponential moving average of a module's trained weights: ema = d ema + (1 - d) weights."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: torch.nn.Module):
        for name, p in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(p.detach(), 1 - self.decay)

    def check_finite(self):
        """Raises TrainingError for a weight that is not."""
        for name, weight in self.weights.items():
            if not weight.isfinite().all():
                raise TrainingError(f"The weight {name} is not finite after training: use a lower learning rate.")

    @torch.no_grad()
    def swap(self, model: torch.nn.Module):
        """Exchanges the module's weights and the averages; a second call undoes the first."""
        for name, p in model.named_parameters():
            if name in self.weights:
                current = p.detach().clone()
                p.copy_(self.weights[name])
                self.weights[name] = current


def train(
    objective: torch.nn.Module,
    batch_at: Callable,
    settings: LoopSettings,
    folder: str | Path,
    *,
    sample: Callable[[Path], None] | None = None,
    stop_at: int | None = None,
) -> list[dict]:
    """Trains until `settings.steps`, resuming from the state in `folder` if it has one.

    At the end the objective has the averaged weights.

    Args:
        objective: forward(batch) -> dict of scalar losses; parameters with requires_grad are trained.
        batch_at: the batch of an index, a dict of tensors; a pure function.
        folder: for state.pt, log.jsonl and samples.
        sample: writes a PNG image of samples to the given path, whatever its suffix; called with the averaged weights
            in place.
        stop_at: stops after this many steps in all, as if the run had been killed there.

    Returns:
        The log: one dict per logged step, with losses averaged since the previous one.

    Raises:
        TrainingError: every weight is frozen, the folder's state is damaged or of another run, or a loss, a gradient or
            a weight is not finite.
        OutputError: the state cannot be written.
    """
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    objective.to(accelerator.device).train()
    trained = [p for p in objective.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("Nothing to train: every weight is frozen.")
    optimizer = torch.optim.AdamW(trained, settings.lr, settings.betas, weight_decay=settings.weight_decay)
    model, optimizer = accelerator.prepare(objective, optimizer)
    ema = EMA(objective, settings.ema)
    start, log = _resume(folder, objective, optimizer, ema, accelerator.device)
    sums, began = {}, time.time()
    for step in range(start, settings.steps if stop_at is None else min(stop_at, settings.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        for micro in range(settings.accumulate):
            index = (step * settings.accumulate + micro) * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(settings.seed * 1_000_003 + index)
            batch = {k: v.to(accelerator.device) for k, v in batch_at(index).items()}
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    losses = model(batch)
                for name, value in losses.items():
                    _check_finite(f"The loss {name}", value, step)
                accelerator.backward(sum(losses.values()))
                if accelerator.sync_gradients:
                    _check_finite("The gradient", accelerator.clip_grad_norm_(trained, settings.clip), step)
                optimizer.step()
                optimizer.zero_grad()
            for name, value in losses.items():
                total, count = sums.get(name, (0.0, 0))
                sums[name] = (total + value.item(), count + 1)
        ema.update(objective)
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            entry = {"step": done, "seconds": round(time.time() - began, 1)}
            entry |= {name: round(total / count, 5) for name, (total, count) in sums.items()}
            log.append(entry)
            sums = {}
            accelerator.print(json.dumps(entry), flush=True)
        if accelerator.is_main_process and (done % settings.save_every == 0 or done in (settings.steps, stop_at)):
            _save(folder, objective, optimizer, ema, done, log)
        if sample and accelerator.is_main_process and settings.sample_every and done % settings.sample_every == 0:
            _sample(sample, objective, ema, folder / f"samples_{done:06}.png")
    accelerator.wait_for_everyone()
    ema.check_finite()
    ema.swap(objective)
    objective.eval()
    return log


def _sample(sample, objective, ema, path):
    state = torch.get_rng_state()
    ema.swap(objective)
    objective.eval()
    write_atomically(path, sample)
    objective.train()
    ema.swap(objective)
    torch.set_rng_state(state)


def _save(folder, objective, optimizer, ema, done, log):
    state = {
        "step": done,
        "weights": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.weights,
        "log": log,
    }
    ema.check_finite()
    write_atomically(folder / "state.pt", lambda file: torch.save(state, file))
    write_text(folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))


def _resume(folder, objective, optimizer, ema, device):
    """(steps done, log) of the state in a folder, which is loaded; (0, []) without one."""
    path = folder / "state.pt"
    if not path.exists():
        return 0, []
    state = read_pickle(path, TrainingError)
    with library_errors(TrainingError, f"{path} is not the state of this run, remove it or name another folder"):
        missing = [key for key in STATE if not isinstance(state, dict) or key not in state]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        step, log, weights = state["step"], state["log"], state["ema"]
        if type(step) is not int or step < 0 or not isinstance(log, list):
            raise ValueError("its steps are not a number")
        if {name: weight.shape for name, weight in weights.items()} != {n: w.shape for n, w in ema.weights.items()}:
            raise ValueError("it trains other weights")
        objective.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        ema.weights = {name: weight.to(device) for name, weight in weights.items()}
        ema.check_finite()
    return step, log


def _check_finite(what: str, value, step: int):
    if value is not None and not torch.as_tensor(value).detach().isfinite().all():
        raise TrainingError(
            f"{what} is not finite at step {step + 1}: use a lower learning rate, or the weights of an earlier run."
        )
