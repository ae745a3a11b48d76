"""The toy tasks: edits, plans and checks are right, held-out texts, rows as the recipes ask for them, training."""

import random
from dataclasses import replace

import pytest
import torch
from core.training_models import tiny

from demo.recipe import captions, flow_objective, plans, task_bars, tasks, train_tasks, words
from demo.recipe.judge import compare
from demo.recipe.scene_data import FRAGMENT, WHOLE, mixed_scene
from demo.recipe.scenes import render
from demo.recipe.task_data import ENCODED, SEEN, TARGET, TEXT, TaskBatches
from janus_core.finetunes.boxes import boxes_of
from janus_core.finetunes.edit import edit_prompt
from janus_core.finetunes.generation_prompt import Embedder
from janus_core.finetunes.think import RECIPES
from janus_core.prompt import PromptEncoder
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings
from janus_core.training.unified import IGNORED


def edits(count, test=False):
    rng = random.Random(0)
    sources = [tasks.distinct_scene(rng) for _ in range(count)]
    return [(scene, tasks.edit_of(scene, rng, test)) for scene in sources]


@pytest.mark.parametrize("test", (False, True))
def test_an_edit_changes_one_attribute(test):
    seen = set()
    for scene, edit in edits(600, test):
        seen.add(edit.kind)
        target = edit.target
        assert not target.held_out and target != scene
        if edit.kind == "background":
            assert target.background != scene.background and target.objects == scene.objects
            continue
        assert target.background == scene.background
        if edit.kind in ("remove", "add"):
            fewer, more = sorted((scene.objects, target.objects), key=len)
            assert len(more) == len(fewer) + 1 and set(fewer) <= set(more)
            continue
        before, after = scene.objects[edit.changed], target.objects[edit.changed]
        fields = {"colour": ["colour"], "shape": ["shape"], "size": ["size"], "move": ["x", "y"]}[edit.kind]
        assert before != after
        assert replace(before, **{name: getattr(after, name) for name in fields}) == after
    assert seen == set(tasks.EDITS) == set(tasks.EDITS_TEST)


def test_a_target_is_a_scene_of_the_task():
    for _, edit in edits(300):
        target = edit.target
        assert (target.place is None) == (len(target.objects) != 1)
        assert (target.relation is None) == (len(target.objects) != 2)


def test_instructions_of_the_test_are_held_out():
    assert all(not set(tasks.EDITS[kind]) & set(tasks.EDITS_TEST[kind]) for kind in tasks.EDITS)


def test_an_edit_is_scored_by_what_was_asked_and_by_the_rest():
    for scene, edit in edits(200):
        assert task_bars.edited(compare(render(edit.target), edit.target), edit) == (True, True)
        asked, _ = task_bars.edited(compare(render(scene), edit.target), edit)
        assert not asked, (scene, edit)
        background = next(c for c in words.COLOUR_WORDS if c not in str(edit.target) and c != scene.background)
        if edit.kind != "background":
            other = replace(edit.target, background=background)
            assert task_bars.edited(compare(render(other), edit.target), edit)[1] is False


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_says_all_of_a_scene(recipe):
    rng = random.Random(1)
    for _ in range(100):
        scene = mixed_scene(rng)
        plan = plans.plan_of(scene, recipe)
        assert scene.background in plan and all(f"{o.size} {o.name}" in plan for o in scene.objects)
        if recipe == "got-r1":
            boxes = boxes_of(plan, 128)
            assert [box["label"] for box in boxes] == [f"{o.size} {o.name}" for o in scene.objects]
            for box, o in zip(boxes, scene.objects):
                assert abs(box["x"] + box["width"] / 2 - o.x) < 0.2


def test_a_check_says_no_only_to_what_the_prompt_says():
    rng = random.Random(2)
    found = [tasks.check_of(mixed_scene(rng), rng) for _ in range(1000)]
    assert 0.35 < sum(check.matches for check in found) / len(found) < 0.65
    assert all(check.matches or check.shown != check.asked for check in found)
    assert any(check.matches and check.shown != check.asked for check in found), "what is not said may differ"
    scene = next(check.asked for check in found if len(check.asked.objects) == 1)
    says = captions.Caption("", True, True, (True,), (True,), (True,))
    other = replace(scene, background=next(c for c in words.COLOUR_WORDS if c != scene.background))
    assert tasks.difference(says, scene, other) == f", the background is {other.background}."
    assert tasks.difference(replace(says, background=False), scene, other) == ""


@pytest.fixture(scope="module")
def setup():
    objective, _, checkpoint, _ = tiny("janus")
    prompts = PromptEncoder.of(checkpoint)
    embedder = Embedder(objective.model, prompts, torch.device("cpu"), torch.float32)

    def encode(pixels):
        return torch.arange(64).expand(len(pixels), -1) % 16

    return embedder, encode


