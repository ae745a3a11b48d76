"""The state of a run, from which it resumes: what is trained, the optimizer, the averages and the log."""

import json
from pathlib import Path

import torch
from accelerate import PartialState

from ..checkpoint.files import read_pickle
from ..errors import TrainingError, library_errors
from ..files import write_atomically, write_text
from ..schema import shown
from . import sharding
from .ema import EMA, trained_parameters
from .finite import check_weights

PARTS = ("step", "weights", "optimizer", "ema", "log", "identity")  # what state.pt holds
LOG_BYTES = 2**28  # of the log in it: millions of steps


def save_state(folder: Path, objective, optimizer, ema: EMA, step: int, log: list, identity: dict):
    """Writes state.pt and log.jsonl into a folder; every process calls it, and the main process writes.

    Frozen weights are not stored.

    Args:
        step: steps done.
        identity: see load_state.

    Raises:
        OutputError: a file cannot be written.
    """
    weights = trained_parameters(objective)
    state = {
        "step": step,
        "weights": sharding.full_tensors(weights),
        "optimizer": sharding.full_optimizer_state(objective, optimizer),
        "ema": sharding.full_tensors(ema.weights),
        "log": log,
        "identity": identity,
    }
    if PartialState().is_main_process:
        write_atomically(folder / "state.pt", lambda file: torch.save(state, file))
        write_log(folder, log)


def write_log(folder: Path, log: list):
    """Writes log.jsonl: a JSON object per logged step."""
    write_text(folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))


def load_state(folder: Path, objective, optimizer, ema: EMA, identity: dict) -> tuple[int, list]:
    """Loads the state in a folder, if there is one, into the objective's trained weights, the optimizer and the EMA.

    Args:
        identity: settings by name that the state must have too.

    Returns:
        (steps done, log); (0, []) if there is no state.

    Raises:
        TrainingError: it is damaged, or of a run with another identity or other weights.
    """
    path = folder / "state.pt"
    if not path.exists():
        return 0, []
    state = read_pickle(path, TrainingError, LOG_BYTES, "remove it to start over")
    with library_errors(TrainingError, f"{path} is not the state of this run, remove it or name another folder"):
        missing = [key for key in PARTS if not isinstance(state, dict) or key not in state]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        step, log, averages = state["step"], state["log"], state["ema"]
        if type(step) is not int or step < 0 or not isinstance(log, list):
            raise ValueError("its steps are not a number")
        _check_identity(state["identity"], identity)
        weights = trained_parameters(objective)
        for stored, own in ((state["weights"], weights), (averages, ema.weights)):
            if {name: weight.shape for name, weight in stored.items()} != {n: w.shape for n, w in own.items()}:
                raise ValueError("it trains other weights")
        sharding.load_full_tensors(weights, state["weights"])
        sharding.load_full_optimizer_state(objective, optimizer, state["optimizer"])
        sharding.load_full_tensors(ema.weights, averages)
        ema.updates = step
        check_weights(ema.result(objective))
    return step, log


def _check_identity(stored: dict, own: dict):
    """Raises ValueError with the name and values of the first setting that differs."""
    for name in {**stored, **own}:
        if stored.get(name) != own.get(name):
            raise ValueError(f"{name} was {shown(stored.get(name))} and is {shown(own.get(name))}")
