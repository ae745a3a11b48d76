"""The demo task: its splits, captions, questions and tokenizer; the pixel judge on right and wrong images."""

import random
from dataclasses import replace

import pytest
import torch
from core.training_models import tiny

from demo.recipe import quality, scene_data, scenes
from demo.recipe.captions import Caption, caption, plain_caption
from demo.recipe.judge import ATTRIBUTES, compare, find_objects, follows, judge
from demo.recipe.tokenizer import build_tokenizer
from janus_core.prompt import SYSTEM_PROMPT, PromptEncoder


def all_right(verdict):
    return verdict.background and all(verdict.colours) and all(verdict.shapes) and verdict.relation


def test_the_judge_is_right_on_ground_truth():
    rng = random.Random(1)
    sampled = [scenes.random_scene(rng, held_out=None) for _ in range(1000)]
    right = [all_right(judge(scenes.render(scene), scene)) for scene in sampled]
    assert sum(right) >= 990


def test_the_judge_finds_every_error():
    rng = random.Random(2)
    for _ in range(200):
        scene = scenes.random_scene(rng, two=True)
        image, (a, b) = scenes.render(scene), scene.objects
        background = next(c for c in scenes.COLOURS if c not in (scene.background, a.colour, b.colour))
        assert not judge(image, replace(scene, background=background)).background
        painted = replace(scene, objects=(replace(a, colour=background), b))
        verdict = judge(image, painted)
        assert verdict.colours == (False, True) and not verdict.relation
        shape = next(s for s in scenes.SHAPES if s not in (a.shape, b.shape))
        verdict = judge(image, replace(scene, objects=(replace(a, shape=shape), b)))
        assert verdict.shapes == (False, True) and not verdict.relation
        assert not judge(image, replace(scene, relation=scenes.OPPOSITE[scene.relation])).relation
        assert judge(image, replace(scene, relation=scenes.OPPOSITE[scene.relation], objects=(b, a))).relation
        assert not judge(image, replace(scene, objects=(a,), relation=None)).relation, "one object too many"


def test_an_empty_image_has_no_shapes():
    scene = scenes.random_scene(random.Random(3), two=False)
    background, found = find_objects(scenes.render(replace(scene, objects=())))
    assert background == scene.background and not found
    assert judge(scenes.render(replace(scene, objects=())), scene).colours == (False,)


def test_training_scenes_have_no_held_out_combination():
    rng = random.Random(4)
    kinds, backgrounds = set(), set()
    for _ in range(3000):
        scene = scenes.random_scene(rng)
        assert not scene.held_out
        kinds |= {(o.shape, o.colour, o.size) for o in scene.objects}
        backgrounds |= {(scene.background, o.colour, o.shape) for o in scene.objects}
    assert len(kinds) == 2 * 4 * 8, "all objects occur"
    assert len(backgrounds) == 4 * 8 * (7 - 1), "each on all backgrounds but its own colour and the held-out one"
    assert all(scenes.random_scene(rng, two=True, held_out=True).held_out for _ in range(300))


def test_two_objects_share_a_shape_a_colour_or_both():
    listed = scene_data.scene_list(0, 1500, shared=0.5)
    assert not any(scene.held_out for scene in listed)
    pairs = [scene.objects for scene in listed if scene.relation]
    shared = [(a.shape == b.shape, a.colour == b.colour) for a, b in pairs]
    assert 0.4 < shared.count((False, False)) / len(pairs) < 0.6
    assert all(shared.count(kind) / len(pairs) > 0.05 for kind in ((True, False), (False, True), (True, True)))
    apart = [scene.objects for scene in scene_data.scene_list(0, 400) if scene.relation]
    assert all(a.shape != b.shape and a.colour != b.colour for a, b in apart)
    assert 0.02 < sum(not scene.objects for scene in listed) / len(listed) < 0.06


def test_a_bare_name_has_an_image_with_every_background():
    listed = scene_data.scene_list(0, 3000)
    prompts = PromptEncoder.of(tiny("janus")[2])
    codes = torch.arange(3000)[:, None].expand(-1, 64)
    batch_at = scene_data.SceneBatches(prompts, listed, codes, 64, 64, 32, (0, 30, 2), 0, bare=3)
    for index in range(3):
        batch = batch_at(index)
        chosen = [listed[k] for k in batch["gen_tokens"][:, 0]]
        assert len(chosen) == 30
        for group in (slice(0, 6), slice(6, 12), slice(12, 18)):
            (name,) = {scene.objects[0].name for scene in chosen[group]}
            assert len({scene.background for scene in chosen[group]}) == 6, "all but its own and the held-out one"
            same = batch["gen_ids"][group][batch["gen_smoothing"][group] < 1]
            assert len(same) and (same == same[0]).all(), name
        assert any(len(scene.objects) == 2 for scene in chosen[18:])


def test_shares_of_plain_prompts_and_of_two_objects():
    listed = scene_data.scene_list(0, 300)
    prompts = PromptEncoder.of(tiny("janus")[2])
    codes = torch.arange(300)[:, None].expand(-1, 64)
    more = {"plain": 1.0, "pairs": 1.0}
    batch = scene_data.SceneBatches(prompts, listed, codes, 64, 64, 32, (0, 1, 0), 0, **more)(0)
    for number, ids, dropped in zip(batch["gen_tokens"][:, 0], batch["gen_ids"], batch["gen_smoothing"] == 1):
        scene = listed[number]
        plain = prompts.conditional(plain_caption(scene)).ids
        assert len(scene.objects) == 2
        assert dropped or torch.equal(ids[: len(plain)], plain)
    batch = scene_data.SceneBatches(prompts, listed, codes, 64, 64, 32, (0, 1, 0), 0)(0)
    assert {len(listed[number].objects) for number in batch["gen_tokens"][:, 0]} >= {1, 2}


