"""Questions about scenes with one right answer each, in many phrasings.

Answers are one word or one phrase, the same for every phrasing: "yes", "none", "red", "left of the red circle".
"""

import random
from dataclasses import replace

from . import words
from .captions import plain_caption
from .scenes import COLOURS, NUMBERS, OPPOSITE, RADII, SHAPES, Scene
from .words import plural, with_article

# Phrasings of each kind of question, and those that are held out of training. {s} is a shape, {p} its plural, {c} a
# colour, {a} an object with its article, {t} with "the", {u} another one, {r} a relation, {n} a number, {z} a size.
PHRASINGS = {
    "background": (
        "What colour is the background?", "What is the background colour?", "Which colour is the background?",
        "What color does the background have?", "Background colour?", "What colour is behind the shapes?",
        "Tell me the colour of the background.", "What is the color of the background?",
        "Can you say which colour the background has?", "Could you tell me the background colour?",
    ),
    "count": (
        "How many shapes are there?", "How many objects are in the image?", "How many shapes can you see?",
        "Count the shapes.", "What is the number of shapes?", "How many things are there?", "Number of objects?",
        "Can you count the shapes?",
    ),
    "count of": (
        "How many {p} are there?", "How many {p} can you see?", "Count the {p}.", "Number of {p}?",
        "How many {p} are in the image?", "What is the number of {p}?", "Can you count the {p}?",
    ),
    "colour of": (
        "What colour is the {s}?", "Which colour is the {s}?", "What color is the {s}?", "What colour has the {s}?",
        "Tell me the colour of the {s}.", "What is the colour of the {s}?", "The {s} is of which colour?",
        "Colour of the {s}?", "Name the color of the {s}.", "Can you say which colour the {s} has?",
        "Could you tell me the colour of the {s}?",
    ),
    "shape of": (
        "Which shape is {c}?", "What shape is {c}?", "What is {c}?", "Which object is {c}?", "Name the {c} shape.",
        "What is the {c} shape?", "What shape does the {c} object have?", "The {c} object is what shape?",
        "Can you say which shape is {c}?", "Could you tell me the shape that is {c}?",
    ),
    "colour": ("What colour is it?", "What color is the shape?", "Which colour has the object?", "What is its colour?"),
    "shape": ("What shape is it?", "Which shape is this?", "What is its shape?", "What object is in the image?"),
    "size": (
        "How big is the {s}?", "What size is the {s}?", "Which size has the {s}?", "What is the size of the {s}?",
        "Can you say how big the {s} is?",
    ),
    "where": (
        "Where is {t}?", "Where can {t} be found?", "In which place is {t}?", "What is the position of {t}?",
        "Where do you see {t}?", "Tell me where {t} is.", "Could you say where {t} is?",
    ),
    "is there": (
        "Is there {a}?", "Is {a} in the image?", "Does the image have {a}?", "Do you see {a}?", "Can you see {a}?",
        "Does the image show {a}?", "Is there {a} in this image?", "Are there {q}?", "Do you see any {q}?",
    ),
    "is colour": (
        "Is the {s} {c}?", "Is the colour of the {s} {c}?", "Does the {s} have the colour {c}?", "The {s} is {c}?",
        "Is it true that the {s} is {c}?", "Is the {s} of {c} colour?",
    ),
    "is background": (
        "Is the background {c}?", "Is the background colour {c}?", "Does the image have {b} background?",
        "Is this {b} background?", "Is it true that the background is {c}?",
    ),
    "is size": (
        "Is the {s} {z}?", "Is it a {z} {s}?", "Is the size of the {s} {z}?", "Is it true that the {s} is {z}?",
    ),
    "are there": (
        "Are there {n} shapes?", "Are there {n} objects in the image?", "Do you see {n} shapes?",
        "Does the image have {n} shapes?", "Is the number of shapes {n}?",
    ),
    "is related": (
        "Is {t} {r} {u}?", "Is it true that {t} is {r} {u}?", "Can you see {t} {r} {u}?", "Does {t} lie {r} {u}?",
    ),
}  # fmt: skip
PHRASINGS_TEST = {
    "background": ("Can you name the background colour?", "The background is which colour?"),
    "count": ("How many objects do you see?", "Tell me how many shapes there are."),
    "count of": ("How many {p} do you see?", "Tell me how many {p} there are."),
    "colour of": ("Can you name the colour of the {s}?", "Which color does the {s} have?"),
    "shape of": ("Can you name the shape that is {c}?", "Which one is the {c} shape?"),
    "colour": ("Which colour is it?", "What is the colour of the object?"),
    "shape": ("Which shape is it?", "What is the shape of the object?"),
    "size": ("Can you name the size of the {s}?", "Tell me how big the {s} is."),
    "where": ("In the image, where is {t}?", "Can you tell where {t} is?"),
    "is there": ("Is {a} there?", "Can {a} be seen?", "Does this image contain {a}?"),
    "is colour": ("Is the {s} in the image {c}?", "Would you say that the {s} is {c}?"),
    "is background": ("Would you say that the background is {c}?", "Is the colour of the background {c}?"),
    "is size": ("Would you say that the {s} is {z}?", "Is the {s} in the image {z}?"),
    "are there": ("Can you see {n} shapes?", "Would you say that there are {n} shapes?"),
    "is related": ("Would you say that {t} is {r} {u}?", "Is {t} in the image {r} {u}?"),
}
DESCRIBE = (
    "Describe this picture.", "Describe this image.", "Describe the image.", "What is in this picture?",
    "What do you see?", "What is in this image?", "What does the image show?", "Describe what you see.", "Caption?",
    "Can you say what this image shows?", "Could you caption this picture?", "Tell me what you see.",
)  # fmt: skip
DESCRIBE_TEST = ("Can you describe this image?", "Tell me what is in this picture.", "What can you see in the image?")


