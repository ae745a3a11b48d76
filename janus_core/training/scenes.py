"""The demo task: procedurally drawn scenes with captions, questions and answers, and what is held out of training.

A scene has one or two flat-coloured shapes on a flat background of 128 x 128 pixels. One shape stands in one of five
places; two stand 64 pixels apart along their relation's axis. A caption leaves nothing open: what goes without saying
is a large shape in the centre.
"""

import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

SIZE = 128
INSIDE = {  # shapes, from coordinates in halves of their width
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.9,
    "triangle": lambda u, v: (v <= 0.9) & (abs(u) * 1.8 <= v + 0.9),
    "cross": lambda u, v: (np.maximum(abs(u), abs(v)) <= 1) & (np.minimum(abs(u), abs(v)) <= 0.36),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "ring": lambda u, v: (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.3),
    "bar": lambda u, v: (abs(u) <= 1) & (abs(v) <= 0.4),
    "pillar": lambda u, v: (abs(u) <= 0.4) & (abs(v) <= 1),
    "half": lambda u, v: (u**2 + v**2 <= 1) & (v >= -0.1),
    "corner": lambda u, v: (np.maximum(abs(u), abs(v)) <= 0.9) & ((u <= -0.2) | (v >= 0.2)),
    "hexagon": lambda u, v: (abs(v) <= 0.87) & (0.87 * abs(u) + 0.5 * abs(v) <= 0.87),
    "tee": lambda u, v: (np.maximum(abs(u), abs(v)) <= 0.9) & ((v <= -0.3) | (abs(u) <= 0.3)),
}
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 220, 60),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
MORE_COLOURS = {
    "pink": (255, 150, 190),
    "cyan": (60, 200, 220),
    "brown": (120, 75, 40),
    "grey": (128, 128, 128),
    "lime": (170, 220, 60),
    "navy": (20, 30, 100),
    "teal": (0, 128, 128),
    "maroon": (110, 10, 40),
}
RADII = {"small": 15, "large": 26}  # half the width of a shape, in pixels
PLACES = {
    "in the centre": (0, 0),
    "at the left": (-32, 0),
    "at the right": (32, 0),
    "at the top": (0, -32),
    "at the bottom": (0, 32),
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # where the first one is
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OTHER_WORDS = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}
NUMBERS = ("one", "two")

# Never drawn in training, alone or beside another shape: (colour, shape).
HELD_OUT_PAIRS = {("purple", "circle"), ("orange", "square"), ("red", "triangle"), ("blue", "cross")}
# Never drawn in training in any colours or sizes (nor as "b right of a", which is the same picture).
HELD_OUT_RELATIONS = {
    ("circle", "left of", "triangle"),
    ("cross", "left of", "square"),
    ("square", "above", "circle"),
    ("triangle", "above", "cross"),
}


@dataclass(frozen=True)
class World:
    """The shapes, and the colours with their values, that scenes are made of."""

    shapes: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]


TASK = World(SHAPES, COLOURS)
WIDER = World(tuple(INSIDE), COLOURS | MORE_COLOURS)


@dataclass(frozen=True)
class Thing:
    """One shape; x and y are its centre in pixels."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `relation` says where the first of two things is, seen from the second."""

    things: tuple[Thing, ...]
    background: str
    place: str | None = None  # of a single thing
    relation: str | None = None  # of two things

    @property
    def held_out(self) -> bool:
        """Whether some combination in it is kept out of training."""
        return self.held_out_pair or self.held_out_relation

    @property
    def held_out_pair(self) -> bool:
        return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in self.things)

    @property
    def held_out_relation(self) -> bool:
        if self.relation is None:
            return False
        a, b = (thing.shape for thing in self.things)
        return (a, self.relation, b) in HELD_OUT_RELATIONS or (b, OPPOSITE[self.relation], a) in HELD_OUT_RELATIONS


def random_scene(
    rng: random.Random,
    two: bool | None = None,
    held_out: bool | None = False,
    world: World = TASK,
    alike: bool = False,
) -> Scene:
    """A scene drawn at random.

    Args:
        two: two things or one; None is either.
        held_out: False is the training split, True the held-out split, None both.
        world: what it is made of.
        alike: two things share their shape or their colour; else they differ in both.
    """
    while True:
        scene = _any_scene(rng, rng.random() < 0.5 if two is None else two, world, alike)
        if held_out is None or scene.held_out == held_out:
            return scene


