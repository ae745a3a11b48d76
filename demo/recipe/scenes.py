"""The demo task: rendered scenes with captions, questions and answers, and the combinations held out of training.

A scene has up to two flat-coloured shapes on a flat background of 128 x 128 pixels. A single shape has one of five
places; two shapes are 64 pixels apart along their relation's axis. Some scenes are empty.
"""

import random
from dataclasses import dataclass
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
# Direction from the second object to the first.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = ("none", "one", "two")

# The one background on which no training scene has an object, by its colour and shape. Every pair of these is in
# training: a prompt that leaves the colour out would otherwise teach that red triangles do not exist.
HELD_OUT_BACKGROUNDS = {
    (colour, shape): list(COLOURS)[(c + 1 + 2 * s) % len(COLOURS)]
    for c, colour in enumerate(COLOURS)
    for s, shape in enumerate(SHAPES)
}


@dataclass(frozen=True)
class World:
    """Shapes and colours (RGB) of scenes."""

    shapes: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]


TASK = World(SHAPES, COLOURS)
WIDER = World(tuple(INSIDE), COLOURS | MORE_COLOURS)


@dataclass(frozen=True)
class SceneObject:
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
    """The content of an image. `relation` is the position of the first of two objects relative to the second."""

    objects: tuple[SceneObject, ...]
    background: str
    place: str | None = None  # of a single object
    relation: str | None = None  # of two objects

    @property
    def held_out(self) -> bool:
        """Whether the scene has a combination that is held out of training."""
        return any(HELD_OUT_BACKGROUNDS.get((o.colour, o.shape)) == self.background for o in self.objects)


def random_scene(
    rng: random.Random,
    two: bool | None = None,
    held_out: bool | None = False,
    world: World = TASK,
    shared: str = "",
) -> Scene:
    """A random scene.

    Args:
        two: two objects or one; None is either.
        held_out: False is the training split, True the held-out split, None both.
        world: its shapes and colours.
        shared: what two objects have in common: "shape", "colour" or "both"; otherwise they differ in both.
    """
    while True:
        scene = _any_scene(rng, rng.random() < 0.5 if two is None else two, world, shared)
        if held_out is None or scene.held_out == held_out:
            return scene


def _any_scene(rng, two, world, shared):
    background, *colours = rng.sample(list(world.colours), 3)
    shapes = rng.sample(world.shapes, 2)
    sizes = [rng.choice(list(RADII)) for _ in range(2)]
    for values, name in ((shapes, "shape"), (colours, "colour")):
        if shared in (name, "both"):
            values[1] = values[0]
    middle = SIZE // 2
    if not two:
        place, (dx, dy) = rng.choice(list(PLACES.items()))
        return Scene((SceneObject(shapes[0], colours[0], sizes[0], middle + dx, middle + dy),), background, place=place)
    relation, (dx, dy) = rng.choice(list(RELATIONS.items()))
    objects = [
        SceneObject(shapes[k], colours[k], sizes[k], middle + sign * 32 * dx, middle + sign * 32 * dy)
        for k, sign in enumerate((1, -1))
    ]
    return Scene(tuple(objects), background, relation=relation)


def place_at(x: int, y: int) -> str:
    """The name of the place of an object's centre."""
    middle = SIZE // 2
    return next(name for name, (dx, dy) in PLACES.items() if (x, y) == (middle + dx, middle + dy))


def empty_scene(rng: random.Random, world: World = TASK) -> Scene:
    """A background without objects."""
    return Scene((), rng.choice(list(world.colours)))


@cache
def shape_mask(shape: str, radius: int, x: int, y: int) -> np.ndarray:
    """Coverage of a shape, float32 [SIZE, SIZE] in [0, 1], anti-aliased by 4 x 4 samples per pixel."""
    samples = (np.arange(4 * SIZE, dtype=np.float32) + 0.5) / 4
    u, v = (samples[None, :] - x) / radius, (samples[:, None] - y) / radius
    inside = INSIDE[shape](u, v)
    return inside.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3), dtype=np.float32)


def render_array(scene: Scene) -> np.ndarray:
    """The scene's image, uint8 [SIZE, SIZE, 3]."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = WIDER.colours[scene.background]
    for o in scene.objects:
        mask = shape_mask(o.shape, RADII[o.size], o.x, o.y)[..., None]
        image += mask * (np.float32(WIDER.colours[o.colour]) - image)
    return image.round().astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """The scene's image."""
    return Image.fromarray(render_array(scene))