def test_questions_have_answers_from_the_scene():
    circle = scenes.SceneObject("circle", "red", "small", 32, 64)
    rng = random.Random(0)
    asked = dict(quality.plain_questions(scenes.Scene((circle,), "blue", place="at the left"), rng))
    assert asked["What colour is it?"] == "red" and asked["Where is the circle?"] == "at the left"
    assert asked["How many shapes are there?"] == "one" and asked["What colour is the background?"] == "blue"
    assert asked["Describe this picture."] == "a small red circle on a blue background"
    square = scenes.SceneObject("square", "green", "large", 96, 64)
    asked = dict(quality.plain_questions(scenes.Scene((circle, square), "blue", relation="left of"), rng))
    assert asked["Where is the green square?"] == "right of the red circle"


def test_a_description_has_one_right_answer():
    """The same image, with its objects in either order, has one description."""
    a, b = (scenes.SceneObject("cross", "red", "large", x, 64) for x in (32, 96))
    one, other = scenes.Scene((a, b), "blue", relation="left of"), scenes.Scene((b, a), "blue", relation="right of")
    assert (scenes.render_array(one) == scenes.render_array(other)).all()
    rng = random.Random(0)
    described = [dict(quality.plain_questions(scene, rng))["Describe this picture."] for scene in (one, other)]
    assert described[0] == described[1] == plain_caption(one)


def test_the_tokenizer_knows_the_words_and_encodes_anything():
    tokenizer = build_tokenizer()
    text = f"{SYSTEM_PROMPT}\n\nUser: a purple triangle to the right of an orange cross\n\nAssistant:"
    assert tokenizer.encode(text).tokens.count("Ġpurple") == 1
    assert len(tokenizer.encode(text).ids) < 60
    for other in ("naïve 猫 🙂 1234", "What's THIS?\n\n\t", text):
        assert tokenizer.decode(tokenizer.encode(other).ids) == other.lower()
    assert tokenizer.to_str() == build_tokenizer().to_str()


def test_an_image_follows_the_captions_of_its_scene_and_no_others():
    rng = random.Random(6)
    for _ in range(150):
        scene, other = (scene_data.mixed_scene(rng, held_out=None) for _ in range(2))
        image, says = scenes.render(scene), caption(scene, rng, test=True)
        everything = Caption("", True, True, *[(True,) * len(scene.objects)] * 3)
        assert follows(image, scene, says) and follows(image, scene, everything)
        another = scenes.render(other)
        assert not follows(another, scene, everything) or another.tobytes() == image.tobytes()


@pytest.mark.parametrize("attribute", ("background", "colours", "shapes", "sizes", "place"))
def test_only_what_a_caption_says_counts(attribute):
    circle = scenes.SceneObject("circle", "red", "small", 32, 64)
    scene = scenes.Scene((circle,), "blue", place="at the left")
    changed = {
        "background": replace(scene, background="green"),
        "colours": replace(scene, objects=(replace(circle, colour="green"),)),
        "shapes": replace(scene, objects=(replace(circle, shape="square"),)),
        "sizes": replace(scene, objects=(replace(circle, size="large"),)),
        "place": replace(scene, objects=(replace(circle, x=96),)),
    }[attribute]
    says = Caption("", True, True, (True,), (True,), (True,))
    silent = replace(says, **{attribute: False if attribute in ("background", "place") else (False,)})
    assert not follows(scenes.render(changed), scene, says) and follows(scenes.render(changed), scene, silent)
    assert not follows(scenes.render(scene), scene, replace(says, absent=("red",)))


def test_a_comparison_tells_the_objects_apart():
    rng = random.Random(7)
    for _ in range(50):
        scene = scenes.random_scene(rng, two=True)
        found = compare(scenes.render(scene), scene)
        assert found.background and found.count and found.objects == (ATTRIBUTES, ATTRIBUTES)
        a, b = scene.objects
        painted = replace(scene, objects=(replace(a, size="small" if a.size == "large" else "large"), b))
        assert compare(scenes.render(painted), scene).objects == (ATTRIBUTES - {"size"}, ATTRIBUTES)
        gone = compare(scenes.render(replace(scene, objects=(b,), relation=None)), scene)
        assert not gone.count and gone.objects == (None, ATTRIBUTES)


def test_stored_codes_are_those_of_the_same_scenes_and_the_same_autoencoder(tmp_path):
    calls = []

    def encode(pixels, scale=1):
        calls.append(len(pixels))
        return (pixels.mean(dim=(2, 3)) * 1000).long() * scale

    one, other = (scene_data.scene_list(seed, 5) for seed in (1, 2))
    path = tmp_path / "codes.safetensors"
    codes = scene_data.encode_scenes(one, encode, path, chunk=2)
    assert calls == [2, 2, 1] and len(codes) == 5
    assert torch.equal(scene_data.encode_scenes(one, encode, path, chunk=2), codes) and calls == [2, 2, 1, 2]
    assert not torch.equal(scene_data.encode_scenes(other, encode, path, chunk=2), codes)
    doubled = scene_data.encode_scenes(other, lambda pixels: encode(pixels, 2), path, chunk=2)
    assert torch.equal(doubled, 2 * scene_data.encode_scenes(other, encode, path, chunk=2))
