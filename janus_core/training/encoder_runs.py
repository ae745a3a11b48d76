"""Pretraining the demos' understanding encoder: what SigLIP is for the published models, a small tower on scenes.

It learns to name, at every patch, what covers the patch, and of what and how many things the picture is made. As SigLIP
has seen more than the published models are asked about, its scenes have more shapes and colours than the task's: with
many of each it learns to tell them apart by themselves, and sees the task's held-out pairs rightly.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ..networks.siglip import SiglipParams, VisionTower
from .build import initialise_tower, matmul_attention
from .loop import LoopSettings, train
from .scene_data import scene_pixels
from .scenes import RADII, SIZE, WIDER, Scene, random_scene, shape_mask

PLACES = 5  # columns and rows of thing centres: 0 for no thing, then quarters of the picture
CLASSES = {  # at every patch; 0 is no thing but for the first and the last
    "background": len(WIDER.colours),
    "shape": 1 + len(WIDER.shapes),
    "colour": 1 + len(WIDER.colours),
    "size": 1 + len(RADII),
    "column": PLACES,
    "row": PLACES,
    "count": 2,
}


def patch_labels(scene: Scene, side: int) -> torch.Tensor:
    """What is to be named at every patch of `side` pixels, int64 [patches, len(CLASSES)], in raster order."""
    grid = SIZE // side
    labels = torch.zeros(grid * grid, len(CLASSES), dtype=torch.long)
    colours, sizes = list(WIDER.colours), list(RADII)
    labels[:, 0] = colours.index(scene.background)
    labels[:, -1] = len(scene.things) - 1
    for thing in scene.things:
        mask = torch.from_numpy(shape_mask(thing.shape, RADII[thing.size], thing.x, thing.y))
        covered = (mask.view(grid, side, grid, side) > 0.5).any(3).any(1).flatten()
        named = (WIDER.shapes.index(thing.shape), colours.index(thing.colour), sizes.index(thing.size))
        quarters = (4 * thing.x // SIZE, 4 * thing.y // SIZE)
        labels[covered, 1:-1] = 1 + torch.tensor([*named, *quarters])
    return labels


class EncoderObjective(nn.Module):
    """Cross-entropy of every class at every patch, through linear layers that are thrown away.

    A batch is {"pixels": [B, 3, S, S], "labels": int64 [B, patches, len(CLASSES)]}.
    """

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.tower = tower
        width = tower.vision_tower.params.width
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASSES.items()})

    def forward(self, batch):
        features = self.tower(batch["pixels"])
        targets = batch["labels"].flatten(0, 1).unbind(-1)
        return {
            name: F.cross_entropy(head(features).flatten(0, 1).float(), target)
            for (name, head), target in zip(self.heads.items(), targets)
        }


def train_encoder(config: dict, folder: Path) -> Path:
    """Trains the encoder and writes encoder.safetensors, which model configs name; see configs/encoder.json."""
    torch.manual_seed(config["seed"])
    params = SiglipParams(**config["siglip"])
    tower = VisionTower(params, attention=matmul_attention)
    initialise_tower(tower)

    def batch_at(index):
        rng = random.Random(f"{config['seed']} {index}")
        scenes = [random_scene(rng, world=WIDER) for _ in range(config["rows"])]
        labels = torch.stack([patch_labels(scene, params.patch_size) for scene in scenes])
        return {"pixels": scene_pixels(scenes), "labels": labels}

    settings = LoopSettings(**config["loop"], seed=config["seed"])
    train(EncoderObjective(tower), batch_at, settings, folder / "run")
    path = folder / "encoder.safetensors"
    save_file({name: weight.contiguous() for name, weight in tower.state_dict().items()}, path)
    return path
