"""The demos' image autoencoders: the VQ tokenizer of the AR model and the TAESD-style VAE of the flow model."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from janus_core.networks.vq import GROUPS, VQModel
from janus_core.training.objectives import image_token_loss

from .codebook import to_pixels
from .scenes import SIZE, Scene, random_scene, render_array
from .textures import KINDS, texture

TOKEN = 16  # width of a token, in pixels; crops of scenes start at multiples of it
FLAT = 6  # standard deviation up to which a crop counts as flat, in levels of 0 to 255


def reconstruction_loss(pixels, target, squared: float = 1.0, focus: float = 0.0):
    """mean |x - y| + squared * mean (x - y)^2 over pixels [B, 3, H, W] in [-1, 1].

    A token's pixels weigh 1 + focus where the target is not flat.
    """
    error = (pixels.float() - target.float()).abs()
    error = error + squared * error.square()
    if not focus:
        return error.mean()
    height = F.max_pool2d(target.float(), TOKEN) + F.max_pool2d(-target.float(), TOKEN)
    weight = 1 + focus * (height.amax(1, keepdim=True) > 2 * FLAT / 127.5)
    weight = (weight / weight.mean()).repeat_interleave(TOKEN, 2).repeat_interleave(TOKEN, 3)
    return (weight * error).mean()


def moments_loss(z, weight: float = 0.1):
    """weight * sum over channels of mean^2 + (std - 1)^2: pulls latents [B, C, h, w] to the flow noise's moments."""
    z = z.float().transpose(0, 1).flatten(1)
    return weight * (z.mean(1).square() + (z.std(1) - 1).square()).sum()


