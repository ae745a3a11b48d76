"""Prompts and questions of the demo task: true for their scene, what they leave out, what is held out of training."""

import random
import re

import pytest

from demo.recipe import questions, words
from demo.recipe.captions import Caption, caption, meaning
from demo.recipe.scene_data import FRAGMENT, WHOLE, mixed_scene, smoothing_shares
from demo.recipe.scenes import Scene, SceneObject, random_scene
from demo.recipe.tokenizer import build_tokenizer


def named(text, synonyms, plurals=True):
    """The names whose words are in a text, longest words first."""
    text, found = text.lower(), set()
    pairs = [(word, name) for name, others in synonyms.items() for word in others]
    pairs += [(words.plural(word), name) for word, name in pairs] if plurals else []
    for word, name in sorted(set(pairs), key=lambda pair: -len(pair[0])):
        if re.search(rf"\b{word}\b", text):
            text, found = re.sub(rf"\b{word}\b", " ", text), found | {name}
    return found


def captions(count, test=False, seed=0):
    rng = random.Random(seed)
    found = [mixed_scene(rng) for _ in range(count)]
    return [(scene, caption(scene, rng, test)) for scene in found]


@pytest.mark.parametrize("test", (False, True))
def test_captions_are_true_for_their_scene(test):
    for scene, says in captions(3000, test):
        colours = {scene.background, *(o.colour for o in scene.objects)}
        shapes = {o.shape for o in scene.objects}
        absent = set(says.absent) if not says.fragment else set()
        mentioned = named(says.text, words.COLOUR_WORDS, plurals=False) | named(says.text, words.SHAPE_WORDS)
        if says.fragment and re.search(r"\b(no|not|without)\b", says.text):
            continue
        assert not absent & (colours | shapes)
        assert mentioned - absent <= colours | shapes, (says, scene)
        sizes = named(says.text, words.SIZE_WORDS, plurals=False)
        assert sizes <= {o.size for o in scene.objects}, (says, scene)


@pytest.mark.parametrize("test", (False, True))
def test_a_caption_names_what_it_says(test):
    for scene, says in captions(2000, test, seed=1):
        if says.fragment:
            continue
        colours = named(says.text, words.COLOUR_WORDS, plurals=False)
        assert not says.background or scene.background in colours, says
        for o, colour, shape, size in zip(scene.objects, says.colours, says.shapes, says.sizes):
            assert not colour or o.colour in colours, says
            assert not shape or o.shape in named(says.text, words.SHAPE_WORDS), says
            assert not size or o.size in named(says.text, words.SIZE_WORDS, plurals=False), says


def test_each_attribute_is_left_out_about_a_third_of_the_time():
    whole = [(s, c) for s, c in captions(6000) if not c.fragment and s.objects]
    left_out = {
        "background": sum(not c.background for _, c in whole) / len(whole),
        "place": sum(not c.place for _, c in whole) / len(whole),
        "colour": sum(not c.colours[0] for _, c in whole) / len(whole),
        "size": sum(not c.sizes[0] for _, c in whole) / len(whole),
    }
    assert all(0.15 < share < 0.45 for share in left_out.values()), left_out
    texts = {c.text for _, c in whole}
    assert any(re.fullmatch(r"an? (red|green|blue) (circle|square|cross)", text) for text in texts), "bare names"


def test_some_captions_are_fragments_as_negative_prompts_are():
    everything = captions(12000)
    fragments = [c.text for _, c in everything if c.fragment]
    assert 0.08 < len(fragments) / len(everything) < 0.16
    assert any(re.fullmatch(r"no \w+", text) for text in fragments)
    for wanted in ("blue", "blue background", "circle", "squares"):
        assert wanted in fragments, wanted
    assert not any(c.fragment for _, c in captions(500, test=True))


def test_what_is_not_said_varies():
    """The same words stand for scenes that differ in what they leave out."""
    backgrounds = {s.background for s, c in captions(60000) if c.text == "a red circle"}
    assert len(backgrounds) >= 4


def parts(template):
    return re.sub(r"\{\w*\}", "", template.lower()).strip(" ?.,")


def test_test_phrasings_are_held_out():
    for name in ("FRAMES", "BACKGROUNDS", "EMPTY", "ABSENT", "FILLERS"):
        training, test = (getattr(words, name + end) for end in ("", "_TEST"))
        assert not set(map(parts, training)) & set(map(parts, test)), name
    for name in ("PLACE_WORDS", "RELATION_WORDS"):
        training, test = (getattr(words, name + end) for end in ("", "_TEST"))
        assert all(not set(training[key]) & set(test[key]) for key in test), name
    assert questions.PHRASINGS.keys() == questions.PHRASINGS_TEST.keys()
    for kind, training in questions.PHRASINGS.items():
        assert not set(map(parts, training)) & set(map(parts, questions.PHRASINGS_TEST[kind])), kind
    assert not set(questions.DESCRIBE) & set(questions.DESCRIBE_TEST)
    seen = {c.text.lower() for _, c in captions(8000)}
    asked = [c.text.lower() for _, c in captions(300, test=True, seed=9)]
    assert sum(text in seen for text in asked) < 30, "only the shortest prompts are in both"


