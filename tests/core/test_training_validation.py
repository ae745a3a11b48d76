"""What a run shows: validation images and answers, TensorBoard, the curve; and samples where the model trains."""

import json
from functools import partial

import pytest
import torch
from core.training_models import FAMILIES, tiny, tiny_recipe
from PIL import Image

from demo.recipe import train_autoencoders, train_models
from janus_core.errors import ImageError, TrainingError
from janus_core.pipeline import JanusFlowPipeline, JanusPipeline
from janus_core.prompt import PromptEncoder
from janus_core.training.curves import losses_of, plot_losses
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings
from janus_core.training.validation import Validation, image_grid, pipeline_of

SETTINGS = {"steps": 4, "lr": 1e-3, "warmup": 1, "precision": "no", "log_every": 2, "sample_every": 2}


def test_validation_writes_images_and_answers(tmp_path):
    objective, batch_at, checkpoint, vq = tiny("janus")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    asked = {"image": str(tmp_path / "red.png"), "question": "What colour is it?"}
    settings = {"prompts": ["a red circle", "a blue square"], "questions": [asked], "seed": 3, "guidance": 2.0}
    prompts = PromptEncoder.of(checkpoint)
    validate = Validation(objective.model, prompts, vq.eval(), settings, tmp_path / "validation")
    train(objective, batch_at, LoopSettings(**SETTINGS), tmp_path / "run", validate=validate)
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == [
        *("000002.png", "000002.txt", "000004.png", "000004.txt")
    ]
    with Image.open(tmp_path / "validation" / "000004.png") as image:
        assert image.size == (2 * 128 + 2, 128)
    assert (tmp_path / "validation" / "000002.txt").read_text().startswith("What colour is it?\n")
    with pytest.raises(ImageError, match=r"no file .*nowhere.png"):
        Validation(objective.model, prompts, vq, {"questions": [{**asked, "image": "nowhere.png"}]}, tmp_path)


def test_validation_does_not_change_the_run(tmp_path):
    ends = []
    for validate in (None, lambda done: torch.randn(done)):
        objective, batch_at, *_ = tiny("janusflow")
        train(objective, batch_at, LoopSettings(**SETTINGS), tmp_path / str(len(ends)), validate=validate)
        ends.append(objective.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_made_where_the_model_is(family):
    """The meta device stands in for a GPU."""
    objective, _, checkpoint, vq = tiny(family)
    prompts = PromptEncoder.of(checkpoint)
    vae = torch.nn.Linear(1, 1)
    pipe = pipeline_of(objective.model.to("meta"), prompts, vae if vq is None else vq)
    assert pipe.device.type == "meta"
    branches = pipe.encode_prompt("a red circle")
    assert all(getattr(branch, "embeds", branch).device.type == "meta" for branch in branches)
    assert {p.device.type for p in (vae if vq is None else vq).parameters()} == {"meta"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipes_samples_are_made_where_the_model_is(family, tmp_path, monkeypatch):
    """The model is on the CPU when the recipe is set up, and elsewhere once it trains."""
    devices = []

    def generate(pipe, prompt, **settings):
        devices.append(pipe.device.type)
        return [Image.new("RGB", (8, 8))]

    def moved(objective, batch_at, settings, folder, sample):
        objective.to("meta")
        sample(tmp_path / "grid.png")
        raise KeyboardInterrupt  # nothing more to see

    monkeypatch.setattr(JanusPipeline, "__call__", generate)
    monkeypatch.setattr(JanusFlowPipeline, "__call__", generate)
    _, config = tiny_recipe(monkeypatch, family, moved)
    with pytest.raises(KeyboardInterrupt):
        train_models.train_model(config, tmp_path)
    assert devices and set(devices) == {"meta"}


def test_the_autoencoders_samples_are_made_where_they_are(tmp_path, monkeypatch):
    """Layers on the meta device, which stands in for a GPU, get nothing that is still on the CPU."""
    seen = []

    def watch(module, inputs):
        seen.extend(x.device.type for x in inputs if isinstance(x, torch.Tensor))

    def moved(objective, batch_at, settings, folder, sample):
        objective.to("meta")
        for module in objective.modules():
            module.register_forward_pre_hook(watch)
        monkeypatch.setattr(torch.Tensor, "cpu", lambda x: torch.zeros(x.shape) if x.is_meta else x)
        sample(tmp_path / "grid.png")

    monkeypatch.setattr(train_autoencoders, "train", moved)
    monkeypatch.setattr(train_autoencoders, "save_file", lambda *args, **kwargs: None)
    monkeypatch.setattr(train_autoencoders, "taesd_tensors", lambda vae: {})
    config = {"seed": 0, "phases": [{"size": 64, "batch": 2, "steps": 1, "textures": 0.5}], "loop": {"lr": 1e-3}}
    train_autoencoders.train_vae(config, tmp_path)
    assert seen and set(seen) == {"meta"}


def test_losses_and_learning_rate_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    objective, batch_at, *_ = tiny("janus")
    train(objective, batch_at, LoopSettings(**SETTINGS, tensorboard=True), tmp_path)
    (events,) = tmp_path.rglob("events.out.*")
    found = EventAccumulator(str(events))
    found.Reload()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    values = {entry.step: entry.value for entry in found.Scalars("generation")}
    assert values == pytest.approx({entry["step"]: entry["generation"] for entry in log}, abs=1e-4)
    assert [entry.value for entry in found.Scalars("learning rate")] == pytest.approx([1e-3, 1e-3])


def test_a_missing_tensorboard_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("janus_core.training.loop.is_tensorboard_available", lambda: False)
    objective, batch_at, *_ = tiny("janus")
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        train(objective, batch_at, LoopSettings(**SETTINGS, tensorboard=True), tmp_path)


def test_curves_fall_where_the_losses_do():
    log = [{"step": 10 * k, "seconds": 1, "generation": 10.0 ** (2 - k), "alignment": -0.5} for k in (1, 2, 3)]
    losses = losses_of(log)
    assert losses == {"generation": ([10, 20, 30], [10.0, 1.0, 0.1]), "alignment + 1": ([10, 20, 30], [0.5] * 3)}
    pixels = plot_losses({"run": losses, "empty": {}})
    generation = (0x1F, 0x77, 0xB4)
    rows = {x: [y for y in range(60, pixels.height) if pixels.getpixel((x, y)) == generation] for x in (250, 400)}
    assert min(rows[400]) > max(rows[250]), "lower at the end"


def test_a_grid_has_no_empty_columns():
    assert image_grid([Image.new("RGB", (8, 6))] * 2, 4).size == (18, 6)
    assert image_grid([Image.new("RGB", (8, 6))] * 5, 4).size == (38, 14)


def test_partial_settings_are_named():
    with pytest.raises(TrainingError, match="tensorboard"):
        partial(LoopSettings, steps=1)(tensorboard="yes")
