"""Image files that are damaged, deep, huge, of other formats, or no files; each with what must come of it."""

import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

import janus_core.image
from janus_core import captions
from janus_core.errors import ImageError, OutputError
from janus_core.image import open_image, to_images, to_rgb, write_image
from tests.fuzz import images
from tests.fuzz.case import REFUSED, message_problem
from tests.refusals import one_sentence


def refused(path, *words):
    with one_sentence(*words, str(path), error=ImageError):
        images.reading(path)


@pytest.mark.parametrize("mode,form", [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"), ("F", "TIFF")])
def test_grey_of_16_and_32_bits_is_scaled(tmp_path, mode, form):
    path = tmp_path / "x.png"
    path.write_bytes(images.encode(images.ramp(mode), form))
    grey = np.array(open_image(path))[..., 0].astype(int)
    assert abs(grey - np.array(images.ramp("L")).astype(int)).max() <= 1


def test_transparent_grey_of_16_bits_is_white(tmp_path):
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "x.png", transparency=700)
    assert open_image(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def test_integers_of_8_bits_in_32(tmp_path):
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "x.tiff")
    assert open_image(tmp_path / "x.tiff").getpixel((0, 0)) == (200, 200, 200)


def test_16_bits_that_pillow_opens_as_32_are_scaled(tmp_path, monkeypatch):
    """Pillow before 11.3 opens such a PNG in mode I; only its format then tells dark values from 8 bits."""
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "x.png")
    reader = to_rgb

    def as_before(opened):
        older = Image.fromarray(np.asarray(opened).astype(np.int32))
        older.format = opened.format
        return reader(older)

    monkeypatch.setattr(janus_core.image, "to_rgb", as_before)
    assert open_image(tmp_path / "x.png").getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 300, 1e9])
def test_floats_that_are_no_greys(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "x.tiff")
    refused(tmp_path / "x.tiff")


@pytest.mark.parametrize("form", ["PPM", "SGI", "DDS", "EPS", "ICO", "TGA", "PCX"])
def test_only_common_formats_are_opened(tmp_path, form):
    path = tmp_path / "x.png"
    path.write_bytes(images.encode(images.ramp("RGB"), form))
    refused(path, "PNG, JPEG")


@pytest.mark.parametrize("kind", [b"pHYs", b"gAMA", b"tRNS", b"cHRM", b"iCCP", b"zTXt"])
@pytest.mark.parametrize("value", [b"", b"\0", b"key\0\0" + images.zlib.compress(bytes(2**26))])
def test_png_chunks(tmp_path, kind, value):
    """They are refused or ignored, but raise nothing else."""
    data = images.encode(images.ramp("L"), "PNG")
    path = tmp_path / "x.png"
    path.write_bytes(data[:33] + images.chunk(kind, value) + data[33:])
    try:
        images.reading(path)
    except ImageError as error:
        assert message_problem(str(error)) is None


SPECIAL = {
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
    "a loop": (lambda path: path.symlink_to(path), "cannot be opened"),
    "nothing": (lambda path: None, "no file"),
    "an empty file": (lambda path: path.touch(), "damaged"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_image_file(tmp_path, name):
    create, words = SPECIAL[name]
    create(tmp_path / "x.png")
    refused(tmp_path / "x.png", words)


def test_cut_files_and_claimed_sizes(tmp_path):
    """The fuzzer's own cases that must be refused."""
    for number in range(6):
        work = tmp_path / str(number)
        work.mkdir()
        label, expected = images.tags(work / "x.png", random.Random(number))
        if expected == (REFUSED,):
            refused(work / "x.png")


def test_images_from_python():
    for image in (None, "x.png", np.zeros((4, 4, 3)), Image.new("RGB", (0, 5))):
        with pytest.raises(ImageError):
            to_rgb(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_no_black_image(value):
    with pytest.raises(ImageError, match="not finite"):
        to_images(torch.full((1, 3, 4, 4), value))


def test_images_with_one_caption_between_them(tmp_path):
    for name in ("ok.png", "ok.jpg", "other.png", ".hidden.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = captions.image_files(tmp_path)
    assert [path.name for path in found] == ["ok.jpg", "ok.png", "other.png"]
    problem = "ok.jpg and ok.png share one caption file: rename one of them."
    assert captions.conflicts(found) == {tmp_path / "ok.png": problem, tmp_path / "ok.jpg": problem}


def test_a_caption_replaces_a_link_and_does_not_follow_it(tmp_path):
    outside = tmp_path / "outside.txt"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.txt").symlink_to(outside)
    captions.write_caption(folder / "x.png", "a red circle \ud800")
    assert not outside.exists() and not (folder / "x.txt").is_symlink()
    assert captions.read_caption(folder / "x.png") == "a red circle ?"
    (folder / "y.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ImageError, match="UTF-8"):
        captions.read_caption(folder / "y.png")


def test_an_image_is_not_written_over_a_folder_or_a_device(tmp_path):
    for path in (tmp_path, "/dev/null", tmp_path / "a\0b.png"):
        with pytest.raises(OutputError):
            write_image(Image.new("RGB", (8, 8)), path, {})
    assert not list(tmp_path.iterdir())