def test_training_has_110_phrasings_and_more():
    assert len(set(words.FRAMES)) + len(set(words.BACKGROUNDS)) > 110


def asked(count, test=False, held_out=False):
    rng = random.Random(3)
    for _ in range(count):
        scene = mixed_scene(rng, held_out)
        yield from ((scene, question, answer) for question, answer in questions.questions(scene, rng, test))


@pytest.mark.parametrize("test", (False, True))
def test_yes_and_no_are_as_frequent(test):
    answers = [answer for _, _, answer in asked(500, test)]
    assert 0.42 < answers.count("yes") / (answers.count("yes") + answers.count("no")) < 0.58
    assert {"none", "one", "two", "yes", "no", "small", "large"} <= set(answers)


def test_answers_are_true():
    rng = random.Random(4)
    for _ in range(500):
        scene = mixed_scene(rng, held_out=None)
        shapes, names = [o.shape for o in scene.objects], [o.name for o in scene.objects]
        for kind, asked_for, answer in questions.facts(scene, rng):
            if kind == "is there":
                name = asked_for["a"].split(" ", 1)[1]
                assert (answer == "yes") == (name in shapes or name in names)
            elif kind == "count of":
                kinds = [words.plural(s) for s in shapes] + [f"{o.colour} shapes" for o in scene.objects]
                assert answer == ("none", "one", "two")[kinds.count(asked_for["p"])]
            elif kind == "is colour":
                assert (answer == "yes") == (f"{asked_for['c']} {asked_for['s']}" in names)
            elif kind == "is background":
                assert (answer == "yes") == (scene.background == asked_for["c"])
            elif kind == "colour of":
                assert names.count(f"{answer} {asked_for['s']}") == 1


@pytest.mark.parametrize("relation, first", [("left of", 0), ("above", 0), ("right of", 1), ("below", 1)])
def test_objects_without_a_relation_are_named_in_reading_order(relation, first):
    rng, orders = random.Random(8), []
    while len(orders) < 60:
        scene = random_scene(rng, two=True, held_out=None)
        says = caption(scene, rng)
        if scene.relation != relation or says.place or says.fragment or says.absent or not all(says.colours):
            continue
        named = [word_at(says.text, o.colour) for o in scene.objects]
        orders.append(named[first] < named[1 - first])
    assert all(orders)


def word_at(text: str, colour: str) -> int:
    """Where the text has one of a colour's words."""
    return min(match.start() for word in words.COLOUR_WORDS[colour] for match in re.finditer(rf"\b{word}\b", text))


def test_fragments_are_smoothed_more_than_prompts():
    import torch

    found = [c for _, c in captions(50)]
    shares = smoothing_shares(found, torch.tensor([k == 0 for k in range(50)]))
    expected = [FRAGMENT if one.fragment else WHOLE for one in found]
    assert shares[0] == 1 > FRAGMENT > WHOLE
    assert shares[1:].tolist() == pytest.approx(expected[1:])


def test_the_tokenizer_reads_capitals_as_small_letters():
    tokenizer = build_tokenizer()
    for text in ("A Red CIRCLE on a Blue background", "IS THERE A SQUARE?"):
        assert tokenizer.encode(text).ids == tokenizer.encode(text.lower()).ids
    text = "<|User|>: A<|box_start|>(12,34)<|box_end|>"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text.replace("A", "a")
    assert [len(tokenizer.encode(" " + word).ids) for word in ("purple", "background", "triangles", "none")] == [1] * 4


def test_what_a_caption_means():
    """The same for every phrasing, with the left or upper object first."""
    scene = Scene(
        (SceneObject("cross", "red", "small", 90, 64), SceneObject("circle", "blue", "large", 38, 64)),
        "white", relation="right of",
    )  # fmt: skip
    everything = Caption("", True, True, (True, True), (True, True), (True, True), ("green",))
    assert meaning(scene, everything) == "large blue circle left of small red cross on white, no green"
    little = Caption("", False, False, (True, False), (True, False), (False, False))
    assert meaning(scene, little) == "any any shape and any red cross on any"
    for found, says in captions(2000):
        if not says.fragment:
            said = meaning(found, says)
            assert (f"on {found.background}" in said) == says.background
            assert said.count("any any") == sum(not (c or s) for c, s in zip(says.colours, says.sizes))
