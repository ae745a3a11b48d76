"""What saves memory: checkpointing, 8-bit AdamW, steps in the backward pass, the EMA's settings; and the estimate."""

import json
from itertools import accumulate

import pytest
import torch
from core.training_models import FAMILIES, tiny
from torch.profiler import ProfilerActivity, profile

from janus_core import cli
from janus_core.checkpoint import read_checkpoint, save_folder
from janus_core.errors import TrainingError
from janus_core.training import trained_model
from janus_core.training.checkpointing import checkpoint_blocks, is_checkpointed
from janus_core.training.ema import EMA
from janus_core.training.finetune import rows_of
from janus_core.training.loop import train
from janus_core.training.memory_estimate import GB, Estimate, estimate_memory, fake_batch
from janus_core.training.memory_tracker import PeakMemory
from janus_core.training.settings import LoopSettings, loop_settings

LORA = {"rank": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
CONFIG = {"task": "finetune", "images": "none", "seed": 0, "rows": 8, "ratio": [20, 80], "loop": {"steps": 1}}


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_blocks_have_the_same_gradients_in_less_memory(family):
    gradients, peaks = [], []
    for checkpointed in (False, True):
        objective, batch_at, *_ = tiny(family)
        if checkpointed:
            checkpoint_blocks(objective.model)
            checkpoint_blocks(objective.model)  # again changes nothing
        assert is_checkpointed(objective) == checkpointed
        torch.manual_seed(0)
        with PeakMemory() as memory:
            sum(objective(batch_at(0)).values()).backward()
        peaks.append(memory.peak)
        gradients.append({name: p.grad for name, p in objective.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert peaks[1] < 0.8 * peaks[0]


def one_step(tmp_path, **changes):
    objective, batch_at, *_ = tiny("janus")
    settings = {"steps": 1, "lr": 1e-3, "warmup": 1, "precision": "no", "ema": 0.0, "clip": 1e6}
    train(objective, batch_at, LoopSettings(**{**settings, **changes}), tmp_path)
    return dict(objective.named_parameters())


def test_steps_in_the_backward_pass_are_adamws(tmp_path):
    usual = one_step(tmp_path / "a")
    for (name, a), b in zip(usual.items(), one_step(tmp_path / "b", step_in_backward=True).values()):
        torch.testing.assert_close(a, b, msg=name)


def test_8_bit_adamw_is_close_to_32_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    usual, start = one_step(tmp_path / "a"), dict(tiny("janus")[0].named_parameters())
    eight = one_step(tmp_path / "b", optimizer="adamw8bit", step_in_backward=True)
    moved = torch.cat([(usual[name] - start[name]).flatten() for name in usual]).detach()
    difference = torch.cat([(usual[name] - eight[name]).flatten() for name in usual]).detach()
    assert moved.norm() > 0 and difference.norm() < 0.05 * moved.norm()


def test_a_stopped_run_with_all_savings_resumes_to_the_same_weights(tmp_path):
    pytest.importorskip("bitsandbytes")
    options = {"optimizer": "adamw8bit", "step_in_backward": True, "ema": 0.9, "ema_warmup": True, "ema_device": "cpu"}
    settings = LoopSettings(steps=6, lr=1e-3, warmup=2, precision="no", workers=2, **options)
    whole, batch_at, *_ = tiny("janus")
    train(whole, batch_at, settings, tmp_path / "whole")
    stopped, batch_at, *_ = tiny("janus")
    train(stopped, batch_at, settings, tmp_path / "parts", stop_at=4)
    resumed, batch_at, *_ = tiny("janus")
    train(resumed, batch_at, settings, tmp_path / "parts")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b, msg=name)


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(TrainingError, match="pip install bitsandbytes"):
        one_step(tmp_path, optimizer="adamw8bit")


def test_accumulated_gradients_cannot_be_freed():
    with pytest.raises(TrainingError, match="set accumulate to 1"):
        LoopSettings(steps=1, accumulate=2, step_in_backward=True)


def test_the_ema_warms_up():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, 0.99, warmup=True)
    torch.nn.init.constant_(model.weight, 1.0)
    expected = 0.0
    for n in range(1, 6):
        ema.update(model)
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay)
        assert ema.weights["weight"].item() == pytest.approx(expected)
    constant = EMA(torch.nn.Linear(1, 1), 0.99)
    assert not constant.warmup and not EMA(model, 0.0).weights


