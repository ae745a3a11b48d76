"""Fine-tuning with wrong configs, data and states: each is refused by name; weights of NaN are never written."""

import json
import os
import random
import shutil

import pytest
import torch

from janus_core.errors import TrainingError, library_errors
from janus_core.training import batches, loop
from janus_core.training.settings import LOOP, LoopSettings, check_finetune
from tests.fuzz import training
from tests.refusals import one_sentence


@pytest.fixture
def config(tmp_path, monkeypatch):
    work = tmp_path / "work"
    config = training.config_of(work)
    monkeypatch.chdir(work)
    return config


def refused(config, *words):
    with open("config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)
    with one_sentence(*words):
        training.run("config.json")
    assert not os.path.exists("out/checkpoint") and not os.path.exists("out/lora.safetensors")


@pytest.mark.parametrize("name", sorted(set(training.TOP) - {"task", "checkpoint", "images", "folder"}))
def test_a_setting(config, name):
    for value in training.TOP[name]:
        if name == "lora" and not value:
            continue
        with one_sentence(name, error=TrainingError):
            check_finetune({**config, name: value}, "config.json")


@pytest.mark.parametrize("name", sorted(training.LOOP))
def test_a_setting_of_the_loop(config, name):
    for value in training.LOOP[name]:
        with pytest.raises(TrainingError, match=name):
            check_finetune({**config, "loop": {**config["loop"], name: value}}, "config.json")
        if name in LOOP and name != "seed":
            with pytest.raises(TrainingError, match=name):
                LoopSettings(**{"steps": 1, name: value})


@pytest.mark.parametrize("name", ["checkpoint", "images", "seed", "rows", "loop", "stage"])
def test_a_missing_setting(config, name):
    del config[name]
    refused(config, f"lacks the setting '{name}'")


def test_paths(config):
    for name in ("checkpoint", "images"):
        for value in ("nowhere", "~nosuchuser/x", "a\0b", "/dev/null"):
            refused({**config, name: value})
    refused({**config, "folder": "config.json"}, "config.json")


def test_a_config_that_is_missing(config):
    with pytest.raises(TrainingError, match="no file nowhere.json"):
        training.run("nowhere.json")


@pytest.mark.parametrize("number", range(9))
def test_images_and_captions(config, tmp_path, number):
    label, _ = training.data(config, tmp_path / "work", random.Random(number))
    refused(config)


@pytest.mark.parametrize("number", range(16))
def test_a_state_that_is_damaged_or_of_another_run(config, tmp_path, number):
    training.state(config, tmp_path / "work", random.Random(number))
    refused(config, "state.pt")


def test_a_state_of_other_weights(config):
    training.run(_written(config))
    shutil.rmtree("out/checkpoint")
    refused({**config, "stage": 3}, "state.pt", "not the state of this run")


def _written(config):
    with open("config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)
    return "config.json"


@pytest.mark.parametrize("number", range(8))
def test_weights_that_cannot_be_trained(config, tmp_path, number):
    training.weights(config, tmp_path / "work", random.Random(number))
    refused(config)


def test_the_loss_that_is_not_finite_is_named(config, monkeypatch):
    monkeypatch.setattr("janus_core.training.objectives.image_token_loss", lambda *a: torch.tensor(float("nan")))
    refused(config, "The loss generation is not finite at step 1")


class Steep(torch.nn.Module):
    """Its loss is finite where its gradient is not."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"root": self.weight.sqrt().sum()}


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"step_in_backward": True}])
def test_the_gradient_that_is_not_finite_is_named(changes, tmp_path):
    settings = LoopSettings(steps=2, precision="no", save_every=1, **changes)
    with pytest.raises(TrainingError, match="The gradient is not finite at step 1"):
        loop.train(Steep(), lambda index: {}, settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_module_without_anything_to_train(tmp_path):
    with pytest.raises(TrainingError, match="every weight is frozen"):
        loop.train(Steep().requires_grad_(False), lambda index: {}, LoopSettings(steps=1, precision="no"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "run", "named"),
    [
        ({"step_in_backward": True}, {"processes": 2}, "step_in_backward"),
        ({"optimizer": "adamw8bit"}, {"sharded": True}, "use adamw"),
        ({"ema_device": "cpu"}, {"sharded": True}, "ema_device 'same'"),
        ({}, {"sharded": True, "evaluates": True}, "set sample_every to 0"),
    ],
)
def test_what_several_gpus_do_not_allow(changes, run, named):
    run = {"processes": 1, "sharded": False, "evaluates": False, **run}
    with pytest.raises(TrainingError, match=named):
        loop.check_distribution(LoopSettings(steps=1, **changes), **run)
    loop.check_distribution(LoopSettings(steps=1), **{**run, "evaluates": False})


def test_every_kind_with_a_share_has_a_row():
    assert batches.split_rows(2, (1000, 1, 0)) == (1, 1, 0)
    assert batches.split_rows(2, (1, 1000, 0)) == (1, 1, 0)


def test_memory_that_runs_out_is_no_fault_of_a_file():
    """A user would remove the state of a long run."""
    with pytest.raises(torch.cuda.OutOfMemoryError), library_errors(TrainingError, "state.pt is not the state"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    with (
        pytest.raises(TrainingError, match="not the state"),
        library_errors(TrainingError, "state.pt is not the state"),
    ):
        raise RuntimeError("size mismatch")