def in_reading_order(scene: Scene) -> Scene:
    """The same image with its left or upper object named first, the order of descriptions."""
    if scene.relation not in ("right of", "below"):
        return scene
    return replace(scene, objects=scene.objects[::-1], relation=OPPOSITE[scene.relation])


def facts(scene: Scene, rng: random.Random) -> list[tuple[str, dict, str]]:
    """(kind, what is asked for, answer) of questions about a scene: all that ask for an attribute, and of those that
    ask yes or no, and for a number of something, a few at random."""
    objects = scene.objects
    found = [("background", {}, scene.background), ("count", {}, NUMBERS[len(objects)])]
    shapes, colours = [o.shape for o in objects], [o.colour for o in objects]
    for o in objects:
        if shapes.count(o.shape) == 1:
            found += [("colour of", {"s": o.shape}, o.colour), ("size", {"s": o.shape}, o.size)]
        if colours.count(o.colour) == 1:
            found.append(("shape of", {"c": o.colour}, o.shape))
    if len(objects) == 1:
        (o,) = objects
        found += [("colour", {}, o.colour), ("shape", {}, o.shape)]
        found += [("where", {"t": f"the {name}"}, scene.place) for name in (o.shape, o.name)]
    elif objects and objects[0].name != objects[1].name:
        found += _relations(scene)
    return found + _counts(scene, rng) + _yes_no(scene, rng)


def _relations(scene):
    a, b = scene.objects
    found = []
    for one, other, relation in ((a, b, scene.relation), (b, a, OPPOSITE[scene.relation])):
        answer = f"{relation} the {other.name}"
        found.append(("where", {"t": f"the {one.name}"}, answer))
        if a.shape != b.shape:
            found.append(("where", {"t": f"the {one.shape}"}, answer))
    return found


def _counts(scene, rng):
    """How many there are of a shape or a colour that is there, and of one that is not."""
    found = []
    for name in dict.fromkeys([rng.choice(SHAPES), *(o.shape for o in scene.objects)]):
        found.append(({"p": plural(name)}, sum(o.shape == name for o in scene.objects)))
    name = rng.choice([c for c in COLOURS if c != scene.background])
    found.append(({"p": f"{name} shapes"}, sum(o.colour == name for o in scene.objects)))
    return [("count of", asked, NUMBERS[number]) for asked, number in found]


