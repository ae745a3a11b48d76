"""The training loop: accelerate for devices, precision and several GPUs; AdamW, warm-up, clipping, EMA, resuming.

The loop trains a module whose forward takes a batch and returns losses by name; it minimises their sum. Batches and
random numbers depend on the seed and the step only, so a resumed run equals one that was never stopped.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from .. import errors


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one run; the defaults are JanusFlow's (arXiv 2411.07975, table 1 and section 4.1).

    `decay` is the share of the steps, at the end, over which the learning rate falls linearly to zero; 0 is a constant
    rate. One step accumulates the gradients of `accumulate` batches.
    """

    steps: int
    lr: float = 1e-4
    warmup: int = 2000
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.99
    accumulate: int = 1
    precision: str = "bf16"  # or "no"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 0


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
        sample: saves an image of samples to the given path; called with the averaged weights in place.
        stop_at: stops after this many steps in all, as if the run had been killed there.

    Returns:
        The log: one dict per logged step, with losses averaged since the previous one.

    Raises:
        JanusError: every weight is frozen.
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
        raise errors.JanusError("Nothing to train: every weight is frozen.")
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
                accelerator.backward(sum(losses.values()))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, settings.clip)
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
    ema.swap(objective)
    objective.eval()
    return log


def _sample(sample, objective, ema, path):
    state = torch.get_rng_state()
    ema.swap(objective)
    objective.eval()
    sample(path)
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
    partial = folder / "state.partial"
    torch.save(state, partial)
    partial.replace(folder / "state.pt")
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))


def _resume(folder, objective, optimizer, ema, device):
    path = folder / "state.pt"
    if not path.is_file():
        return 0, []
    state = torch.load(path, map_location="cpu", weights_only=True)
    objective.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    ema.weights = {name: weight.to(device) for name, weight in state["ema"].items()}
    return state["step"], state["log"]
