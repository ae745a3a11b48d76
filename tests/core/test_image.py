"""Image preprocessing: what is cropped, padded and rotated."""

import pytest
import torch
from PIL import Image

from janus_core.errors import ImageError
from janus_core.image import crop_to_multiple, open_image, understanding_pixels

GREY, RED = (127, 127, 127), (255, 0, 0)


def test_crops_are_centred():
    pixels = torch.arange(7 * 10).reshape(1, 1, 7, 10)
    assert torch.equal(crop_to_multiple(pixels, 4), pixels[..., 1:5, 1:9])
    assert torch.equal(crop_to_multiple(pixels, 1), pixels)
    with pytest.raises(ImageError, match="10x7"):
        crop_to_multiple(pixels, 8)


@pytest.mark.parametrize("size", [(100, 50), (50, 100)])
def test_padding_is_centred(size):
    """A 2:1 image covers the middle half of the square, up to the pixels that the resizing blends."""
    pixels = understanding_pixels(Image.new("RGB", size, RED), 96)
    across = pixels[:, :, 48] if size[0] > size[1] else pixels[:, 48]
    grey, red = (torch.tensor(colour)[:, None] / 127.5 - 1 for colour in (GREY, RED))
    assert torch.allclose(across[:, :24], grey) and torch.allclose(across[:, 72:], grey)
    assert torch.allclose(across[:, 24:72], red)


def test_the_shorter_edge_is_rounded_down_to_at_least_14_pixels():
    for size, rows in (((1000, 10), 14), ((1000, 997), 95)):
        pixels = understanding_pixels(Image.new("RGB", size, RED), 96)
        assert (pixels[0, :, 48] == 1).sum() == rows


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == (10, 20)