def test_an_edits_row_is_the_prompt_of_inference(setup):
    embedder, encode = setup
    batches = TaskBatches(embedder, encode, 64, 64, 1, (1, 0, 0, 0), 0)
    rng = random.Random(3)
    for _ in range(30):
        state = rng.getstate()
        row = batches.edit(rng)
        kinds, ids = torch.cat(row.kinds), torch.cat(row.ids)
        if SEEN in kinds and ENCODED in kinds:
            break
    rng.setstate(state)
    scene = tasks.distinct_scene(rng)
    edit = tasks.edit_of(scene, rng)
    prompt = edit_prompt(embedder, render(scene), encode(torch.zeros(1))[0], edit.instruction)
    assert row.images == [scene] and row.tokens == [scene, edit.target]
    assert torch.equal(ids[kinds != TARGET][kinds[kinds != TARGET] == TEXT], prompt.tokens.ids[kinds[:-64] == TEXT])
    objective = train_tasks.TaskObjective(embedder.model, 0.0)
    assert (kinds == TARGET).sum() == 64 and len(ids) == len(prompt.tokens.ids) + 64
    assert objective(batches(0))["generation"].isfinite()


def test_a_check_learns_yes_or_no_and_a_redraw_hides_the_end_of_the_answer(setup):
    embedder, encode = setup
    batches = TaskBatches(embedder, encode, 64, 64, 1, (0, 0, 1, 0), 0)
    rng, prompts, kinds_of_rows = random.Random(4), embedder.prompts, set()
    for _ in range(20):
        row = batches.check(rng)
        kinds, labels, visible = (torch.cat(part) for part in (row.kinds, row.labels, row.visible))
        learnt = labels[labels != IGNORED]
        if TARGET in kinds:
            assert len(learnt) == 0 and (~visible).sum() == 1
        else:
            assert prompts.decode(learnt[:1]) in ("yes", "no") and learnt[-1] == prompts.eos and visible.all()
        kinds_of_rows.add(TARGET in kinds)
    assert kinds_of_rows == {True, False}


def test_rows_without_a_prompt_are_smoothed_most(setup):
    embedder, encode = setup
    batches = TaskBatches(embedder, encode, 64, 64, 200, (1, 0, 0, 0), 0)
    batch = batches(0)
    has_prompt = (batch["task_kinds"] == SEEN).any(1)
    assert 0.03 < (~has_prompt).float().mean() < 0.2
    assert batch["task_smoothing"].tolist() == pytest.approx([WHOLE if one else 1.0 for one in has_prompt])
    batches = TaskBatches(embedder, encode, 64, 64, 200, (0, 1, 1, 1), 0)
    shares = batches(0)["task_smoothing"]
    assert {round(share, 4) for share in shares.tolist()} == {WHOLE, FRAGMENT, 1.0}


def test_each_rows_image_is_smoothed_by_its_share(setup):
    embedder, encode = setup
    batch = TaskBatches(embedder, encode, 64, 64, 4, (1, 0, 0, 0), 0)(0)

    def loss(smoothing, shares):
        objective = train_tasks.TaskObjective(embedder.model, smoothing)
        return objective({**batch, "task_smoothing": torch.tensor(shares)})["generation"].item()

    none, whole = loss(0.0, [1.0] * 4), loss(1.0, [1.0] * 4)
    each = [loss(1.0, [float(k == row) for k in range(4)]) - none for row in range(4)]
    assert sum(each) == pytest.approx(whole - none, rel=1e-3) and len(set(each)) == 4


def test_the_losses_of_a_lora_fall(setup, tmp_path):
    pytest.importorskip("peft")
    embedder, encode = setup
    model = tiny("janus")[0].model
    train_tasks.add_lora(model, 4, 4, train_tasks.LAYERS)
    batches = TaskBatches(embedder, encode, 64, 64, 6, (2, 2, 2, 1), 0)
    batch = batches(0)
    settings = LoopSettings(steps=30, lr=1e-2, warmup=2, precision="no", log_every=10, ema=0.0)
    log = train(train_tasks.TaskObjective(model, 0.01), lambda index: batch, settings, tmp_path)
    assert all(log[-1][name] < log[0][name] for name in ("text", "generation"))


def test_the_flows_paths_end_at_the_image_and_late_rows_are_late():
    objective, batch_at, *_ = tiny("janusflow")
    demo = flow_objective.DemoFlowObjective(objective.model, "examples", 1.0, -0.8, overshoot=3.0)
    batch = batch_at(0)
    batch["gen_late"] = torch.arange(len(batch["gen_latents"])) % 2 == 0
    torch.manual_seed(0)
    paths = [demo.path(batch) for _ in range(50)]
    times = torch.stack([t for _, _, t in paths])
    assert times[:, batch["gen_late"]].min() >= flow_objective.LATE > times[:, ~batch["gen_late"]].min()
    noise = torch.stack([z_0 for _, z_0, _ in paths])
    assert 1.0 < noise.std() < 1.3 and all(x is batch["gen_latents"] for x, _, _ in paths)
    losses = demo(batch)
    assert all(value.isfinite() for value in losses.values()) and {"generation", "alignment"} <= set(losses)
