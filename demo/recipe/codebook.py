"""The VQ tokenizer's codebook: the patches of scenes, clusters of those of textures, and a code for each.

Clusters are computed in whole numbers, which float32 holds exactly, so that they do not depend on the machine or on its
number of threads. Codes are computed in float64 without random numbers and rounded at the end.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F

from .scenes import random_scene, render_array
from .textures import KINDS, texture

LEVELS = 64  # of a pixel's channel in a patch; a product of two patches of 16 x 16 pixels stays below 2^24
CHUNK = 4096
COVERED = 0.004  # mean squared error, of the range of pixels, up to which a patch of scenes is enough for a texture


def to_patches(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Images [B, 3, H, W] in [-1, 1] as patches of whole numbers 0 to 63: float32 [B * N, size^2 * 3], raster order."""
    levels = ((pixels.float() + 1) * (LEVELS / 2)).floor().clamp(0, LEVELS - 1)
    B, C, H, W = levels.shape
    cells = levels.view(B, C, H // size, size, W // size, size).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(-1, size * size * C)


def nearest(patches: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The nearest of centres [K, D] to each of patches [n, D], the first of several: int64 [n]."""
    norms, centres = centres.square().sum(1), centres.T.contiguous()
    parts = [(norms - 2 * part @ centres).argmin(1) for part in patches.split(CHUNK)]
    return torch.cat(parts)


@torch.no_grad()
def patch_tokens(pixels: torch.Tensor, centres: torch.Tensor, size: int) -> torch.Tensor:
    """The nearest of the codebook's patches to every patch of images [B, 3, H, W], int64 [B, N]."""
    return nearest(to_patches(pixels, size), centres.float()).view(len(pixels), -1)


@torch.no_grad()
def patch_clusters(patches: torch.Tensor, counts: torch.Tensor, first: torch.Tensor, rounds: int) -> torch.Tensor:
    """k-means (Lloyd's algorithm) from the centres `first` [K, D], rounded to whole numbers: float32 [K, D].

    A cluster without patches stays where it is.

    Args:
        counts: how often each patch counts, int64 [n].
    """
    centres = first.clone()
    for _ in range(rounds):
        owner = nearest(patches, centres)
        sums = torch.zeros(centres.shape, dtype=torch.float64).index_add_(0, owner, patches.double() * counts[:, None])
        sizes = torch.zeros(len(centres), dtype=torch.long).index_add_(0, owner, counts)[:, None]
        centres = torch.where(sizes > 0, (sums / sizes.clamp(min=1)).round().float(), centres)
    return centres


def make_codebook(size: int, dim: int, config: dict) -> dict[str, torch.Tensor]:
    """The patches that scenes have, clusters of the patches of textures, and a code for each.

    Args:
        size: width of a patch, in pixels.
        dim: of the codes.
        config: seed; scenes and textures, from how many images of each (textures of each kind); texture_codes, how many
            clusters; rounds of k-means.

    Returns:
        {"scenes", "textures": uint8 [n, size^2 * 3], "codes": [K, dim] of both, in this order}.
    """
    rng = random.Random(config["seed"])
    scenes = (render_array(random_scene(rng, held_out=None)) for _ in range(config["scenes"]))
    centres = _patches(scenes, size).unique(dim=0)
    textures = centres[:0]
    if config["texture_codes"]:
        images = (texture(KINDS[k % len(KINDS)], rng) for k in range(len(KINDS) * config["textures"]))
        others = _patches(images, size)
        error = (others - centres[nearest(others, centres)]).square().mean(1)
        others, counts = others[error > COVERED * LEVELS**2].unique(dim=0, return_counts=True)
        first = others[rng.sample(range(len(others)), config["texture_codes"])]
        textures = patch_clusters(others, counts, first, config["rounds"])
    codes = patch_codes(torch.cat((centres, textures)), dim)
    return {"scenes": centres.to(torch.uint8), "textures": textures.to(torch.uint8), "codes": codes}


def _patches(images, size: int) -> torch.Tensor:
    """Patches of uint8 images [H, W, 3]."""
    return torch.cat([to_patches(to_pixels(image[None]), size) for image in images])


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Images uint8 [n, H, W, 3] as float32 [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def patch_codes(centres: torch.Tensor, dim: int, steps: int = 60, width: float = 0.1) -> torch.Tensor:
    """Codebook vectors of patches: unit vectors [K, dim], similar for similar patches.

    The first principal components, each divided by the square root of its standard deviation, and a constant, which
    preserves the length of the others; then pushed apart by a Gaussian repulsion, so that codes remain distinct in
    bfloat16, which resolves about 0.004 of a unit vector.
    """
    centred = centres.double() - centres.double().mean(0)
    values, components = torch.linalg.eigh(centred.T @ centred / len(centres))
    components = components[:, -(dim - 1) :].flip(1)
    components = components * components.sum(0).sign()  # eigenvectors have no sign of their own
    parts = centred @ components / values[-(dim - 1) :].flip(0).clamp(min=1e-9) ** 0.25
    length = parts.norm(dim=1, keepdim=True).mean()
    codes = F.normalize(torch.cat((parts, length.expand(len(parts), 1)), dim=1), dim=1)
    for _ in range(steps):
        codes = F.normalize(codes + torch.cat([_push(part, codes, width) for part in codes.split(CHUNK // 4)]), dim=1)
    return codes.bfloat16().float()


def _push(part: torch.Tensor, codes: torch.Tensor, width: float) -> torch.Tensor:
    """How the repulsion of all codes [K, dim] moves some of them [n, dim], at most a tenth of the width each."""
    weight = torch.exp((part @ codes.T - 1) / width**2)
    push = part * weight.sum(1, keepdim=True) - weight @ codes
    length = push.norm(dim=1, keepdim=True)
    return push * (0.1 * width / length.clamp(min=0.1 * width))
