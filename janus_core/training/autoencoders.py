"""The two picture autoencoders of the demos: the VQ tokenizer of the AR model and the TAESD-style VAE of the flow."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..networks.vq import GROUPS, VQModel, latent_to_tokens
from . import objectives
from .scenes import SIZE, draw_array, random_scene

CROP = 16  # crops start at multiples of the token size


def picture_batch(seed: int, index: int, count: int, side: int = SIZE) -> dict:
    """Scenes of the training split, or crops of them around one of their shapes.

    Crops without a shape would be flat, and group norms have exploding gradients on flat pictures.

    Returns:
        {"pixels": float32 [count, 3, side, side] in [-1, 1]}.
    """
    rng = random.Random(f"{seed} {index}")
    pictures = []
    for _ in range(count):
        scene = random_scene(rng)
        thing = rng.choice(scene.things)
        left, top = (
            min(max((centre - side // 2) // CROP * CROP + rng.choice((-CROP, 0, CROP)), 0), SIZE - side)
            for centre in (thing.x, thing.y)
        )
        pictures.append(draw_array(scene)[top : top + side, left : left + side])
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return {"pixels": pixels.contiguous(memory_format=torch.channels_last) / 127.5 - 1}


@torch.no_grad()
def initialise_vq(vq: VQModel, pixels, height: float = 1.0):
    """Initialises a VQ model so that the colours of flat pictures come through from the first step.

    A group norm over few channels removes a flat picture's colour. So two channels of each group start as constants
    of +height and -height (the biases of the convolutions that write the residual stream): beside them, the norm of
    the group's other channels is nearly linear; groups of two channels are left alone. Those convolutions keep the
    variance of what they read, and the encoder's vectors start with zero mean and unit variance over `pixels`.
    """
    for name, module in vq.named_modules():
        if not name.endswith(("conv_in", "sample.conv", "nin_shortcut")) or not isinstance(module, nn.Conv2d):
            continue
        module.weight *= 3**0.5  # PyTorch's default keeps a third of the variance
        group = module.out_channels // GROUPS
        if group > 2:
            module.bias[group - 2 :: group] += height
            module.bias[group - 1 :: group] -= height
    z = vq.quant_conv(vq.encoder(pixels))
    std, mean = torch.std_mean(z, dim=(0, 2, 3))
    vq.quant_conv.weight /= std[:, None, None, None]
    vq.quant_conv.bias.sub_(mean).div_(std)


class VQObjective(nn.Module):
    """Reconstruction through the codebook, or around it while `quantise` is off (see `start_codebook`)."""

    def __init__(self, vq: VQModel):
        super().__init__()
        self.vq = vq.to(memory_format=torch.channels_last)
        self.quantise = False

    def forward(self, batch):
        vq = self.vq
        z = F.normalize(vq.quant_conv(vq.encoder(batch["pixels"])).float(), dim=1)
        losses = {}
        if self.quantise:
            codebook = vq.codebook(z)
            nearest = codebook[latent_to_tokens(z, codebook)].transpose(1, 2).reshape(z.shape)
            losses["codebook"] = objectives.codebook_loss(z, nearest)
            z = z + (nearest - z).detach()
        losses["reconstruction"] = objectives.reconstruction_loss(vq.decoder(vq.post_quant_conv(z)), batch["pixels"])
        return losses

    @torch.no_grad()
    def start_codebook(self, batches, rounds: int = 10):
        """Makes the codebook by spherical k-means over the encoder's vectors, and turns quantisation on."""
        device = self.vq.quantize.embedding.weight.device
        z = [self.vq.quant_conv(self.vq.encoder(b["pixels"].to(device))).float() for b in batches]
        z = F.normalize(torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in z]), dim=-1)
        size = self.vq.params.codebook_size
        codebook = z[torch.randperm(len(z), device=device)[:1]]
        for _ in range(size - 1):  # k-means++ without chance: the vector farthest from what is there
            if len(codebook) == 1:
                distance = 1 - z @ codebook[0]
            farthest = z[distance.argmax()]
            codebook = torch.cat((codebook, farthest[None]))
            distance = torch.minimum(distance, 1 - z @ farthest)
        for _ in range(rounds):
            tokens = (z @ codebook.T).argmax(-1)
            sums = torch.zeros_like(codebook).index_add_(0, tokens, z)
            used = torch.bincount(tokens, minlength=size) > 0
            codebook = torch.where(used[:, None], F.normalize(sums, dim=-1), codebook)
        self.vq.quantize.embedding.weight.copy_(codebook)
        self.quantise = True


class VAEObjective(nn.Module):
    """Reconstruction of diffusers' AutoencoderTiny with latents of zero mean and unit variance.

    The decoder learns from slightly noisy latents, since those it will get come from a model.
    """

    def __init__(self, vae, noise: float = 0.1):
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)
        self.noise = noise

    def forward(self, batch):
        z = self.vae.encoder(batch["pixels"])
        moments = objectives.moments_loss(z)
        x = self.vae.decoder(z + self.noise * torch.randn_like(z))
        return {"reconstruction": objectives.reconstruction_loss(x, batch["pixels"]), "moments": moments}
