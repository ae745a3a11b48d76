"""Scores of the toy tasks on instructions, prompts and checks that training never showed."""

import random

from janus_core.finetunes.think import RECIPES

from . import judge
from .bars import Bar, follow_rate, generate, held_out_prompts, percent
from .scene_data import mixed_scene
from .scenes import render
from .tasks import Edit, check_of, distinct_scene, edit_of


def edited(result: judge.Comparison, edit: Edit) -> tuple[bool, bool]:
    """(what was asked for is right, everything else is unchanged) of a comparison with an edit's target."""
    asked_for = {"colour": {"colour"}, "shape": {"shape"}, "size": {"size"}, "move": set(), "add": judge.ATTRIBUTES}
    others = all(right == judge.ATTRIBUTES for k, right in enumerate(result.objects) if k != edit.changed)
    if edit.kind == "background":
        return result.background, result.count and others
    if edit.kind == "remove":
        return result.count, result.background and others
    right, wanted = result.objects[edit.changed], asked_for[edit.kind]
    rest = judge.ATTRIBUTES - wanted
    if right is None:
        return False, result.background and others
    return wanted <= right, result.background and result.count and others and rest <= right


def edits(pipe, count: int) -> list[Bar]:
    rng, asked, unchanged = random.Random("edits"), [], []
    for k in range(count):
        scene = distinct_scene(rng)
        edit = edit_of(scene, rng, test=True)
        result = pipe.edit(render(scene), edit.instruction, seed=k)[0]
        right, same = edited(judge.compare(result, edit.target), edit)
        asked.append(right)
        unchanged.append(same)
    return [
        Bar("tasks: edits right in what was asked", percent(asked), 80),
        Bar("tasks: edits unchanged elsewhere", percent(unchanged), 80),
    ]


def checks(pipe, count: int) -> list[Bar]:
    rng, right = random.Random("checks"), []
    for _ in range(count):
        check = check_of(mixed_scene(rng), rng, test=True)
        found = pipe.reflect(render(check.shown), check.prompt.text, temperature=0.0)
        right.append(found.matches == check.matches)
    return [Bar("tasks: checks answered Yes or No rightly", percent(right), 90)]


def plans(pipe, count: int) -> list[Bar]:
    """Images with a plan in each recipe's form, beside those without."""
    asked = held_out_prompts(count, 3)
    texts = [says.text for _, says in asked]
    without = follow_rate(generate(pipe, texts), asked)
    found = []
    for recipe in RECIPES:
        plans = [pipe.think(text, recipe, seed=k).prompt for k, text in enumerate(texts)]
        rate = follow_rate(generate(pipe, plans), asked)
        found.append(Bar(f"tasks: all right with a plan of {recipe}", rate, without))
    return found
