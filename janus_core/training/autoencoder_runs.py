"""Training the demo's two autoencoders from their configs."""

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from .. import image
from ..checkpoint.files import read_tensors
from ..checkpoint.load import VQ_PREFIX
from ..checkpoint.params import Shapes, vq_params
from ..networks.vq import VQModel, VQParams
from ..vae import SDXL_SCALE
from . import autoencoders
from .loop import LoopSettings, train


def train_vq(config: dict, folder: Path) -> Path:
    """Trains the VQ tokenizer in the config's phases and writes vq.safetensors; see configs/vq.json.

    A phase's `side` is the side of the crops in pixels; quantisation starts with the second phase.
    """
    torch.manual_seed(config["seed"])
    vq = VQModel(VQParams(**{**config["model"], "channels": tuple(config["model"]["channels"])}))
    first = config["phases"][0]
    autoencoders.initialise_vq(vq, autoencoders.picture_batch(config["seed"], 0, 64, first["side"])["pixels"])
    objective = autoencoders.VQObjective(vq)

    def started(number, batch_at):
        if number == 1:
            objective.start_codebook(batch_at(10**6 + i) for i in range(config["codebook_batches"]))
        objective.quantise = number > 0

    def reconstruct(pixels):
        return vq.decode(vq.encode(pixels))

    _phases(config, folder, objective, reconstruct, started)
    save_file({k: v.contiguous() for k, v in vq.state_dict().items()}, folder / "vq.safetensors")
    return folder / "vq.safetensors"


def train_vae(config: dict, folder: Path) -> Path:
    """Trains the TAESD-style VAE and writes vae.safetensors, the file that ComfyUI's Load VAE and load_vae read."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(config["seed"])
    vae = AutoencoderTiny()

    def reconstruct(pixels):
        return vae.decode(vae.encode(pixels).latents).sample

    _phases(config, folder, autoencoders.VAEObjective(vae), reconstruct)
    path = folder / "vae.safetensors"
    save_file(taesd_tensors(vae), path)
    return path


def taesd_tensors(vae) -> dict[str, torch.Tensor]:
    """The weights of an AutoencoderTiny under TAESD's names, bfloat16, with SDXL's scale.

    TAESD's decoder has a clamp as its layer 0, which diffusers applies outside of the layers.
    """
    tensors = {"vae_scale": torch.tensor(SDXL_SCALE), "vae_shift": torch.tensor(0.0)}
    for name, weight in vae.state_dict().items():
        part, _, index, rest = name.split(".", 3)
        index = int(index) + (part == "decoder")
        tensors[f"taesd_{part}.{index}.{rest}"] = weight.to(torch.bfloat16).contiguous()
    return tensors


def load_vq(path: str | Path) -> VQModel:
    """The VQ tokenizer of a vq.safetensors, for inference."""
    tensors = read_tensors(Path(path))
    vq = VQModel(vq_params(Shapes({VQ_PREFIX + name: tensor for name, tensor in tensors.items()})))
    vq.load_state_dict(tensors)
    return vq.eval().requires_grad_(False)


def _phases(config, folder, objective, reconstruct, started=lambda number, batch_at: None):
    for number, phase in enumerate(config["phases"]):
        phase = dict(phase)
        side, batch = phase.pop("side"), phase.pop("batch")
        seed = config["seed"] + number

        def batch_at(index, seed=seed, side=side, batch=batch):
            return autoencoders.picture_batch(seed, index, batch, side)

        started(number, batch_at)
        settings = LoopSettings(**{**config.get("loop", {}), **phase}, seed=seed)
        train(objective, batch_at, settings, folder / f"phase_{number}", sample=lambda path: _grid(path, reconstruct))


@torch.no_grad()
def _grid(path, reconstruct):
    pixels = autoencoders.picture_batch(99, 0, 8)["pixels"]
    rows = image.to_pictures(torch.cat((pixels, reconstruct(pixels).float())))
    picture_grid(rows, 8).save(path)


def picture_grid(pictures, columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size in rows on white."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for k, picture in enumerate(pictures):
        grid.paste(picture, (k % columns * (width + gap), k // columns * (height + gap)))
    return grid
