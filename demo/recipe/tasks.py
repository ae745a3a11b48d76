"""Toy tasks of models made of Janus-Pro: edits by instruction, and checks with a reason.

See janus_core/finetunes for the prompts around these texts.
"""

import random
from dataclasses import dataclass, replace

from . import words
from .captions import Caption, whole_caption
from .scene_data import mixed_scene
from .scenes import COLOURS, PLACES, RADII, RELATIONS, SHAPES, SIZE, Scene, SceneObject, place_at
from .words import with_article

# Instructions, and those that are held out of training. {o} is an object with "the", {v} a colour, a size, a place or a
# shape, {a} the latter with its article.
EDITS = {
    "colour": (
        "make {o} {v}", "paint {o} {v}", "turn {o} {v}", "change the colour of {o} to {v}", "{o} should be {v}",
        "colour {o} {v}", "change {o} to {v}", "let {o} be {v}",
    ),
    "background": (
        "put it on {a} background", "make the background {v}", "change the background to {v}", "use {a} background",
        "the background should be {v}", "paint the background {v}", "replace the background by {v}",
    ),
    "remove": ("remove {o}", "delete {o}", "take away {o}", "erase {o}", "without {o}", "get rid of {o}"),
    "shape": (
        "turn {o} into {a}", "replace {o} with {a}", "change {o} into {a}", "make {o} {a}", "{a} instead of {o}",
        "swap {o} for {a}",
    ),
    "size": ("make {o} {v}", "{o} should be {v}", "change the size of {o} to {v}", "resize {o}, make it {v}"),
    "move": ("move {o} {v}", "put {o} {v}", "place {o} {v}", "shift {o} {v}", "{o} should be {v}"),
    "add": ("add {a} {v}", "put {a} {v}", "create {a} {v}", "place {a} {v}", "insert {a} {v}"),
}  # fmt: skip
EDITS_TEST = {
    "colour": ("give {o} the colour {v}", "please make {o} {v}"),
    "background": ("give it {a} background", "please make the background {v}"),
    "remove": ("please remove {o}", "make {o} go away"),
    "shape": ("please turn {o} into {a}", "put {a} in place of {o}"),
    "size": ("please make {o} {v}", "{o} needs to be {v}"),
    "move": ("please move {o} {v}", "let {o} be {v}"),
    "add": ("please add {a} {v}", "i want {a} {v}"),
}


@dataclass(frozen=True)
class Edit:
    """An instruction and what it makes of a scene.

    Attributes:
        kind: a key of EDITS.
        changed: index of the object in `target` that is another one than before; None for the background and for one
            that is removed.
    """

    kind: str
    instruction: str
    target: Scene
    changed: int | None


def scene_of(objects, background: str) -> Scene:
    """A scene of up to two objects, with their place or relation."""
    objects = tuple(objects)
    if len(objects) < 2:
        return Scene(objects, background, place=place_at(objects[0].x, objects[0].y) if objects else None)
    a, b = objects
    way = ((a.x > b.x) - (a.x < b.x), (a.y > b.y) - (a.y < b.y))
    return Scene(objects, background, relation=next(name for name, step in RELATIONS.items() if step == way))


def edit_of(scene: Scene, rng: random.Random, test: bool = False) -> Edit:
    """A random edit of a scene to one of the training split, or of any if the scene is held out.

    Args:
        scene: has an object.
        test: with an instruction that is held out of training.
    """
    while True:
        kinds = ["colour", "background", "remove", "shape", "size"]
        if len(scene.objects) == 1:
            kinds += ["move"] + ["add"] * (scene.place != "in the centre")
        kind = rng.choice(kinds)
        edit = _edit(kind, scene, rng, (EDITS_TEST if test else EDITS)[kind])
        if scene.held_out or not edit.target.held_out:
            return edit


