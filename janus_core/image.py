"""Pictures to pixels and back."""

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

MIN_SIDE = 14
GREY = (127, 127, 127)


def open_image(path) -> Image.Image:
    """Reads a picture file as RGB, turned upright. Raises ImageError when it cannot be read."""
    try:
        with Image.open(path) as picture:
            return to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise ImageError(f"There is no picture at {path}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as a picture ({error}).") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB of any mode; transparent pictures are laid on white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return picture.convert("RGB")


def understanding_pixels(picture: Image.Image, size: int) -> torch.Tensor:
    """What the vision tower reads: float32 [3, size, size] in [-1, 1].

    Pillow bicubic on 8-bit RGB, the long side to `size`, the other truncated and at least 14, centred on a square of
    grey 127 (published VLMImageProcessor).
    """
    width, height = picture.size
    scale = max(width, height)
    resized = (max(int(width / scale * size), MIN_SIDE), max(int(height / scale * size), MIN_SIDE))
    picture = to_rgb(picture).resize(resized, Image.Resampling.BICUBIC)
    side = max(resized)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(picture, ((side - resized[0]) // 2, (side - resized[1]) // 2))
    return to_pixels(square)


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """float32 [3, H, W] in [-1, 1] of a picture."""
    array = np.array(to_rgb(picture), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pillow pictures of pixels [B, 3, H, W] in [-1, 1] (clamped)."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def array_to_image(array: torch.Tensor) -> Image.Image:
    """A picture of float values [H, W, C] in [0, 1], C 1, 3 or 4 (the convention of ComfyUI's IMAGE)."""
    array = (array.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    if array.ndim != 3 or 0 in array.shape or array.shape[-1] not in (1, 3, 4):
        raise ImageError(f"A picture of shape {list(array.shape)} cannot be used: it needs 1, 3 or 4 channels.")
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
    """Centre crop of [B, C, H, W] to sides that are multiples. Raises ImageError for a smaller picture."""
    H, W = pixels.shape[-2:]
    h, w = H // multiple * multiple, W // multiple * multiple
    if not h or not w:
        raise ImageError(f"The picture is {W}x{H}: each side needs at least {multiple} pixels.")
    top, left = (H - h) // 2, (W - w) // 2
    return pixels[..., top : top + h, left : left + w]
