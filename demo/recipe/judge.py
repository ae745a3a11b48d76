"""The pixel judge: finds the colours, shapes and positions in a demo image without any model."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from PIL import Image

from .captions import Caption
from .scenes import COLOURS, PLACES, RELATIONS, SHAPES, SIZE, Scene, shape_mask

PALETTE = np.array(list(COLOURS.values()), np.float32)
NAMES = list(COLOURS)
MIN_PIXELS = 80  # smaller regions are ignored; the smallest shape of the task has 390
MIN_OVERLAP = 0.75  # intersection over union with an ideal shape that a region needs to have that shape
GRID = 32
NEAR = 16  # pixels up to which a region lies at an object's place
LARGE = 38  # the longer edge over which a region is large, in pixels; small shapes have up to 30, large ones from 46 on


@dataclass(frozen=True)
class Found:
    """A region that the judge found; `shape` is None if it resembles no shape."""

    shape: str | None
    colour: str
    x: float
    y: float
    pixels: int
    extent: int  # the longer edge of its bounding box, in pixels


@dataclass(frozen=True)
class Verdict:
    """What is right in an image: one entry per object of the prompt in `colours` and `shapes`."""

    background: bool
    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]
    relation: bool  # two objects: the image has exactly these, each right, in the right relation


def find_objects(image: Image.Image) -> tuple[str, list[Found]]:
    """The background's colour and the shapes of an image, largest first.

    Every pixel counts as its nearest palette colour. The background is the commonest colour at the border; every
    connected region of other pixels is an object of the region's commonest colour.
    """
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE)), np.float32)
    nearest = ((pixels[:, :, None] - PALETTE) ** 2).sum(-1).argmin(-1)
    border = (nearest[:2], nearest[-2:], nearest[:, :2], nearest[:, -2:])
    background = np.bincount(np.concatenate([strip.ravel() for strip in border])).argmax()
    found = []
    for region in regions(nearest != background):
        if region.sum() < MIN_PIXELS:
            continue
        rows, columns = np.nonzero(region)
        colour = NAMES[np.bincount(nearest[region]).argmax()]
        extent = 1 + max(int(np.ptp(rows)), int(np.ptp(columns)))
        found.append(Found(nearest_shape(region), colour, columns.mean(), rows.mean(), len(rows), extent))
    return NAMES[background], sorted(found, key=lambda found: -found.pixels)


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected regions of a bool mask, each a bool mask."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.maximum.reduce(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        spread = np.where(mask, spread, 0)
        spread = np.where(mask, spread.ravel()[spread - 1], 0)  # jump to the label's own label, which saves rounds
        if (spread == labels).all():
            return [labels == label for label in np.unique(labels) if label]
        labels = spread


def nearest_shape(region: np.ndarray) -> str | None:
    """The shape whose silhouette overlaps a region best inside its bounding box."""
    cropped = _crop(region)
    overlaps = {shape: (cropped & ideal).sum() / (cropped | ideal).sum() for shape, ideal in _silhouettes().items()}
    best = max(overlaps, key=overlaps.get)
    return best if overlaps[best] >= MIN_OVERLAP else None


@lru_cache(maxsize=1)
def _silhouettes():
    return {shape: _crop(shape_mask(shape, 48, SIZE // 2, SIZE // 2) > 0.5) for shape in SHAPES}


def _crop(region):
    rows, columns = np.nonzero(region)
    box = region[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.asarray(Image.fromarray(box).resize((GRID, GRID), Image.Resampling.NEAREST))


def judge(image: Image.Image, scene: Scene) -> Verdict:
    """Compares an image with the scene of its prompt."""
    background, found = find_objects(image)
    named = scene.objects
    candidates = found[: len(named)] + [Found(None, "", 0, 0, 0, 0)] * (len(named) - len(found))

    def right(order):
        return sum((f.colour == t.colour) + (f.shape == t.shape) for f, t in zip(order, named))

    matched = max(permutations(candidates), key=right)
    relation = len(found) == len(named) and right(matched) == 2 * len(named)
    if relation and scene.relation is not None:
        relation = related(*matched, scene.relation)
    return Verdict(
        background=background == scene.background,
        colours=tuple(f.colour == t.colour for f, t in zip(matched, named)),
        shapes=tuple(f.shape == t.shape for f, t in zip(matched, named)),
        relation=relation,
    )


def related(a: Found, b: Found, relation: str) -> bool:
    """Whether the first region lies so relative to the second."""
    dx, dy = RELATIONS[relation]
    return (a.x - b.x) * dx + (a.y - b.y) * dy > abs((a.x - b.x) * dy) + abs((a.y - b.y) * dx)


def follows(image: Image.Image, scene: Scene, says: Caption) -> bool:
    """Whether an image has all that a caption says of its scene, and as many objects."""
    background, found = find_objects(image)
    if says.background and background != scene.background or len(found) != len(scene.objects):
        return False
    seen = {background, *(f.colour for f in found), *(f.shape for f in found)}
    if seen & set(says.absent):
        return False

    def fits(order):
        objects = zip(order, scene.objects, says.colours, says.shapes, says.sizes)
        right = all(
            (not colour or f.colour == o.colour)
            and (f.shape is not None if not shape else f.shape == o.shape)
            and (not size or (f.extent > LARGE) == (o.size == "large"))
            for f, o, colour, shape, size in objects
        )
        if not right or not says.place or not found:
            return right
        if scene.relation:
            return related(*order, scene.relation)
        return at_place(order[0], scene.place)

    return any(fits(order) for order in permutations(found))


def at_place(found: Found, place: str) -> bool:
    """Whether a region's centre is nearest to this place."""
    middle = SIZE // 2
    return place == min(
        PLACES, key=lambda p: abs(found.x - middle - PLACES[p][0]) + abs(found.y - middle - PLACES[p][1])
    )


ATTRIBUTES = {"colour", "shape", "size"}


@dataclass(frozen=True)
class Comparison:
    """What an image has of a scene.

    Attributes:
        background: whether its colour is right.
        count: whether there are as many objects.
        objects: of each of the scene's objects the right ones of ATTRIBUTES, None if there is nothing at its place.
    """

    background: bool
    count: bool
    objects: tuple[set[str] | None, ...]


def compare(image: Image.Image, scene: Scene) -> Comparison:
    """Compares an image with a scene, object by object at their places."""
    background, found = find_objects(image)
    objects = []
    for o in scene.objects:
        near = [f for f in found if max(abs(f.x - o.x), abs(f.y - o.y)) < NEAR]
        if not near:
            objects.append(None)
            continue
        f = near[0]
        right = {"colour": f.colour == o.colour, "shape": f.shape == o.shape}
        right["size"] = (f.extent > LARGE) == (o.size == "large")
        objects.append({name for name, value in right.items() if value})
    return Comparison(background == scene.background, len(found) == len(scene.objects), tuple(objects))
