"""Image files, and conversion between Pillow images and pixel tensors."""

import io
import json
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from . import __version__
from .errors import ImageError, library_errors
from .files import os_reason, regular_file, user_path, write_atomically

Image.init()
FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF") if name in Image.OPEN)
MIN_SIZE = 14  # of an image that the vision tower reads, before padding
MAX_RATIO = 100  # of the edges of an image that is scaled by its shorter one
GREY = (127, 127, 127)


def open_image(path) -> Image.Image:
    """Reads an image file as RGB with 8 bits, rotated as its EXIF data says.

    Raises:
        ImageError: there is no such file, it is damaged, too large, or not of one of FORMATS.
    """
    path = regular_file(user_path(path, ImageError), ImageError)
    return _decoded(path, path)


def decode_image(data: bytes, name: str, most_pixels: int) -> Image.Image:
    """The image in the bytes of a file, as `open_image` reads it.

    Args:
        name: for messages.
        most_pixels: an image with more is refused before it is decoded.

    Raises:
        ImageError: see open_image.
    """
    return _decoded(io.BytesIO(data), name, most_pixels)


def _decoded(file, name, most_pixels: int | None = None) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise ImageError(f"it has {image.width}x{image.height} pixels, at most {most_pixels} are allowed.")
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format  # which the copy lacks
            return to_rgb(upright)
    except ImageError as error:
        raise ImageError(f"{name} cannot be used: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} cannot be read: it is damaged, or not an image in {', '.join(FORMATS)}.") from None
    except MemoryError:
        raise ImageError(f"{name} is too large for the memory: use a smaller image.") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise ImageError(f"{name} cannot be read as an image ({os_reason(error)}).") from None


def write_image(image: Image.Image, path: Path, settings: dict, temporary_folder: Path | None = None):
    """Writes a PNG file as a whole, with the settings that it was made with in its metadata (see write_atomically).

    Raises:
        OutputError: the file cannot be written.
    """
    info = PngInfo()
    info.add_itxt("parameters", json.dumps(settings, ensure_ascii=False).encode("utf-8", "replace").decode())
    info.add_itxt("Software", f"janus_core {__version__}")
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=info), temporary_folder)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits of any mode; transparent images are composited onto white.

    Integers of 16 bits are divided by 257, float values are taken as 0 to 1, or as 0 to 255 where they exceed 1.

    Raises:
        ImageError: it is not a Pillow image, it is empty, or its values are outside of these ranges.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(f"An image must be a Pillow image, not {type(image).__name__}.")
    if 0 in image.size:
        raise ImageError(f"The image is {image.width}x{image.height}: it is empty.")
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(image)
    with library_errors(ImageError, "The image cannot be converted to RGB"):
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """RGB of a grey image with 16 or 32 bits."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ImageError("Some of its values are negative, over 65535 or not finite: save it with 8 or 16 bits.")
    if image.mode == "F":
        if values.max() > 255:
            raise ImageError("Its float values are over 255: scale them to 0 to 1.")
        scale = 255 if values.max() <= 1 else 1
    else:
        is_8_bit = image.mode == "I" and image.format != "PNG" and values.max() <= 255
        scale = 1 if is_8_bit else 1 / 257
    grey = (values * scale).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def understanding_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """The vision tower's input, float32 [3, size, size] in [-1, 1].

    As in the original VLMImageProcessor: Pillow bicubic on 8-bit RGB resizes the longer edge to `size` and the other
    in proportion, rounded down and at least 14; grey 127 pads the image, centred, to a square.
    """
    image = to_rgb(image)
    width, height = image.size
    scale = max(width, height)
    w, h = (max(int(length / scale * size), MIN_SIZE) for length in (width, height))
    canvas_size = max(w, h)
    canvas = Image.new("RGB", (canvas_size, canvas_size), GREY)
    resized = image.resize((w, h), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((canvas_size - w) // 2, (canvas_size - h) // 2))
    return to_pixels(canvas)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An image as float32 [3, H, W] in [-1, 1]."""
    array = np.array(to_rgb(image), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in [-1, 1], clamped, as Pillow images.

    Raises:
        ImageError: see check_pixels.
    """
    check_pixels(pixels)
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def check_pixels(pixels: torch.Tensor):
    """Raises ImageError unless decoded pixels are finite; an image decoder that overflows would give a black image."""
    if not pixels.isfinite().all():
        raise ImageError("The decoded image is not finite: use bf16 or fp32 weights, or another VAE.")


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

    Raises:
        ImageError: it cannot be used (see to_rgb), or one edge is over MAX_RATIO times the other.
    """
    image = to_rgb(image)
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ImageError(f"The image is {image.width}x{image.height}, too narrow to be generated again: crop it.")
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


def check_size(width: int, height: int, patch: int, positions: int):
    """Raises ImageError when an image of this size is too large to generate.

    Args:
        width, height: of the image, in pixels.
        patch: edge of the square that one position of the model stands for, in pixels.
        positions: of the model, for prompt and image.
    """
    if -(-width // patch) * -(-height // patch) >= positions:
        side = isqrt(positions - 1) * patch
        most = f"the model's {positions} positions are enough for about {side}x{side}"
        raise ImageError(f"An image of {width}x{height} is too large: {most}.")


def check_latents(latents, channels: int, stride: int = 1, images: tuple[int, ...] = ()):
    """Raises ImageError unless latents are finite numbers [B, channels, h, w], h and w multiples of `stride`.

    Args:
        images: the values that B may have; any when empty.
    """
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        raise ImageError(f"Latents must be a tensor of floating-point numbers, not {type(latents).__name__}.")
    shape = list(latents.shape)
    if latents.dim() != 4 or 0 in shape or shape[1] != channels or any(side % stride for side in shape[2:]):
        raise ImageError(
            f"Latents of shape {shape} do not fit: they need {channels} channels, and a height and width that are "
            f"multiples of {stride}."
        )
    if images and shape[0] not in images:
        raise ImageError(f"Latents of shape {shape} are not for {' or '.join(map(str, images))} images.")
    if not latents.isfinite().all():
        raise ImageError("The latents are not finite.")
