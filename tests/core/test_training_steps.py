"""Training both families: losses fall, stages freeze weights, runs resume, rows agree with sampling."""

import random

import pytest
import torch
from core.training_models import FAMILIES, tiny

from janus_core.checkpoint.files import read_pickle
from janus_core.errors import CheckpointError
from janus_core.prompt import PromptEncoder
from janus_core.sampling import flow
from janus_core.training import batches, stages
from janus_core.training.ema import EMA
from janus_core.training.loop import train
from janus_core.training.optimizers import learning_rate
from janus_core.training.settings import LoopSettings
from janus_core.training.unified import IGNORED

SETTINGS = LoopSettings(steps=50, lr=3e-3, warmup=5, precision="no", log_every=10, save_every=20)


@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_steps_lower_every_loss(family, tmp_path):
    objective, batch_at, *_ = tiny(family)
    log = train(objective, batch_at, SETTINGS, tmp_path)
    assert [entry["step"] for entry in log] == [10, 20, 30, 40, 50]
    names = {"understanding", "text", "generation"} | ({"alignment"} if family == "janusflow" else set())
    for name in names:
        assert log[-1][name] < log[0][name], name


def test_a_run_with_a_long_log_resumes(tmp_path):
    """The log is in the state's pickle, which may be larger than that of a checkpoint."""
    objective, batch_at, *_ = tiny("janus")
    settings = LoopSettings(steps=2, lr=1e-3, warmup=1, precision="no", log_every=1, save_every=2)
    train(objective, batch_at, settings, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["log"] = [{"step": k, "seconds": 0.5 * k, "generation": 1 / k} for k in range(1, 150_001)]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="not loaded for safety"):
        read_pickle(tmp_path / "state.pt")
    assert train(objective, batch_at, settings, tmp_path) == state["log"]


