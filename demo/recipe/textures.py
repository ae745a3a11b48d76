"""Flat images of other kinds than scenes, which the autoencoders also learn: a user's images are no scenes.

Two colours each, half of them any and half of them named. Every kind has its ranges below; characters of TEST_GLYPHS
are held out of training.
"""

import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scenes import SIZE, WIDER

KINDS = ("stripes", "gradient", "checks", "noise", "glyphs")
WIDTHS = (16, 40)  # of stripes and of the cells of checks, in pixels; a token has 16
GRAIN = 24  # largest amplitude of noise, in levels of 0 to 255
GLYPHS = (48, 110)  # height of characters, in pixels
TEST_GLYPHS = "BGKQR2579&"
TRAIN_GLYPHS = "ACDEFHIJLMNOPSTUVWXYZ013468?!%#"
SAMPLES = 3  # per pixel and axis, for smooth edges


def texture(kind: str, rng: random.Random, test: bool = False) -> np.ndarray:
    """An image of a kind, uint8 [SIZE, SIZE, 3].

    Args:
        test: characters are those that training never shows.
    """
    a, b = two_colours(rng)
    if kind == "noise":
        return _noise(a, b, rng)
    share = {"stripes": _stripes, "gradient": _gradient, "checks": _checks}
    mask = _glyphs(rng, TEST_GLYPHS if test else TRAIN_GLYPHS) if kind == "glyphs" else share[kind](rng)
    return (a + mask[..., None] * (b - a)).round().astype(np.uint8)


def two_colours(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours, float32 [3] of 0 to 255, which differ visibly."""
    while True:
        a, b = (
            np.float32(rng.choice(list(WIDER.colours.values())) if rng.random() < 0.5 else _any_colour(rng))
            for _ in range(2)
        )
        if abs(a - b).max() >= 48:
            return a, b


def _any_colour(rng):
    return [rng.uniform(0, 255) for _ in range(3)]


@cache
def _samples():
    return (np.arange(SAMPLES * SIZE, dtype=np.float32) + 0.5) / SAMPLES


def _along(rng):
    """Coordinates in pixels along a direction; half of the directions are horizontal or vertical."""
    angle = rng.choice((0, np.pi / 2)) if rng.random() < 0.5 else rng.uniform(0, np.pi)
    return _samples()[None, :] * np.cos(angle) + _samples()[:, None] * np.sin(angle)


def _shrunk(values):
    return values.reshape(SIZE, SAMPLES, SIZE, SAMPLES).mean(axis=(1, 3), dtype=np.float32)


def _stripes(rng):
    """Regular or not; half of the regular ones start at the image's edge."""
    width, other, phase = rng.uniform(*WIDTHS), rng.uniform(*WIDTHS), rng.uniform(0, 80)
    if rng.random() < 0.6:
        width = other = rng.choice((16, 24, 32, round(width)))
        phase *= rng.randrange(2)
    return _shrunk((_along(rng) + phase) % (width + other) < width)


def _checks(rng):
    x, y = _samples()[None, :], _samples()[:, None]
    if rng.random() < 0.6:
        width = rng.choice((16, 24, 32, rng.randint(*WIDTHS)))
    else:
        angle, width = rng.uniform(0, np.pi / 2), rng.uniform(*WIDTHS)
        x, y = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 80), y * np.cos(angle) - x * np.sin(angle)
    return _shrunk((np.floor(x / width) + np.floor(y / width)) % 2)


def _gradient(rng):
    if rng.random() < 0.3:
        x, y = (rng.uniform(0, SIZE) for _ in range(2))
        values = np.hypot(_samples()[None, :] - x, _samples()[:, None] - y)
    else:
        values = _along(rng)
    return _shrunk((values - values.min()) / (values.max() - values.min()))


def _noise(a, b, rng):
    """A blur between two colours, with grain."""
    values = np.random.default_rng(rng.getrandbits(32))
    cells = rng.choice((1, 3, 5))
    coarse = Image.fromarray(values.random((cells, cells), dtype=np.float32))
    mask = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None].clip(0, 1)
    grain = rng.uniform(4, GRAIN) * values.standard_normal((SIZE, SIZE, rng.choice((1, 3))), dtype=np.float32)
    return (a + mask * (b - a) + grain).clip(0, 255).round().astype(np.uint8)


def _glyphs(rng, characters):
    height = rng.randint(*GLYPHS)
    font = ImageFont.load_default(2 * height)
    text = "".join(rng.choice(characters) for _ in range(max(1, round(1.4 * SIZE / height) - rng.randrange(2))))
    image = Image.new("L", (2 * SIZE, 2 * SIZE))
    left, top, right, bottom = font.getbbox(text)
    x = rng.uniform(-0.1, 1.1) * (2 * SIZE - right + left) - left
    y = rng.uniform(0, 1) * max(0, 2 * SIZE - bottom + top) - top
    ImageDraw.Draw(image).text((x, y), text, 255, font=font)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
