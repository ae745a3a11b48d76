"""The pixel judge: finds the colours, shapes and positions in a demo image without any model."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from PIL import Image

from .scenes import COLOURS, RELATIONS, SHAPES, SIZE, Scene, shape_mask

PALETTE = np.array(list(COLOURS.values()), np.float32)
NAMES = list(COLOURS)
MIN_PIXELS = 80  # smaller regions are ignored; the smallest shape of the task has 390
MIN_OVERLAP = 0.75  # intersection over union with an ideal shape that a region needs to have that shape
GRID = 32


@dataclass(frozen=True)
class Found:
    """A region that the judge found; `shape` is None if it resembles no shape."""

    shape: str | None
    colour: str
    x: float
    y: float
    pixels: int


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
        found.append(Found(nearest_shape(region), colour, columns.mean(), rows.mean(), len(rows)))
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
    candidates = found[: len(named)] + [Found(None, "", 0, 0, 0)] * (len(named) - len(found))

    def right(order):
        return sum((f.colour == t.colour) + (f.shape == t.shape) for f, t in zip(order, named))

    matched = max(permutations(candidates), key=right)
    relation = len(found) == len(named) and right(matched) == 2 * len(named)
    if relation and scene.relation is not None:
        dx, dy = RELATIONS[scene.relation]
        a, b = matched
        relation = (a.x - b.x) * dx + (a.y - b.y) * dy > abs((a.x - b.x) * dy) + abs((a.y - b.y) * dx)
    return Verdict(
        background=background == scene.background,
        colours=tuple(f.colour == t.colour for f, t in zip(matched, named)),
        shapes=tuple(f.shape == t.shape for f, t in zip(matched, named)),
        relation=relation,
    )
