"""The demos' image autoencoders: the VQ tokenizer of the AR model and the TAESD-style VAE of the flow model."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from janus_core.networks.vq import GROUPS, VQModel, tokens_to_latent
from janus_core.training.objectives import image_token_loss

from .scenes import COLOURS, SIZE, random_scene, render_array

CROP = 16  # crops start at multiples of the token size


def reconstruction_loss(pixels, target):
    """mean |x - y| + mean (x - y)^2 over pixels in [-1, 1]."""
    error = pixels.float() - target.float()
    return error.abs().mean() + error.square().mean()


def moments_loss(z, weight: float = 0.1):
    """weight * sum over channels of mean^2 + (std - 1)^2: pulls latents [B, C, h, w] to the flow noise's moments."""
    z = z.float().transpose(0, 1).flatten(1)
    return weight * (z.mean(1).square() + (z.std(1) - 1).square()).sum()


def image_batch(seed: int, index: int, count: int, size: int = SIZE, both_splits: bool = False) -> dict:
    """Scenes of the training split or of both splits, cropped to `size` pixels around one of their shapes.

    Crops without a shape would be flat, and the gradients of group norms explode on flat images.

    Returns:
        {"pixels": float32 [count, 3, size, size] in [-1, 1]}.
    """
    rng = random.Random(f"{seed} {index}")
    images = []
    for _ in range(count):
        scene = random_scene(rng, held_out=None if both_splits else False)
        chosen = rng.choice(scene.objects)
        left, top = (
            min(max((centre - size // 2) // CROP * CROP + rng.choice((-CROP, 0, CROP)), 0), SIZE - size)
            for centre in (chosen.x, chosen.y)
        )
        images.append(render_array(scene)[top : top + size, left : left + size])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return {"pixels": pixels.contiguous(memory_format=torch.channels_last) / 127.5 - 1}


@torch.no_grad()
def initialise_vq(vq: VQModel, pixels, height: float = 1.0):
    """Initialises a VQ model so that the colours of flat images survive its norms from the first step.

    A group norm over three channels removes the colour of a flat image. So two channels of each group start as
    constants of +height and -height (the biases of the convolutions that write the residual stream), which makes the
    norm of the group's other channels nearly linear; groups of two channels are unchanged. The convolutions are scaled
    to preserve their input's variance; the encoder's vectors start with zero mean and unit variance over `pixels`.
    """
    for name, module in vq.named_modules():
        if not name.endswith(("conv_in", "sample.conv", "nin_shortcut")) or not isinstance(module, nn.Conv2d):
            continue
        module.weight *= 3**0.5  # PyTorch's default reduces the variance to a third
        group = module.out_channels // GROUPS
        if group > 2:
            module.bias[group - 2 :: group] += height
            module.bias[group - 1 :: group] -= height
    z = vq.quant_conv(vq.encoder(pixels))
    std, mean = torch.std_mean(z, dim=(0, 2, 3))
    vq.quant_conv.weight /= std[:, None, None, None]
    vq.quant_conv.bias.sub_(mean).div_(std)


PALETTE = torch.tensor(list(COLOURS.values())) / 127.5 - 1


@torch.no_grad()
def unique_patches(pixels, size: int):
    """The distinct patches of images [B, 3, H, W], each pixel as its nearest colour of the task.

    Returns:
        One-hot patches, float32 [n, size^2 * colours], so that distances count differing pixels; and the index of
        each image's patches among them, int64 [B, N], in raster order.
    """
    nearest = torch.cdist(pixels.permute(0, 2, 3, 1).reshape(-1, 3), PALETTE.to(pixels)).argmin(-1)
    B, _, H, W = pixels.shape
    patches = nearest.view(B, H // size, size, W // size, size).transpose(2, 3).reshape(-1, size * size)
    patches, inverse = patches.to(torch.uint8).unique(dim=0, return_inverse=True)
    return F.one_hot(patches.long(), len(PALETTE)).flatten(1).float(), inverse.view(B, -1)


@torch.no_grad()
def patch_tokens(pixels, centres, size: int):
    """The nearest cluster of every patch of images [B, 3, H, W], int64 [B, N]."""
    patches, inverse = unique_patches(pixels, size)
    return torch.cdist(patches, centres).argmin(-1)[inverse]


@torch.no_grad()
def patch_clusters(patches, count: int, rounds: int = 20):
    """k-means (Lloyd's algorithm from farthest-first centres) over distinct patches [n, D]: centres [count, D]."""
    distance = torch.full((len(patches),), torch.inf)
    centres = []
    nearest = torch.tensor(0)
    for _ in range(count):
        centres.append(patches[nearest])
        distance = torch.minimum(distance, (patches - centres[-1]).square().mean(1))
        nearest = distance.argmax()
    centres = torch.stack(centres)
    for _ in range(rounds):
        owner = torch.cdist(patches, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, patches)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def patch_codes(centres, dim: int, steps: int = 300, width: float = 0.1):
    """Codebook vectors of patch clusters: unit vectors [count, dim], similar for similar patches.

    The first principal components, whitened, then pushed apart by a Gaussian repulsion, so that codes remain distinct
    in bfloat16, which resolves about 0.004 of a unit vector.
    """
    centred = centres - centres.mean(0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    start = centred @ components[:dim].T
    start = F.normalize(start / start.std(0) + 1e-3 * torch.randn_like(start), dim=-1)
    codes = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([codes], 0.02)
    apart = 1 - torch.eye(len(codes))
    for _ in range(steps):
        unit = F.normalize(codes, dim=-1)
        repulsion = (torch.exp((unit @ unit.T - 1) / width**2) * apart).sum(1).mean()
        loss = repulsion + 10 * (1 - (unit * start).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.normalize(codes.detach(), dim=-1)


class VQObjective(nn.Module):
    """The VQ tokenizer around a fixed codebook of patch clusters.

    The encoder learns to classify each patch's cluster: cross-entropy over the codes, by cosine similarity. The decoder
    learns to reconstruct the image from the clusters' codes; details that a code lacks come from its neighbours.

    Args:
        centres: patch clusters [codebook_size, D], in the order of the codebook.
        part: the trained part: "encoder", "decoder", or "coarse": the decoder's two lowest levels with a temporary
            linear layer to pixels, which learn the meaning of the codes in a fraction of the time.
    """

    def __init__(self, vq: VQModel, centres, part: str, temperature: float = 0.05):
        super().__init__()
        self.vq = vq.to(memory_format=torch.channels_last)
        self.register_buffer("centres", centres, persistent=False)
        self.part, self.temperature = part, temperature
        trained = {
            "encoder": ("encoder.", "quant_conv."),
            "decoder": ("decoder.", "post_quant_conv."),
            "coarse": ("decoder.conv_in.", "decoder.mid.", "decoder.conv_blocks.0.", "decoder.conv_blocks.1.", "post_"),
        }[part]
        for name, parameter in vq.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        if part == "coarse":
            scale = vq.params.downscale // 4
            self.to_pixels = nn.Sequential(
                nn.Conv2d(vq.params.channels[-2], 3 * scale**2, 1),
                nn.PixelShuffle(scale),
            )

    def forward(self, batch):
        vq, pixels = self.vq, batch["pixels"]
        tokens = patch_tokens(pixels, self.centres, vq.params.downscale)
        codebook = vq.codebook(pixels)
        if self.part == "encoder":
            z = F.normalize(vq.quant_conv(vq.encoder(pixels)).float(), dim=1).flatten(2).transpose(1, 2)
            return {"tokens": image_token_loss(z @ codebook.T / self.temperature, tokens)}
        latent = tokens_to_latent(tokens, codebook, [size // vq.params.downscale for size in pixels.shape[-2:]])
        x = vq.post_quant_conv(latent)
        if self.part == "coarse":
            decoder = vq.decoder
            x = decoder.conv_in(x)
            for block in (*decoder.mid, *decoder.conv_blocks[:2]):
                x = block(x)
            x = self.to_pixels(x)
        else:
            x = vq.decoder(x)
        return {"reconstruction": reconstruction_loss(x, pixels)}


class VAEObjective(nn.Module):
    """Reconstruction of diffusers' AutoencoderTiny with latents of zero mean and unit variance.

    The decoder learns from slightly noisy latents, because in use its latents come from a model.
    """

    def __init__(self, vae, noise: float = 0.1):
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)
        self.noise = noise

    def forward(self, batch):
        z = self.vae.encoder(batch["pixels"])
        moments = moments_loss(z)
        x = self.vae.decoder(z + self.noise * torch.randn_like(z))
        return {"reconstruction": reconstruction_loss(x, batch["pixels"]), "moments": moments}