def _any_scene(rng, two, world, alike):
    background, *colours = rng.sample(list(world.colours), 3)
    shapes = rng.sample(world.shapes, 2)
    sizes = [rng.choice(list(RADII)) for _ in range(2)]
    if alike:
        shared = rng.choice((shapes, colours))
        shared[1] = shared[0]
    middle = SIZE // 2
    if not two:
        place, (dx, dy) = rng.choice(list(PLACES.items()))
        return Scene((Thing(shapes[0], colours[0], sizes[0], middle + dx, middle + dy),), background, place=place)
    relation, (dx, dy) = rng.choice(list(RELATIONS.items()))
    things = []
    for k, side in enumerate((1, -1)):
        x, y = middle + 32 * side * dx, middle + 32 * side * dy
        things.append(Thing(shapes[k], colours[k], sizes[k], x, y))
    return Scene(tuple(things), background, relation=relation)


@cache
def shape_mask(shape: str, radius: int, x: int, y: int) -> np.ndarray:
    """Coverage of a shape, float32 [SIZE, SIZE] in [0, 1], anti-aliased by 4 x 4 samples per pixel."""
    samples = (np.arange(4 * SIZE, dtype=np.float32) + 0.5) / 4
    u, v = (samples[None, :] - x) / radius, (samples[:, None] - y) / radius
    inside = INSIDE[shape](u, v)
    return inside.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3), dtype=np.float32)


def draw_array(scene: Scene) -> np.ndarray:
    """The scene's picture, uint8 [SIZE, SIZE, 3]."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = WIDER.colours[scene.background]
    for thing in scene.things:
        mask = shape_mask(thing.shape, RADII[thing.size], thing.x, thing.y)[..., None]
        picture += mask * (np.float32(WIDER.colours[thing.colour]) - picture)
    return picture.round().astype(np.uint8)


def draw(scene: Scene) -> Image.Image:
    """The scene's picture."""
    return Image.fromarray(draw_array(scene))


def with_article(words: str) -> str:
    """`words` with a or an in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """A prompt for the scene; without `rng` the plainest full one, with it one of several phrasings.

    Sizes go unmentioned only where all are large, a single thing's place only in the centre.
    """
    if rng is None:
        things = [with_article(f"{thing.size} {thing.name}") for thing in scene.things]
        text = f" {scene.relation} ".join(things)
        return f"{text} on {with_article(scene.background)} background"
    sized = any(thing.size == "small" for thing in scene.things) or rng.random() < 0.3
    things = [with_article(f"{thing.size} {thing.name}" if sized else thing.name) for thing in scene.things]
    if scene.relation is None:
        placed = scene.place != "in the centre" or rng.random() < 0.1
        text = f"{things[0]} {scene.place}" if placed else things[0]
    else:
        relation = scene.relation
        if rng.random() < 0.3:
            relation = OTHER_WORDS[relation]
        text = f"{things[0]} {relation} {things[1]}"
    background = with_article(scene.background)
    phrasing = rng.choice(
        (
            "{} on {} background",
            "{} on {} background",
            "{} on {} background",
            "a picture of {} on {} background",
            "draw {} on {} background",
            "{} in front of {} background",
            "{}, {} background",
        )
    )
    return phrasing.format(text, scene.background if phrasing.startswith("{},") else background)


DESCRIBE = ("Describe this picture.", "Describe this image.", "Describe the image.", "What is in this picture?")


def from_the_first(scene: Scene) -> Scene:
    """The same picture with its left or upper thing named first, as descriptions have it."""
    if scene.relation not in ("right of", "below"):
        return scene
    return replace(scene, things=scene.things[::-1], relation=OPPOSITE[scene.relation])


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Every question about the scene that has one right answer, with that answer."""
    pairs = [
        ("What colour is the background?", scene.background),
        ("How many shapes are there?", NUMBERS[len(scene.things) - 1]),
    ]
    pairs += [(question, caption(from_the_first(scene))) for question in DESCRIBE]
    for thing in scene.things:
        pairs += [
            (f"What colour is the {thing.shape}?", thing.colour),
            (f"Which shape is {thing.colour}?", thing.shape),
        ]
    if scene.relation is None:
        (thing,) = scene.things
        pairs += [
            ("What colour is it?", thing.colour),
            ("What shape is it?", thing.shape),
            (f"Where is the {thing.name}?", scene.place),
            (f"Where is the {thing.shape}?", scene.place),
        ]
    else:
        a, b = scene.things
        for one, other, relation in ((a, b, scene.relation), (b, a, OPPOSITE[scene.relation])):
            answer = f"{relation} the {other.name}"
            pairs += [(f"Where is the {one.name}?", answer), (f"Where is the {one.shape}?", answer)]
    return pairs
