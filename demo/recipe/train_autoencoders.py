"""Training the demos' two autoencoders from their configs."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from janus_core import image
from janus_core.checkpoint import VQ_PREFIX, read_checkpoint
from janus_core.checkpoint.files import read_header, read_tensors
from janus_core.networks.vq import VQModel, VQParams, tokens_to_latent
from janus_core.training.loop import train
from janus_core.training.settings import LoopSettings
from janus_core.training.validation import image_grid
from janus_core.vae import SDXL_SCALE, load_vae

from . import autoencoders
from .autoencoders import TOKEN
from .codebook import make_codebook, patch_tokens

LATENT_WIDTH = 0.4  # standard deviation of the flow model's latents, see demo/README.md


def train_vq(config: dict, folder: Path) -> Path:
    """Trains the VQ tokenizer and writes vq.safetensors; see configs/vq.json.

    The codebook is built first, from patches of textures and of scenes of both splits; with `both_splits` the networks
    are trained on both as well (without captions). `start` names the folder of an AR model from whose VQ the networks
    go on. A phase's `part`, `squared` and `focus` are VQObjective's, its `size` is that of the crops in pixels, its
    `textures` their share.
    """
    torch.manual_seed(config["seed"])
    path = folder / "codebook.safetensors"
    if not path.is_file():
        save_file(make_codebook(TOKEN, config["model"]["codebook_dim"], config["codebook"]), path)
    codebook = read_tensors(path)
    model = {**config["model"], "codebook_size": len(codebook["codes"])}
    vq = _new_vq(model)
    first = config["phases"][0]
    start = vq_tensors(config["start"]) if "start" in config else None
    autoencoders.initialise_vq(vq, autoencoders.image_batch(config["seed"], 0, 64, first["size"])[0], start)
    vq.quantize.embedding.weight.data.copy_(codebook["codes"])

    patches = torch.cat((codebook["scenes"], codebook["textures"]))

    def tokens_of(pixels, is_texture):
        """Of scenes among the patches of scenes, of textures among all."""
        tokens = patch_tokens(pixels, codebook["scenes"], TOKEN)
        if is_texture.any():
            tokens[is_texture] = patch_tokens(pixels[is_texture], patches, TOKEN)
        return {"tokens": tokens, "is_texture": is_texture}

    def objective_of(part, **settings):
        return autoencoders.VQObjective(vq, part, **settings)

    def reconstruct(pixels, is_texture):
        grid = [size // TOKEN for size in pixels.shape[-2:]]
        latent = tokens_to_latent(tokens_of(pixels, is_texture)["tokens"], codebook["codes"], grid)
        return vq.decode(latent.to(vq.post_quant_conv.weight.device)).cpu()

    _phases(config, folder, objective_of, reconstruct, tokens_of)
    weights = {name: weight.contiguous() for name, weight in vq.state_dict().items()}
    save_file(weights, folder / "vq.safetensors", metadata={"model": json.dumps(model)})
    return folder / "vq.safetensors"


def train_vae(config: dict, folder: Path) -> Path:
    """Trains the TAESD-style VAE and writes vae.safetensors, which ComfyUI's Load VAE and load_vae read.

    `start` names such a file to go on from; without it the weights are random. A phase's `part` is VAEObjective's.
    """
    from diffusers import AutoencoderTiny

    torch.manual_seed(config["seed"])
    vae = AutoencoderTiny()
    if config.get("start"):
        vae.load_state_dict(load_vae(config["start"]).vae.state_dict())

    def reconstruct(pixels, _):
        return vae.decode(vae.encode(pixels.to(vae.device)).latents).sample.cpu()

    _phases(config, folder, partial(autoencoders.VAEObjective, vae), reconstruct)
    path = folder / "vae.safetensors"
    save_file(taesd_tensors(vae), path)
    return path


def taesd_tensors(vae) -> dict[str, torch.Tensor]:
    """The weights of an AutoencoderTiny under TAESD's names, bfloat16, with the scale from its latents to SDXL's.

    Layer 0 of TAESD's decoder is a clamp, which diffusers applies outside of the layers.
    """
    tensors = {"vae_scale": torch.tensor(SDXL_SCALE / LATENT_WIDTH), "vae_shift": torch.tensor(0.0)}
    for name, weight in vae.state_dict().items():
        part, _, index, rest = name.split(".", 3)  # "encoder.layers.0.weight"
        index = int(index) + (part == "decoder")
        tensors[f"taesd_{part}.{index}.{rest}"] = weight.to(torch.bfloat16).contiguous()
    return tensors


def vq_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of the VQ tokenizer of an AR model's folder."""
    tensors = read_checkpoint(folder).tensors
    return {name.removeprefix(VQ_PREFIX): t for name, t in tensors.items() if name.startswith(VQ_PREFIX)}


def load_vq(path: str | Path) -> VQModel:
    """The VQ tokenizer of a vq.safetensors, for inference."""
    path = Path(path)
    vq = _new_vq(json.loads(read_header(path)[0]["model"]))
    vq.load_state_dict(read_tensors(path))
    return vq.eval().requires_grad_(False)


def _new_vq(model: dict) -> VQModel:
    return VQModel(VQParams(**{**model, "channels": tuple(model["channels"])}))


def _phases(config, folder, objective_of, reconstruct, more_of=lambda *images: {}):
    """Trains phase after phase. `more_of` gives what a batch has besides the pixels, from an image_batch."""
    both = config.get("both_splits", False)
    for number, phase in enumerate(config["phases"]):
        phase = dict(phase)
        size, batch, part = phase.pop("size"), phase.pop("batch"), phase.pop("part", None)
        textures, seed = phase.pop("textures"), config["seed"] + number
        objective = objective_of(part, **{key: phase.pop(key) for key in ("squared", "focus") if key in phase})

        def batch_at(index, seed=seed, size=size, batch=batch, textures=textures):
            images = autoencoders.image_batch(seed, index, batch, size, both, textures)
            return {"pixels": images[0], **more_of(*images)}

        settings = LoopSettings(**{**config.get("loop", {}), **phase}, seed=seed)
        train(objective, batch_at, settings, folder / f"phase_{number}", sample=lambda path: _grid(path, reconstruct))


@torch.no_grad()
def _grid(path, reconstruct):
    """Writes eight scenes and eight textures, each above its reconstruction."""
    batches = [autoencoders.image_batch(99, 0, 8, textures=share) for share in (0.0, 1.0)]
    pixels, is_texture = (torch.cat(part) for part in zip(*batches))
    restored = reconstruct(pixels, is_texture).float()
    rows = [part for k in (0, 8) for part in (pixels[k : k + 8], restored[k : k + 8])]
    image_grid(image.to_images(torch.cat(rows)), 8).save(path, format="PNG")