def _edit(kind: str, scene: Scene, rng: random.Random, phrasings) -> Edit:
    objects, k = list(scene.objects), rng.randrange(len(scene.objects))
    o, background = objects[k], scene.background
    used = {background, *(p.colour for p in objects)}
    word = {"o": f"the {_name(k, scene, rng)}"}
    if kind == "colour":
        value = rng.choice([c for c in COLOURS if c not in (background, o.colour)])
        objects[k] = replace(o, colour=value)
        word["v"] = rng.choice(words.COLOUR_WORDS[value])
    elif kind == "background":
        background = rng.choice([c for c in COLOURS if c not in used])
        word["v"] = rng.choice(words.COLOUR_WORDS[background])
        word["a"] = with_article(word["v"])
    elif kind == "remove":
        del objects[k]
    elif kind == "shape":
        value = rng.choice([s for s in SHAPES if s != o.shape])
        objects[k] = replace(o, shape=value)
        word["a"] = with_article(rng.choice(words.SHAPE_WORDS[value]))
    elif kind == "size":
        value = "large" if o.size == "small" else "small"
        objects[k] = replace(o, size=value)
        word["v"] = rng.choice((*words.SIZE_WORDS[value], "bigger" if value == "large" else "smaller"))
    else:
        places = [p for p in PLACES if p != scene.place]
        if kind == "add":
            opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
            places = [f"at the {opposite[scene.place.split()[-1]]}"]
        place = rng.choice(places)
        dx, dy = PLACES[place]
        word["v"] = rng.choice(words.PLACE_WORDS[place][:3])
        if kind == "move":
            word["v"] = word["v"].replace("at the", "to the") if rng.random() < 0.5 else word["v"]
            objects[k] = replace(o, x=SIZE // 2 + dx, y=SIZE // 2 + dy)
        else:
            colour, shape = rng.choice([c for c in COLOURS if c not in used]), rng.choice(SHAPES)
            objects.append(SceneObject(shape, colour, rng.choice(list(RADII)), SIZE // 2 + dx, SIZE // 2 + dy))
            size = f"{rng.choice(words.SIZE_WORDS[objects[-1].size])} "
            word["a"] = with_article(size + f"{rng.choice(words.COLOUR_WORDS[colour])} {shape}")
    changed = None if kind in ("background", "remove") else len(objects) - 1 if kind == "add" else k
    return Edit(kind, rng.choice(phrasings).format(**word), scene_of(objects, background), changed)


def _name(k: int, scene: Scene, rng: random.Random) -> str:
    """Words that mean one of the objects only."""
    o, others = scene.objects[k], [p for p in scene.objects if p is not scene.objects[k]]
    noun, colour = rng.choice(words.SHAPE_WORDS[o.shape]), rng.choice(words.COLOUR_WORDS[o.colour])
    names = [noun] * 2 if all(p.shape != o.shape for p in others) else []
    names += [f"{colour} shape"] if all(p.colour != o.colour for p in others) else []
    return rng.choice([*names, f"{colour} {noun}"])


def distinct_scene(rng: random.Random, held_out: bool | None = False) -> Scene:
    """A scene with one or two objects that have different names."""
    while True:
        scene = mixed_scene(rng, held_out)
        if scene.objects and len({o.name for o in scene.objects}) == len(scene.objects):
            return scene


@dataclass(frozen=True)
class Check:
    """An image that is to be compared with a prompt.

    Attributes:
        prompt: of the scene `asked`.
        shown: the image's content.
        matches: whether it is as the prompt says.
        reason: the text after Yes or No.
    """

    prompt: Caption
    asked: Scene
    shown: Scene
    matches: bool
    reason: str


def check_of(asked: Scene, rng: random.Random, test: bool = False) -> Check:
    """A prompt for a scene, and an image of it or of another one that differs in one attribute or two."""
    prompt = whole_caption(asked, rng, test)
    shown = asked
    for _ in range(0 if rng.random() < 0.4 else rng.choice((1, 1, 2))):
        if not shown.objects:
            break
        shown = _edit(rng.choice(("colour", "background", "shape", "size", "remove")), shown, rng, ("",)).target
        if shown.held_out and not asked.held_out:
            return check_of(asked, rng, test)
    reason = difference(prompt, asked, shown)
    return Check(prompt, asked, shown, not reason, reason or ", it shows all of it.")


def difference(says: Caption, asked: Scene, shown: Scene) -> str:
    """What a prompt for one scene says and another scene lacks, the first of it; "" if it lacks nothing."""
    if len(shown.objects) != len(asked.objects):
        return f", there is {words.AMOUNTS[len(shown.objects)]}."
    if says.background and shown.background != asked.background:
        return f", the background is {shown.background}."
    parts = zip(asked.objects, shown.objects, says.colours, says.shapes, says.sizes)
    for wanted, found, colour, shape, size in parts:
        if shape and wanted.shape != found.shape:
            return f", the {wanted.shape} is {with_article(found.shape)}."
        if colour and wanted.colour != found.colour:
            return f", the {found.shape} is {found.colour}."
        if size and wanted.size != found.size:
            return f", the {found.shape} is {found.size}."
    names = {shown.background, *(o.colour for o in shown.objects), *(o.shape for o in shown.objects)}
    wrong = [name for name in says.absent if name in names]
    return f", there is {wrong[0]}." if wrong else ""


def reason_of(check: Check) -> str:
    """The whole answer to a check."""
    return f"{'Yes' if check.matches else 'No'}{check.reason}"
