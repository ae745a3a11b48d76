"""The demo's pixel judge on prompts in words."""

import re

from PIL import Image

from demo.recipe.judge import judge
from demo.recipe.scenes import COLOURS, RADII, RELATIONS, SHAPES, SIZE, Scene, SceneObject


def scene_of(text: str) -> Scene:
    """The scene that a plain caption describes; its objects have no positions."""
    colours, shapes, sizes, relations = ("|".join(words) for words in (COLOURS, SHAPES, RADII, RELATIONS))
    article = "an? "
    one = f"{article}(?:({sizes}) )?({colours}) ({shapes})"
    match = re.fullmatch(f"{one}(?: ({relations}) {one})? on {article}({colours}) background", text.strip())
    if match is None:
        raise ValueError(f"not a plain caption: {text!r}")
    size, colour, shape, relation, size2, colour2, shape2, background = match.groups()
    objects = [SceneObject(shape, colour, size or "large", SIZE // 2, SIZE // 2)]
    if relation:
        objects.append(SceneObject(shape2, colour2, size2 or "large", SIZE // 2, SIZE // 2))
    return Scene(tuple(objects), background, relation=relation)


def shows(image: Image.Image, text: str) -> bool:
    """Whether the judge finds in an image what a plain caption says: background, colours, shapes and relation."""
    verdict = judge(image, scene_of(text))
    return verdict.background and verdict.relation


def same_scene(a: str, b: str) -> bool:
    """Whether two plain captions describe the same scene."""
    return scene_of(a) == scene_of(b)
