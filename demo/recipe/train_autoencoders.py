"""Training the demos' two autoencoders from their configs."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file

from janus_core import image
from janus_core.checkpoint.files import read_header, read_tensors
from janus_core.networks.vq import VQModel, VQParams, tokens_to_latent
from janus_core.training.loop import LoopSettings, train
from janus_core.training.validation import image_grid
from janus_core.vae import SDXL_SCALE

from . import autoencoders
from .scene_data import scene_pixels
from .scenes import random_scene


def train_vq(config: dict, folder: Path) -> Path:
    """Trains the VQ tokenizer and writes vq.safetensors; see configs/vq.json.

    The codebook is built first, from patches of scenes of both splits; with `both_splits` the networks are trained on
    both as well (without captions). A phase's `part` is VQObjective's, its `size` that of the crops in pixels.
    """
    torch.manual_seed(config["seed"])
    params = vq_params(config["model"])
    path = folder / "codebook.safetensors"
    if not path.is_file():
        save_file(make_codebook(params, config["seed"], config["codebook_scenes"]), path)
    codebook = read_tensors(path)
    vq = VQModel(params)
    first = config["phases"][0]
    autoencoders.initialise_vq(vq, autoencoders.image_batch(config["seed"], 0, 64, first["size"])["pixels"])
    vq.quantize.embedding.weight.data.copy_(codebook["codes"])

    def objective_of(part):
        return autoencoders.VQObjective(vq, codebook["centres"], part)

    def reconstruct(pixels):
        tokens = autoencoders.patch_tokens(pixels, codebook["centres"], params.downscale)
        grid = [size // params.downscale for size in pixels.shape[-2:]]
        latent = tokens_to_latent(tokens, codebook["codes"], grid)
        return vq.decode(latent.to(vq.post_quant_conv.weight.device)).cpu()

    _phases(config, folder, objective_of, reconstruct)
    weights = {name: weight.contiguous() for name, weight in vq.state_dict().items()}
    save_file(weights, folder / "vq.safetensors", metadata={"model": json.dumps(config["model"])})
    return folder / "vq.safetensors"


def make_codebook(params: VQParams, seed: int, scenes: int) -> dict[str, torch.Tensor]:
    """Patch clusters of random scenes and their codes: {"centres": [size, D], "codes": [size, dim]}."""
    rng = random.Random(seed)
    sampled = [random_scene(rng, held_out=None) for _ in range(scenes)]
    patches = []
    for start in range(0, scenes, 100):
        patches.append(autoencoders.unique_patches(scene_pixels(sampled[start : start + 100]), params.downscale)[0])
    centres = autoencoders.patch_clusters(torch.cat(patches).unique(dim=0), params.codebook_size)
    return {"centres": centres, "codes": autoencoders.patch_codes(centres, params.codebook_dim)}


def train_vae(config: dict, folder: Path) -> Path:
    """Trains the TAESD-style VAE and writes vae.safetensors, which ComfyUI's Load VAE and load_vae read."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(config["seed"])
    vae = AutoencoderTiny()

    def reconstruct(pixels):
        return vae.decode(vae.encode(pixels.to(vae.device)).latents).sample.cpu()

    objective = autoencoders.VAEObjective(vae)
    _phases(config, folder, lambda part: objective, reconstruct)
    path = folder / "vae.safetensors"
    save_file(taesd_tensors(vae), path)
    return path


def taesd_tensors(vae) -> dict[str, torch.Tensor]:
    """The weights of an AutoencoderTiny under TAESD's names, bfloat16, with SDXL's scale.

    Layer 0 of TAESD's decoder is a clamp, which diffusers applies outside of the layers.
    """
    tensors = {"vae_scale": torch.tensor(SDXL_SCALE), "vae_shift": torch.tensor(0.0)}
    for name, weight in vae.state_dict().items():
        part, _, index, rest = name.split(".", 3)
        index = int(index) + (part == "decoder")
        tensors[f"taesd_{part}.{index}.{rest}"] = weight.to(torch.bfloat16).contiguous()
    return tensors


def vq_params(model: dict) -> VQParams:
    """The `model` part of a VQ config."""
    return VQParams(**{**model, "channels": tuple(model["channels"])})


def load_vq(path: str | Path) -> VQModel:
    """The VQ tokenizer of a vq.safetensors, for inference."""
    path = Path(path)
    vq = VQModel(vq_params(json.loads(read_header(path)[0]["model"])))
    vq.load_state_dict(read_tensors(path))
    return vq.eval().requires_grad_(False)


def _phases(config, folder, objective_of, reconstruct):
    both = config.get("both_splits", False)
    for number, phase in enumerate(config["phases"]):
        phase = dict(phase)
        size, batch, part = phase.pop("size"), phase.pop("batch"), phase.pop("part", None)
        seed = config["seed"] + number

        def batch_at(index, seed=seed, size=size, batch=batch):
            return autoencoders.image_batch(seed, index, batch, size, both)

        settings = LoopSettings(**{**config.get("loop", {}), **phase}, seed=seed)
        objective = objective_of(part)
        train(objective, batch_at, settings, folder / f"phase_{number}", sample=lambda path: _grid(path, reconstruct))


@torch.no_grad()
def _grid(path, reconstruct):
    pixels = autoencoders.image_batch(99, 0, 8)["pixels"]
    rows = image.to_images(torch.cat((pixels, reconstruct(pixels).float())))
    image_grid(rows, 8).save(path, format="PNG")
