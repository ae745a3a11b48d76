"""Pretraining the demos' understanding encoder, a small vision tower, on scenes; in the originals it is SigLIP.

It learns to classify what covers every patch, and the background and number of objects of the image. Like SigLIP, it is
trained on more than the models are asked about: more shapes and colours than the task's. With this variety it learns to
tell shapes and colours apart independently, and classifies the task's held-out pairs correctly.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from janus_core.networks.siglip import SiglipParams, VisionTower
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings

from .new_models import initialise_tower, matmul_attention
from .scene_data import mixed_scene, scene_pixels
from .scenes import RADII, SIZE, WIDER, Scene, shape_mask

POSITIONS = 5  # columns and rows of object centres: 0 for no object, then quarters of the image
CLASSES = {  # at every patch; 0 is no object, except for background and count
    "background": len(WIDER.colours),
    "shape": 1 + len(WIDER.shapes),
    "colour": 1 + len(WIDER.colours),
    "size": 1 + len(RADII),
    "column": POSITIONS,
    "row": POSITIONS,
    "count": 3,
}


def patch_labels(scene: Scene, size: int) -> torch.Tensor:
    """The classes at every patch of `size` pixels, int64 [patches, len(CLASSES)], in raster order."""
    grid = SIZE // size
    labels = torch.zeros(grid * grid, len(CLASSES), dtype=torch.long)
    colours, sizes = list(WIDER.colours), list(RADII)
    labels[:, 0] = colours.index(scene.background)
    labels[:, -1] = len(scene.objects)
    for o in scene.objects:
        mask = torch.from_numpy(shape_mask(o.shape, RADII[o.size], o.x, o.y))
        covered = (mask.view(grid, size, grid, size) > 0.5).any(3).any(1).flatten()
        attributes = (WIDER.shapes.index(o.shape), colours.index(o.colour), sizes.index(o.size))
        quarters = (4 * o.x // SIZE, 4 * o.y // SIZE)
        labels[covered, 1:-1] = 1 + torch.tensor([*attributes, *quarters])
    return labels


class EncoderObjective(nn.Module):
    """Cross-entropy of every class at every patch, with linear heads for training only.

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
        scenes = [mixed_scene(rng, world=WIDER) for _ in range(config["rows"])]
        labels = torch.stack([patch_labels(scene, params.patch_size) for scene in scenes])
        return {"pixels": scene_pixels(scenes), "labels": labels}

    settings = LoopSettings(**config["loop"], seed=config["seed"])
    train(EncoderObjective(tower), batch_at, settings, folder / "run")
    path = folder / "encoder.safetensors"
    save_file({name: weight.contiguous() for name, weight in tower.state_dict().items()}, path)
    return path
