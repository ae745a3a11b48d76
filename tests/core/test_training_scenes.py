"""The demo task: its split, captions and questions; the pixel judge on ground truth and on wrong pictures; the VAE."""

import random
from dataclasses import replace

import pytest
import torch

from janus_core.prompt import SYSTEM_PROMPT
from janus_core.training import autoencoders, scene_data, scenes
from janus_core.training.judge import judge, look
from janus_core.training.tokenizer import build_tokenizer


def all_right(verdict):
    return verdict.background and all(verdict.colours) and all(verdict.shapes) and verdict.relation


def test_the_judge_is_right_on_ground_truth():
    rng = random.Random(1)
    drawn = [scenes.random_scene(rng, held_out=None) for _ in range(1000)]
    right = [all_right(judge(scenes.draw(scene), scene)) for scene in drawn]
    assert sum(right) >= 990


def test_the_judge_sees_what_is_wrong():
    rng = random.Random(2)
    for _ in range(200):
        scene = scenes.random_scene(rng, two=True)
        picture, (a, b) = scenes.draw(scene), scene.things
        background = next(c for c in scenes.COLOURS if c not in (scene.background, a.colour, b.colour))
        assert not judge(picture, replace(scene, background=background)).background
        painted = replace(scene, things=(replace(a, colour=background), b))
        verdict = judge(picture, painted)
        assert verdict.colours == (False, True) and not verdict.relation
        shape = next(s for s in scenes.SHAPES if s not in (a.shape, b.shape))
        verdict = judge(picture, replace(scene, things=(replace(a, shape=shape), b)))
        assert verdict.shapes == (False, True) and not verdict.relation
        assert not judge(picture, replace(scene, relation=scenes.OPPOSITE[scene.relation])).relation
        assert judge(picture, replace(scene, relation=scenes.OPPOSITE[scene.relation], things=(b, a))).relation
        assert not judge(picture, replace(scene, things=(a,), relation=None)).relation, "one more than was asked for"


def test_an_empty_picture_has_no_shapes():
    scene = scenes.random_scene(random.Random(3), two=False)
    background, found = look(scenes.draw(replace(scene, things=())))
    assert background == scene.background and not found
    assert judge(scenes.draw(replace(scene, things=())), scene).colours == (False,)


def test_training_scenes_show_nothing_that_is_held_out():
    rng = random.Random(4)
    kinds = set()
    for _ in range(3000):
        scene = scenes.random_scene(rng)
        assert not scene.held_out
        pairs = {(thing.colour, thing.shape) for thing in scene.things}
        assert not pairs & scenes.HELD_OUT_PAIRS
        kinds |= {(thing.shape, thing.colour, thing.size) for thing in scene.things}
    assert len(kinds) == 2 * (4 * 8 - len(scenes.HELD_OUT_PAIRS)), "everything else is seen"
    held_out = [scenes.random_scene(rng, two=True, held_out=True) for _ in range(300)]
    assert any(s.held_out_pair for s in held_out) and any(s.held_out_relation for s in held_out)


def test_things_alike_share_their_shape_or_their_colour():
    listed = scene_data.scene_list(0, 400, alike=0.5)
    pairs = [scene.things for scene in listed if scene.relation]
    shared = [(a.shape == b.shape, a.colour == b.colour) for a, b in pairs]
    assert len(pairs) == 200 and not any(scene.held_out for scene in listed)
    assert 60 < shared.count((False, False)) < 140
    assert 30 < shared.count((True, False)) and 30 < shared.count((False, True)) and (True, True) not in shared
    apart = [scene.things for scene in scene_data.scene_list(0, 400) if scene.relation]
    assert all(a.shape != b.shape and a.colour != b.colour for a, b in apart)


def test_captions_name_what_is_there():
    rng = random.Random(5)
    texts = set()
    for _ in range(500):
        scene = scenes.random_scene(rng)
        text = scenes.caption(scene, rng)
        texts.add(text)
        assert all(thing.name in text for thing in scene.things) and scene.background in text
    assert len(texts) > 450, "phrasings vary"
    assert not any("a orange" in text for text in texts)


def test_questions_have_the_scenes_answers():
    thing = scenes.Thing("circle", "red", "small", 32, 64)
    asked = dict(scenes.questions(scenes.Scene((thing,), "blue", place="at the left")))
    assert asked["What colour is it?"] == "red" and asked["Where is the circle?"] == "at the left"
    assert asked["How many shapes are there?"] == "one" and asked["What colour is the background?"] == "blue"
    assert asked["Describe this picture."] == "a small red circle on a blue background"
    other = scenes.Thing("square", "green", "large", 96, 64)
    asked = dict(scenes.questions(scenes.Scene((thing, other), "blue", relation="left of")))
    assert asked["Where is the green square?"] == "right of the red circle"


def test_a_description_has_one_right_answer():
    """The same picture asked for in either order is described in one."""
    a, b = (scenes.Thing("cross", "red", "large", x, 64) for x in (32, 96))
    one, other = scenes.Scene((a, b), "blue", relation="left of"), scenes.Scene((b, a), "blue", relation="right of")
    assert (scenes.draw_array(one) == scenes.draw_array(other)).all()
    described = [dict(scenes.questions(scene))["Describe this picture."] for scene in (one, other)]
    assert described[0] == described[1] == scenes.caption(one)


def test_the_tokenizer_knows_the_words_and_encodes_anything():
    tokenizer = build_tokenizer()
    text = f"{SYSTEM_PROMPT}\n\nUser: a purple triangle to the right of an orange cross\n\nAssistant:"
    assert tokenizer.encode(text).tokens.count("Ġpurple") == 1
    assert len(tokenizer.encode(text).ids) < 60
    for other in ("naïve 猫 🙂 1234", "What's THIS?\n\n\t", text):
        assert tokenizer.decode(tokenizer.encode(other).ids) == other
    assert tokenizer.to_str() == build_tokenizer().to_str()


@pytest.mark.parametrize("side", (64, scenes.SIZE))
def test_autoencoder_batches_are_reproducible(side):
    a, b = (autoencoders.picture_batch(0, 3, 4, side)["pixels"] for _ in range(2))
    assert torch.equal(a, b) and a.shape == (4, 3, side, side) and a.abs().max() <= 1
    assert not torch.equal(a, autoencoders.picture_batch(0, 4, 4, side)["pixels"])