def image_batch(
    seed: int, index: int, count: int, size: int = SIZE, both_splits: bool = False, textures: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images to reconstruct, crops of scenes and textures.

    Args:
        both_splits: scenes of both splits instead of the training split.
        textures: their share.

    Returns:
        (float32 [count, 3, size, size] in [-1, 1], bool [count], which of them are textures).
    """
    rng = random.Random(f"{seed} {index}")
    split = None if both_splits else False
    images, is_texture = [], [rng.random() < textures for _ in range(count)]
    for one in is_texture:
        scene = None if one else random_scene(rng, held_out=split)
        images.append(texture_crop(rng, size) if one else scene_crop(scene, rng, size))
    return to_pixels(np.stack(images)), torch.tensor(is_texture)


def scene_crop(scene: Scene, rng: random.Random, size: int) -> np.ndarray:
    """A crop around one of a scene's shapes. One without a shape would be flat, and the gradients of group norms
    explode on flat images."""
    chosen = rng.choice(scene.objects)
    left, top = (
        min(max((centre - size // 2) // TOKEN * TOKEN + rng.choice((-TOKEN, 0, TOKEN)), 0), SIZE - size)
        for centre in (chosen.x, chosen.y)
    )
    return render_array(scene)[top : top + size, left : left + size]


def texture_crop(rng: random.Random, size: int) -> np.ndarray:
    """A crop of a random texture that is not flat."""
    while True:
        left, top = (rng.randint(0, SIZE - size) for _ in range(2))
        crop = texture(rng.choice(KINDS), rng)[top : top + size, left : left + size]
        if crop.std(axis=(0, 1)).max() > FLAT:
            return crop


@torch.no_grad()
def initialise_vq(vq: VQModel, pixels, start: dict[str, torch.Tensor] | None = None, height: float = 1.0):
    """Initialises a VQ model so that the colours of flat images survive its norms from the first step.

    A group norm over three channels removes the colour of a flat image. So two channels of each group start as
    constants of +height and -height (the biases of the convolutions that write the residual stream), which makes the
    norm of the group's other channels nearly linear; groups of two channels are unchanged. The convolutions are scaled
    to preserve their input's variance; the encoder's vectors start with zero mean and unit variance over `pixels`.

    Args:
        start: weights of another VQ model by name; those that fit replace the random ones.
    """
    for name, module in vq.named_modules():
        if not name.endswith(("conv_in", "sample.conv", "nin_shortcut")) or not isinstance(module, nn.Conv2d):
            continue
        module.weight *= 3**0.5  # PyTorch's default reduces the variance to a third
        group = module.out_channels // GROUPS
        if group > 2:
            module.bias[group - 2 :: group] += height
            module.bias[group - 1 :: group] -= height
    weights = vq.state_dict()
    for name, weight in (start or {}).items():
        if weights[name].shape == weight.shape:
            weights[name].copy_(weight)
    z = vq.quant_conv(vq.encoder(pixels))
    std, mean = torch.std_mean(z, dim=(0, 2, 3))
    vq.quant_conv.weight /= std[:, None, None, None]
    vq.quant_conv.bias.sub_(mean).div_(std)


class VQObjective(nn.Module):
    """The VQ tokenizer around a fixed codebook of patches (see codebook.py).

    The encoder learns to classify each patch by the nearest of the codebook's: cross-entropy over the codes, by cosine
    similarity. The decoder learns to reconstruct the image from the codes; details that a code lacks come from its
    neighbours. A batch is {"pixels": [B, 3, H, W], "tokens": int64 [B, N], the codes of its patches, "is_texture":
    bool [B]}.

    Args:
        part: the trained part: "encoder", "decoder", "coarse": the decoder's two lowest levels with a temporary linear
            layer to pixels, which learn the meaning of the codes in a fraction of the time, or "joint": both networks.
            The encoder then chooses the codes from which a texture is reconstructed best, by straight-through gradients
            (arXiv 1711.00937, section 3.2); scenes keep their patches' codes. The cross-entropy holds it to its choice.
        squared, focus: of reconstruction_loss; more squared gives a higher signal-to-noise ratio, more focus sharper
            shapes.
    """

    def __init__(self, vq: VQModel, part: str, temperature: float = 0.05, squared: float = 1.0, focus: float = 0.0):
        super().__init__()
        self.vq = vq
        self.part, self.temperature, self.squared, self.focus = part, temperature, squared, focus
        trained = {
            "encoder": ("encoder.", "quant_conv."),
            "decoder": ("decoder.", "post_quant_conv."),
            "joint": ("encoder.", "quant_conv.", "decoder.", "post_quant_conv."),
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
        vq, tokens = self.vq, batch["tokens"]
        pixels = batch["pixels"].contiguous()  # channels last, the backward of bf16 group norms is slow on a CPU
        codebook = vq.codebook(pixels)
        losses = {}
        if self.part in ("encoder", "joint"):
            z = F.normalize(vq.quant_conv(vq.encoder(pixels)).float(), dim=1).flatten(2).transpose(1, 2)
            similarity = z @ codebook.T
            if self.part == "joint":
                texture = batch["is_texture"][:, None]
                tokens = torch.where(texture, similarity.argmax(-1), tokens)
            losses["tokens"] = self.classification_loss(similarity / self.temperature, tokens, batch["is_texture"])
        if self.part == "encoder":
            return losses
        vectors = codebook[tokens]
        if self.part == "joint":
            vectors = vectors + texture[..., None] * (z - z.detach())
        grid = [size // vq.params.downscale for size in pixels.shape[-2:]]
        x = vq.post_quant_conv(vectors.transpose(1, 2).unflatten(2, grid).contiguous())
        if self.part == "coarse":
            decoder = vq.decoder
            x = decoder.conv_in(x)
            for block in (*decoder.mid, *decoder.conv_blocks[:2]):
                x = block(x)
            x = self.to_pixels(x)
        else:
            x = vq.decoder(x)
        return {"reconstruction": reconstruction_loss(x, pixels, self.squared, self.focus), **losses}

    def classification_loss(self, logits, tokens, is_texture):
        """The cross-entropy; beside the reconstruction it weighs less, least for textures, which choose their codes."""
        if self.part != "joint":
            return image_token_loss(logits, tokens)
        kinds = ((0.3, ~is_texture), (0.05, is_texture))
        return sum(weight * image_token_loss(logits[rows], tokens[rows]) for weight, rows in kinds if rows.any())


class VAEObjective(nn.Module):
    """Reconstruction of diffusers' AutoencoderTiny with latents of zero mean and unit variance.

    The decoder learns from slightly noisy latents, because in use its latents come from a model.

    Args:
        part: the trained part: "decoder", or None for both.
    """

    def __init__(self, vae, part: str | None = None, noise: float = 0.1):
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)
        self.noise = noise
        vae.encoder.requires_grad_(part != "decoder")

    def forward(self, batch):
        z = self.vae.encoder(batch["pixels"])
        moments = moments_loss(z)
        x = self.vae.decoder(z + self.noise * torch.randn_like(z))
        return {"reconstruction": reconstruction_loss(x, batch["pixels"]), "moments": moments}