def test_a_run_that_stops_between_export_and_state_exports_again(tmp_path):
    """Its state is of the save before, so no export is lost."""
    objective, batch_at, *_ = tiny("janus")
    settings = LoopSettings(steps=3, lr=1e-3, warmup=1, precision="no", save_every=1)
    exported = []

    def stops(done):
        exported.append(done)
        if exported == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(objective, batch_at, settings, tmp_path, export=stops)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 1
    train(tiny("janus")[0], batch_at, settings, tmp_path, export=stops)
    assert exported == [1, 2, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_run_resumes_to_the_same_weights(family, tmp_path):
    settings = LoopSettings(steps=6, lr=1e-3, warmup=2, accumulate=2, precision="no", log_every=2, save_every=4)
    whole, batch_at, *_ = tiny(family)
    log = train(whole, batch_at, settings, tmp_path / "whole")
    stopped, batch_at, *_ = tiny(family)
    train(stopped, batch_at, settings, tmp_path / "parts", stop_at=3)
    resumed, batch_at, *_ = tiny(family)
    torch.manual_seed(99)
    log_resumed = train(resumed, batch_at, settings, tmp_path / "parts")
    assert log_resumed[-1]["generation"] == pytest.approx(log[-1]["generation"], abs=1e-5)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", (1, 2, 3))
def test_a_stage_trains_all_weights_but_the_frozen(family, stage, tmp_path):
    objective, batch_at, *_ = tiny(family)
    stages.freeze(objective.model, stage)
    before = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    settings = LoopSettings(steps=3, lr=1e-2, warmup=1, precision="no", ema=0.0)
    train(objective, batch_at, settings, tmp_path)
    encoder = stages.ENCODERS[family]
    frozen = {1: ("language_model.", encoder), 2: (encoder,), 3: ()}[stage]
    for name, p in objective.model.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved != name.startswith(frozen), name


def test_alignment_gives_the_understanding_encoder_no_gradient():
    objective, batch_at, *_ = tiny("janusflow")
    batch = {name: value for name, value in batch_at(0).items() if name.startswith("gen_")}
    objective(batch)["alignment"].backward()
    assert all(p.grad is None for p in objective.model.vision_und_enc_model.parameters())
    assert all(p.grad is not None for p in objective.repa_head.parameters())
    early, late = objective.model.llama.layers[0], objective.model.llama.layers[1]
    assert early.mlp.up_proj.weight.grad.abs().sum() > 0, "REPA reads the first of four blocks"
    assert late.mlp.up_proj.weight.grad is None


def test_a_step_is_adamw_on_the_clipped_mean_gradient(tmp_path):
    objective, batch_at, *_ = tiny("janus")
    other, *_ = tiny("janus")
    settings = LoopSettings(steps=1, lr=1e-3, warmup=1, weight_decay=10.0, accumulate=2, precision="no", ema=0.0)
    train(objective, batch_at, settings, tmp_path)
    optimizer = torch.optim.AdamW(other.parameters(), 1e-3, (0.9, 0.95), weight_decay=10.0)
    for index in (0, 1):
        (sum(other(batch_at(index)).values()) / 2).backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    optimizer.step()
    for (name, a), b in zip(objective.named_parameters(), other.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_learning_rate_warms_up_and_decays():
    settings = LoopSettings(steps=100, lr=1.0, warmup=10, decay=0.5)
    rates = [learning_rate(settings, step) for step in (0, 4, 9, 30, 50, 75, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.02])


def test_ema_follows_the_weights_and_swaps():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, 0.9)
    torch.nn.init.constant_(model.weight, 1.0)
    ema.update(model)
    ema.swap(model)
    assert model.weight.item() == pytest.approx(0.1)
    ema.swap(model)
    assert model.weight.item() == 1.0


def test_a_ratio_splits_the_rows():
    assert batches.split_rows(64, (25, 70, 5)) == (16, 45, 3)
    assert batches.split_rows(8, (50, 50, 0)) == (4, 4, 0)
    assert sum(batches.split_rows(10, (14, 80, 6))) == 10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tenth_of_the_generation_rows_is_samplings_unconditional_row(family):
    *_, checkpoint, _ = tiny(family)
    prompts = PromptEncoder.of(checkpoint)
    captions = ["a red circle", "a blue square"] * 200
    rows = batches.generation_rows(prompts, captions, torch.zeros(400, 4), 4, random.Random(0))
    cond, uncond = prompts.guidance_rows("a red circle")
    length = len(cond.ids)
    ids, visible = rows["gen_ids"][:, :length], rows["gen_visible"][:, :length]
    dropped = rows["gen_smoothing"] == 1
    assert 20 <= dropped.sum() <= 60, "a tenth of 400"
    assert (ids[dropped] == uncond.ids).all() and (visible[dropped] == uncond.visible).all()
    assert (ids[~dropped][:, -1] == cond.ids[-1]).all() and visible[~dropped].all()
    places = rows["gen_is_image"].sum(1)
    assert (places == (5 if family == "janusflow" else 4)).all(), "JanusFlow's time embedding precedes the image"
    assert rows["gen_visible"][rows["gen_is_image"]].all()


def test_training_and_sampling_compute_the_same_velocity():
    """The loss of padded training rows equals that of the sampler's cached velocity."""
    objective, batch_at, checkpoint, _ = tiny("janusflow", repa=0.0)
    model = objective.model.eval()
    torch.nn.init.normal_(model.vision_gen_dec_model.out_convs[-1].unpatch_conv.weight, std=0.1)
    batch = {name: value for name, value in batch_at(0).items() if name.startswith("gen_")}
    torch.manual_seed(5)
    loss = objective(batch)["generation"]
    torch.manual_seed(5)
    x = batch["gen_latents"]
    z_0 = torch.randn_like(x)
    t = torch.randn(len(x)).sigmoid()
    z_t = t[:, None, None, None] * x + (1 - t[:, None, None, None]) * z_0
    errors = []
    for k in range(len(x)):
        length = int(batch["gen_is_image"][k].nonzero()[0])
        embeds = model.embed_text(batch["gen_ids"][k, :length], torch.float32)[None]
        prompt = flow.PromptEmbeds(embeds, batch["gen_visible"][k : k + 1, :length])
        encoded = model.encode_prompt(prompt.embeds, prompt.visible, 64)
        v = model.velocity(z_t[k : k + 1], 1000 * t[k : k + 1], encoded)
        errors.append((v - (x - z_0)[k : k + 1]).square().mean())
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_answer_rows_have_labels_for_answers_and_end_of_sentence():
    *_, checkpoint, _ = tiny("janus")
    prompts = PromptEncoder.of(checkpoint)
    asked = [[("What colour is it?", "red"), ("Where is it?", "at the left")], [("What shape is it?", "circle")]]
    rows = batches.answer_rows(prompts, asked, 16)
    for row, pairs in enumerate(asked):
        for number, (_, answer) in enumerate(pairs, start=1):
            own = rows["und_segments"][row] == number
            labels, ids = rows["und_labels"][row, own], rows["und_ids"][row, own]
            learnt = labels[labels != IGNORED]
            assert learnt[-1] == prompts.eos and prompts.decode(learnt).strip() == answer
            assert torch.equal(ids[labels != IGNORED], learnt)
    assert rows["und_is_image"].sum(1).tolist() == [16, 16]


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_one_row_have_the_loss_of_separate_rows(family):
    objective, _, checkpoint, _ = tiny(family)
    prompts = PromptEncoder.of(checkpoint)
    pairs = [("What colour is it?", "red"), ("Where is the circle?", "at the left"), ("What shape is it?", "circle")]
    pixels = torch.rand(1, 3, 128, 128)
    together = batches.answer_rows(prompts, [pairs], 64)
    alone = batches.answer_rows(prompts, [[pair] for pair in pairs], 64)
    one = objective.understanding({**together, "und_pixels": pixels})
    each = objective.understanding({**alone, "und_pixels": pixels.expand(3, -1, -1, -1)})
    assert one.item() == pytest.approx(each.item(), rel=1e-5)
