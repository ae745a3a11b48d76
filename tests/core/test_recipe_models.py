"""New models of the recipe: initial weights, starting from another checkpoint, fixed image tokens, averaging."""

import dataclasses

import pytest
import torch
from core.training_models import FAMILIES, tiny, tiny_recipe

from demo.recipe import __main__, new_models, train_models
from janus_core import loading
from janus_core.checkpoint import read_checkpoint, save_folder
from janus_core.errors import CheckpointError
from janus_core.training import stages
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_takes_language_model_and_encoder_from_the_other_family(family):
    other = tiny("janus" if family == "janusflow" else "janusflow")[2]
    model = tiny(family)[0].model
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    new_models.start_from(model, other)
    taken = {name for name, p in model.named_parameters() if p.any()}
    others = {name for name, p in model.named_parameters() if name not in taken}
    assert all(name.startswith(("language_model.", stages.ENCODERS[family])) for name in taken)
    assert not any(name.startswith("language_model.") and "norm" not in name for name in others)
    torch.testing.assert_close(
        model.llama.layers[1].mlp.up_proj.weight, other.tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_takes_all_weights_from_its_own_family(family):
    model, other = tiny(family)[0].model, tiny(family)[2]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    new_models.start_from(model, other)
    assert all(torch.equal(p, other.tensors[name]) for name, p in model.named_parameters())


def test_a_start_of_another_shape_is_refused():
    model, other = tiny("janusflow")[0].model, tiny("janus")[2]
    name = "language_model.model.norm.weight"
    wrong = dataclasses.replace(other, tensors={**other.tensors, name: torch.ones(7)})
    with pytest.raises(CheckpointError, match=name):
        new_models.start_from(model, wrong)


def test_fixed_image_tokens_are_distinct_and_not_trained(tmp_path):
    objective, batch_at, *_ = tiny("janus", codes=64)
    model = objective.model
    patches = torch.randint(0, 64, (64, 16 * 16 * 3))
    new_models.fix_image_tokens(model, patches[:40], patches[40:], scale=8.0)
    rows = model.gen_head.vision_head.weight
    torch.testing.assert_close(rows.norm(dim=1), torch.full((64,), 8.0))
    assert ((rows @ rows.T).argmax(1) == torch.arange(64)).all()
    embeds = model.gen_embed.weight
    torch.testing.assert_close(embeds @ embeds.T / 32, rows @ rows.T / 8**2, atol=1e-4, rtol=0)
    for p in new_models.image_token_weights(model):
        p.requires_grad_(False)
    before = [p.clone() for p in new_models.image_token_weights(model)]
    train(objective, batch_at, LoopSettings(steps=2, lr=1e-2, warmup=1, precision="no"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, new_models.image_token_weights(model)))


def test_a_stage_starts_where_the_one_before_it_ends(tmp_path, monkeypatch):
    """Every stage adds one to each weight, beginning with 0."""
    starts = []

    def add_one(objective, batch_at, settings, folder, sample):
        starts.append(next(objective.parameters()).flatten()[0].item())
        for p in objective.parameters():
            p.data.add_(1)

    stage = {"stage": 3, "rows": 4, "steps": 1}
    model, config = tiny_recipe(monkeypatch, "janus", add_one, stages=[stage, stage, stage])
    for p in model.parameters():
        p.data.zero_()
    train_models.train_model(config, tmp_path)
    assert starts == [0, 1, 2]
    assert next(model.parameters()).flatten()[0] == 3, "the last stage's end is what is written"


def test_a_stage_of_the_flow_has_its_own_times_and_overshoot(tmp_path, monkeypatch):
    seen = []

    def look(objective, batch_at, settings, folder, sample):
        seen.append((objective.time_mean, objective.overshoot, batch_at.late))

    stage = {"stage": 3, "rows": 4, "steps": 1}
    stages = [stage, stage | {"time_mean": -2.0, "overshoot": 0.0, "late": 0.0}, stage]
    settings = {"time_mean": -0.8, "overshoot": 4.0, "late": 0.1, "stages": stages}
    _, config = tiny_recipe(monkeypatch, "janusflow", look, **settings)
    train_models.train_model(config, tmp_path)
    assert seen == [(-0.8, 4.0, 0.1), (-2.0, 0.0, 0.0), (-0.8, 4.0, 0.1)]


def test_blocks_are_compiled_if_the_config_says_so(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **settings: compiled.append(module))
    model, config = tiny_recipe(monkeypatch, "janusflow", lambda *args, **kwargs: None)
    train_models.train_model(config, tmp_path)
    assert compiled == []
    train_models.train_model(config | {"compile": True}, tmp_path)
    assert compiled == list(model.llama.layers)


def test_without_an_autoencoder_a_model_learns_from_text_alone(tmp_path, monkeypatch):
    batches = []

    def look(objective, batch_at, settings, folder, sample):
        batches.append(batch_at(0))
        assert sample is None

    stages = [{"stage": 2, "rows": 4, "ratio": [0, 0, 1], "steps": 1}]
    _, config = tiny_recipe(monkeypatch, "janusflow", look, scenes=0, stages=stages)
    del config["autoencoder"]
    train_models.train_model(config, tmp_path)
    assert set(batches[0]) == {"text_ids", "text_labels", "text_learnt"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_is_a_loadable_checkpoint(family, tmp_path):
    objective, _, checkpoint, vq = tiny(family)
    save_folder(checkpoint, tmp_path / "folder", torch.float32)
    loaded = read_checkpoint(tmp_path / "folder")
    assert loaded.family == family
    pipe = loading.load(tmp_path / "folder", device="cpu")
    assert pipe.model.params == objective.model.params
    for (name, a), b in zip(objective.model.named_parameters(), pipe.model.parameters()):
        assert torch.equal(a, b), name


def test_a_config_of_another_task_is_one_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"task": "finetune", "folder": "out"}')
    assert __main__.main([str(tmp_path / "config.json"), "--folder", str(tmp_path)]) == 1
    assert "not a config of the recipe" in capsys.readouterr().err
    assert __main__.main([str(tmp_path / "config.json"), "--set", "scnes=3"]) == 1
    assert "no setting 'scnes'" in capsys.readouterr().err


def test_principal_components_are_those_of_the_covariance():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 60, generator=generator) * torch.linspace(3, 0.1, 60) ** 2
    found = new_models._components(features, 5)
    values = torch.linalg.eigvalsh(torch.cov(features.T)).flip(0)[:5]
    torch.testing.assert_close(found.var(0), values.sqrt(), rtol=1e-2, atol=0)
    torch.testing.assert_close(torch.corrcoef(found.T), torch.eye(5), rtol=0, atol=1e-3)
