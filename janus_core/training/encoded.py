"""Images as training reads them, cached on disk: pixels in 8 bits, and VQ tokens or VAE latents.

The name of a cached file is a hash of the image file's bytes, of what is done to it, and of the encoder's weights; a
cache can thus be shared between runs, and is never stale.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from .. import image
from ..checkpoint.files import read_header, read_tensors
from ..checkpoint.write import save_tensors
from ..errors import CheckpointError, ImageError
from ..files import file_hash

VERSION = 1  # of the preparation below; changing it makes every cached file a new one
PARTS = ("understanding", "generation", "codes")


class EncodedImages:
    """The prepared images of a run.

    Args:
        folder: of the cache.
        size: width and height of the model's images, in pixels.
        encode: a function from pixels [1, 3, size, size] in [-1, 1] to codes [1, ...]; None if no images are generated.
        encoder: the fingerprint of what `encode` computes (see `fingerprint`).
        parts: of PARTS, what to prepare: the padded image that a question is about, the cropped one to generate, and
            the codes of the latter.
    """

    def __init__(self, folder: Path, size: int, encode: Callable | None, encoder: str, parts: Iterable[str] = PARTS):
        self.folder, self.size, self.encode = Path(folder), size, encode
        self.parts = tuple(part for part in PARTS if part in parts)
        self.preparation = json.dumps([VERSION, size, encoder if "codes" in self.parts else "", self.parts])
        self.files, self.hashes = {}, {}

    @torch.no_grad()
    def prepare(self, paths: Iterable[Path], rank: int = 0, processes: int = 1):
        """Encodes the images that the cache lacks; of several processes each encodes its part.

        Raises:
            ImageError: an image cannot be read.
            OutputError: the cache cannot be written.
        """
        for number, path in enumerate(dict.fromkeys(paths)):
            self.hashes[path] = file_hash(path, ImageError)
            key = hashlib.sha256(f"{self.preparation} {self.hashes[path]}".encode()).hexdigest()
            self.files[path] = self.folder / f"{key[:40]}.safetensors"
            if number % processes == rank and not self._is_cached(self.files[path]):
                try:
                    prepared = self._prepared(path)
                except ImageError as error:
                    raise ImageError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
                save_tensors(prepared, self.files[path], {"format": "pt"})
        self.encode = None  # worker processes need no encoder

    def _is_cached(self, file: Path) -> bool:
        try:
            return file.exists() and set(read_header(file)[1]) == set(self.parts)
        except CheckpointError:  # damaged
            return False

    def _prepared(self, path: Path) -> dict[str, torch.Tensor]:
        opened = image.open_image(path)
        values = {}
        if "understanding" in self.parts:
            values["understanding"] = to_bytes(image.understanding_pixels(opened, self.size))
        if "generation" in self.parts or "codes" in self.parts:
            pixels = image.cropped_pixels(opened, self.size)
            values["generation"] = to_bytes(pixels)
        if "codes" in self.parts:
            codes = self.encode(pixels[None])[0].cpu()
            values["codes"] = codes if codes.is_floating_point() else codes.to(torch.int32)
        return {part: values[part].contiguous() for part in self.parts}

    def stacked(self, examples, part: str) -> torch.Tensor:
        """One part of several examples' images: codes as stored, pixels float32 [B, 3, size, size] in [-1, 1]."""
        values = torch.stack([read_tensors(self.files[one.path])[part] for one in examples])
        return values if part == "codes" else values.float() / 127.5 - 1


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] that come from 8 bits, as these 8 bits."""
    return ((pixels + 1) * 127.5).round().to(torch.uint8)


def fingerprint(tensors: dict[str, torch.Tensor], sample: int | None = None) -> str:
    """A hash of tensors by name.

    Args:
        sample: the number of values of each tensor, at equal distances, that are hashed; None for all.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().flatten()
        if sample and len(tensor) > sample:
            tensor = tensor[:: len(tensor) // sample]
        digest.update(f"{name} {list(tensors[name].shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
