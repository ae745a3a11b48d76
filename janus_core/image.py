"""Conversion between Pillow images and pixel tensors."""

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

MIN_SIZE = 14  # of an image that the vision tower reads, before padding
GREY = (127, 127, 127)


def open_image(path) -> Image.Image:
    """Reads an image file as RGB, rotated as its EXIF data says. Raises ImageError when it cannot be read."""
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ImageError(f"There is no image at {path}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as an image ({error}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; transparent images are composited onto white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def understanding_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """The vision tower's input, float32 [3, size, size] in [-1, 1].

    As in the original VLMImageProcessor: Pillow bicubic on 8-bit RGB resizes the longer edge to `size` and the other
    in proportion, rounded down and at least 14; grey 127 pads the image, centred, to a square.
    """
    width, height = image.size
    scale = max(width, height)
    w, h = (max(int(length / scale * size), MIN_SIZE) for length in (width, height))
    canvas_size = max(w, h)
    canvas = Image.new("RGB", (canvas_size, canvas_size), GREY)
    resized = to_rgb(image).resize((w, h), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((canvas_size - w) // 2, (canvas_size - h) // 2))
    return to_pixels(canvas)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An image as float32 [3, H, W] in [-1, 1]."""
    array = np.array(to_rgb(image), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in [-1, 1], clamped, as Pillow images."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def array_to_image(array: torch.Tensor) -> Image.Image:
    """Float values [H, W, C] in [0, 1] with 1, 3 or 4 channels (ComfyUI's IMAGE) as an RGB image."""
    array = (array.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    if array.ndim != 3 or 0 in array.shape or array.shape[-1] not in (1, 3, 4):
        raise ImageError(f"An image of shape {list(array.shape)} cannot be used: it needs 1, 3 or 4 channels.")
    return to_rgb(Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array))


def truncated_image(array: torch.Tensor) -> Image.Image:
    """As `array_to_image`, but values are rounded down to 8 bits, as Janus-Pro-R1's code does."""
    slack = 1e-4  # float32's error of a value that was 8 bits before
    return array_to_image((array.float().clamp(0, 1) * 255 + slack).floor() / 255)


def cropped_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """The centre of an image for the VQ encoder: float32 [3, size, size] in [-1, 1].

    As Janus-Pro-R1's code prepares an image to generate it again: halved by a box filter while the shorter edge is at
    least twice `size`, then Pillow bicubic to `size` for the shorter edge, then a centre crop.
    """
    image = to_rgb(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    w, h = (max(round(length * scale), size) for length in image.size)
    left, top = (w - size) // 2, (h - size) // 2
    resized = image.resize((w, h), Image.Resampling.BICUBIC)
    return to_pixels(resized.crop((left, top, left + size, top + size)))


def crop_to_multiple(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Centre crop of [B, C, H, W] to a height and width that are multiples of `multiple`.

    Raises:
        ImageError: the image is smaller than `multiple`.
    """
    H, W = pixels.shape[-2:]
    h, w = H // multiple * multiple, W // multiple * multiple
    if not h or not w:
        raise ImageError(f"The image is {W}x{H}: width and height must each be at least {multiple} pixels.")
    top, left = (H - h) // 2, (W - w) // 2
    return pixels[..., top : top + h, left : left + w]
