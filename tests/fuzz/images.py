"""Fuzz cases of image files: damaged, of other formats, deep greys, and what is no file at all."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from janus_core.image import crop_to_multiple, open_image, to_pixels, understanding_pixels

from .case import OK, REFUSED, SAME, Case, flip, pick

RAMP = np.linspace(0, 1, 24 * 32).reshape(24, 32)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
OTHER = ("PPM", "SGI", "DDS", "EPS", "PDF", "ICO", "TGA", "PCX", "JPEG2000")


def reading(path: Path) -> tuple:
    """What reading a file gives: its size and the mean grey of its four quarters, in steps of 8."""
    image = open_image(path)
    assert image.mode == "RGB"
    pixels = understanding_pixels(image, 32)
    if min(image.size) >= 8:
        crop_to_multiple(to_pixels(image)[None], 8)
    assert pixels.shape == (3, 32, 32) and pixels.isfinite().all()
    values = torch.from_numpy(np.array(image)).float().mean(-1)
    h, w = values.shape
    quarters = [
        values[: h // 2, : w // 2],
        values[: h // 2, w // 2 :],
        values[h // 2 :, : w // 2],
        values[h // 2 :, w // 2 :],
    ]
    return image.size, tuple(round(float(q.mean()) / 8) for q in quarters if q.numel())


def ramp(mode: str) -> Image.Image:
    """A grey ramp from black to white, as RGB or with more bits."""
    if mode == "I;16":
        return Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    if mode == "I":
        return Image.fromarray((RAMP * 65535).round().astype(np.int32))
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32))
    grey = Image.fromarray((RAMP * 255).round().astype(np.uint8))
    return grey if mode == "L" else grey.convert(mode)


def encode(image: Image.Image, form: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **kwargs)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make(rng: random.Random, work: Path) -> Case:
    work.mkdir(exist_ok=True)
    reference = work.parent / "ramp.png"
    if not reference.exists():
        reference.write_bytes(encode(ramp("RGB"), "PNG"))
    path = work / "x.png"
    kind = pick(rng, (flipped, flipped, cut, chunks, chunks, deep, modes, others, special, numbers, tags))
    label, expected = kind(path, rng)
    return Case(f"{kind.__name__}: {label}", lambda: reading(path), expected, reading(reference))


def flipped(path, rng):
    form = pick(rng, FORMATS)
    data = encode(ramp(pick(rng, ("RGB", "L"))), form)
    path.write_bytes(flip(rng, data, 0, pick(rng, (40, 120, len(data)))))
    return form, (REFUSED, OK)


def cut(path, rng):
    form = pick(rng, FORMATS)
    data = encode(ramp("RGB"), form)
    path.write_bytes(data[: rng.randrange(len(data))])
    return form, (REFUSED, OK)


def chunks(path, rng):
    """PNG chunks that are too short, too long, or expand to gigabytes."""
    data = encode(ramp(pick(rng, ("RGB", "L", "RGBA"))), "PNG")
    kind = pick(
        rng, (b"pHYs", b"gAMA", b"tRNS", b"cHRM", b"iCCP", b"zTXt", b"tEXt", b"iTXt", b"eXIf", b"PLTE", b"acTL")
    )
    value = pick(
        rng, (b"", b"\0", b"\0\0\0", rng.randbytes(8), rng.randbytes(40), b"key\0\0" + zlib.compress(bytes(2**26)))
    )
    position = pick(rng, (33, len(data) - 12))
    path.write_bytes(data[:position] + chunk(kind, value) + data[position:])
    return f"{kind} of {len(value)} bytes", (REFUSED, OK)


def deep(path, rng):
    """Grey of 16 and 32 bits looks as it does in 8."""
    mode, form = pick(rng, (("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"), ("F", "TIFF")))
    path.write_bytes(encode(ramp(mode), form))
    return f"{mode} {form}", (SAME,)


def modes(path, rng):
    """All other modes of the same ramp."""
    mode, form = pick(
        rng, (("L", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("CMYK", "TIFF"), ("L", "TIFF"))
    )
    path.write_bytes(encode(ramp(mode), form))
    return f"{mode} {form}", (SAME,)


def others(path, rng):
    form = pick(rng, OTHER)
    path.write_bytes(
        flip(rng, encode(ramp("RGB"), form), 0, pick(rng, (1, 60))) if rng.random() < 0.5 else encode(ramp("RGB"), form)
    )
    return form, (REFUSED,)


def special(path, rng):
    """What is not a file with an image in it."""
    action = pick(rng, ("fifo", "folder", "device", "missing", "empty", "loop", "text", "dangling"))
    if action == "fifo":
        os.mkfifo(path)
    elif action == "folder":
        path.mkdir()
    elif action == "device":
        path.symlink_to("/dev/zero")
    elif action == "loop":
        path.symlink_to(path)
    elif action == "dangling":
        path.symlink_to(path.parent / "nowhere")
    elif action == "empty":
        path.write_bytes(b"")
    elif action == "text":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n" if rng.random() < 0.5 else "<svg></svg>")
    return action, (REFUSED,)


def numbers(path, rng):
    """Float and integer images whose values have no meaning as greys."""
    value = pick(rng, (np.nan, np.inf, -5.0, 1e9))
    mode = "F" if not np.isfinite(value) else pick(rng, ("F", "I"))
    values = np.full((8, 8), value)
    path.write_bytes(encode(Image.fromarray(values.astype(np.float32 if mode == "F" else np.int32)), "TIFF"))
    return f"{mode} of {value}", (REFUSED,)


def tags(path, rng):
    """Sizes that a header only claims, and EXIF data that is none."""
    if rng.random() < 0.5:
        w, h = pick(rng, ((2**31 - 1, 1), (100000, 100000), (0, 5), (1, 2**31 - 1), (2**16, 2**16)))
        head = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b"\0" * 100))
            + chunk(b"IEND", b"")
        )
        return f"{w}x{h}", (REFUSED,)
    exif = pick(rng, (b"Exif\0\0" + rng.randbytes(30), b"Exif\0\0II*\0" + rng.randbytes(30), b"\xff" * 100))
    path.write_bytes(encode(ramp("RGB"), pick(rng, ("JPEG", "WEBP")), exif=exif))
    return "exif", (REFUSED, OK)