def test_a_lora_has_no_ema_unless_the_config_names_one():
    assert loop_settings({**CONFIG, "lora": LORA}).ema == 0
    assert loop_settings({**CONFIG, "stage": 3}).ema == 0.99 and loop_settings({**CONFIG, "stage": 3}).ema_warmup
    assert loop_settings({**CONFIG, "lora": LORA, "loop": {"steps": 1, "ema": 0.9}}).ema == 0.9


@pytest.mark.parametrize(
    ("name", "changes", "limit"),
    [
        ("janus-pro-1b", {"lora": LORA}, 12),
        ("janus-pro-1b", {"stage": 3, "loop": {"optimizer": "adamw8bit", "step_in_backward": True, "ema": 0.0}}, 24),
        ("janus-pro-7b", {"lora": LORA}, 24),
        ("janus-pro-7b", {"lora": {**LORA, "base": "nf4"}}, 12),
    ],
)
def test_the_official_models_fit_their_cards(name, changes, limit):
    config = {**CONFIG, "checkpoint": name, **changes}
    config["loop"] = {"steps": 1, **config["loop"]}
    estimate = estimate_memory(config)
    assert 0.4 * limit * GB < estimate.total < limit * GB, estimate.table()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {**LORA, "rank": 4}},
        {"lora": {**LORA, "rank": 4}, "gradient_checkpointing": True},
        {"lora": {**LORA, "rank": 4, "base": "nf4"}, "gradient_checkpointing": True},
        {"stage": 3},
        {"stage": 3, "gradient_checkpointing": True, "loop": {"step_in_backward": True}},
    ],
)
def test_the_estimate_is_what_a_step_allocates(family, changes, tmp_path):
    """Compared with the allocations that torch's profiler sees in a real step on the CPU."""
    pytest.importorskip("peft")
    checkpoint = tiny(family)[2]
    save_folder(checkpoint, tmp_path, torch.bfloat16)
    config = {**CONFIG, "checkpoint": str(tmp_path), "caption_tokens": 10, **changes}
    config["loop"] = {"steps": 1, "precision": "no" if "stage" in changes else "bf16", **config["loop"]}
    estimate = estimate_memory(config)

    model = trained_model.build_trained_model(read_checkpoint(tmp_path), config)
    values = trained_model.objective_settings(config, {})
    module = trained_model.make_objective(model, values, "examples").train()
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert estimate.parts["frozen weights"] + estimate.parts["trained weights, float32"] == weights
    batch = fake_batch(model, rows_of(config), (10, 10), bool(values["repa"]))
    if config["loop"].get("step_in_backward"):
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.autocast("cpu", torch.bfloat16, config["loop"]["precision"] == "bf16", cache_enabled=False):
            total = module.total(module(batch), batch)
        total.backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    measured = max(accumulate(sizes))
    assert estimate.parts["gradients"] + estimate.parts["activations"] == pytest.approx(measured, rel=0.1)


def test_what_does_not_fit_is_refused():
    estimate = Estimate({"frozen weights": 3 * GB, "activations": GB}, "title")
    estimate.check(4)
    with pytest.raises(TrainingError, match="needs about 4.0 GB, more than 3.5"):
        estimate.check(3.5)
    assert "4.00 GB" in estimate.table()


def test_the_estimate_on_the_command_line(tmp_path, capsys):
    save_folder(tiny("janus")[2], tmp_path / "base", torch.float32)
    config = {**CONFIG, "checkpoint": str(tmp_path / "base"), "stage": 3, "folder": str(tmp_path / "out")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["train", "--config", str(tmp_path / "config.json"), "--estimate", "--set", "caption_tokens=20"]
    assert cli.main([*arguments, "--memory", "2"]) == 0
    assert "texts of up to 20 tokens" in capsys.readouterr().out
    assert cli.main([*arguments, "--memory", "0.5"]) == 1
    assert "This config needs about 1.0 GB, more than 0.5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