def _yes_no(scene, rng):
    """One question of each kind whose answer is yes, and one whose answer is no."""
    objects, found = scene.objects, []
    shapes, names = [o.shape for o in objects], [o.name for o in objects]

    def ask(kind, yes, **asked):
        found.append((kind, asked, "yes" if yes else "no"))

    there = [(s, plural(s)) for s in SHAPES]
    there += [(f"{c} {s}", f"{c} {plural(s)}") for c in COLOURS for s in SHAPES]
    for yes in (True, False):
        fitting = [pair for pair in there if (pair[0] in shapes or pair[0] in names) == yes]
        if not yes and objects and rng.random() < 0.7:  # what is nearly there
            fitting = [p for p in fitting if p[0] in SHAPES or any(w in p[0].split() for n in names for w in n.split())]
        if fitting:
            one, several = rng.choice(fitting)
            ask("is there", yes, a=with_article(one), q=several)
    other = rng.choice([c for c in COLOURS if c != scene.background])
    for colour in (scene.background, other):
        ask("is background", colour == scene.background, c=colour, b=with_article(colour))
    numbers = ("no", "one", "two")
    for number in dict.fromkeys([numbers[len(objects)], rng.choice(numbers)]):
        ask("are there", number == numbers[len(objects)], n=number)
    unique = [o for o in objects if shapes.count(o.shape) == 1]
    if unique:
        o = rng.choice(unique)
        wrong = [c for c in COLOURS if c != o.colour]
        near = [c for c in wrong if c == scene.background or c in [p.colour for p in objects]]
        for colour in (o.colour, rng.choice(near if near and rng.random() < 0.5 else wrong)):
            ask("is colour", colour == o.colour, s=o.shape, c=colour)
        size = rng.choice(list(RADII))
        ask("is size", size == o.size, s=o.shape, z=size)
    if len(unique) == 2:
        a, b = rng.sample(objects, 2)
        relation = scene.relation if a is objects[0] else OPPOSITE[scene.relation]
        for asked in (relation, OPPOSITE[relation]):
            ask("is related", asked == relation, t=f"the {a.shape}", u=f"the {b.shape}", r=asked)
    return found


def phrase(kind: str, asked: dict, rng: random.Random, test: bool = False) -> str:
    """A question of a kind in one of its phrasings, with synonyms.

    Args:
        test: a phrasing that is held out of training, and any capitals.
    """
    asked = {key: _synonyms(value, rng) for key, value in asked.items()}
    if "r" in asked:
        asked["r"] = rng.choice([word for word in words.RELATION_WORDS[asked["r"]] if not word.startswith("that ")])
    text = rng.choice((PHRASINGS_TEST if test else PHRASINGS)[kind]).format(**asked)
    return _case(text, rng) if test else text


def _synonyms(text: str, rng) -> str:
    """The text with some of its shapes and sizes in other words."""
    if rng.random() < 0.6:
        return text
    for names in (words.SHAPE_WORDS, words.SIZE_WORDS):
        for name, others in names.items():
            other = rng.choice(others)
            if plural(name) in text:
                text = text.replace(plural(name), plural(other))
            elif name in text.split():
                text = " ".join(other if word == name else word for word in text.split())
    return text


def _case(text: str, rng) -> str:
    return rng.choice((text, text, text.lower(), text.upper(), text.rstrip("?.")))


def questions(scene: Scene, rng: random.Random, test: bool = False) -> list[tuple[str, str]]:
    """Questions about a scene, in random phrasings, with their answers; the last one asks for a description."""
    pairs = [(phrase(kind, asked, rng, test), answer) for kind, asked, answer in facts(scene, rng)]
    return [*pairs, (rng.choice(DESCRIBE_TEST if test else DESCRIBE), plain_caption(in_reading_order(scene)))]
