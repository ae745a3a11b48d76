"""Running janus_core's token sampler on ComfyUI's objects: latents, masks, memory, previews, cancelling."""

import logging
import time

import comfy.model_management
import comfy.utils
import latent_preview
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from ..janus_core.errors import SamplingError
from ..janus_core.image import GREY, to_images
from ..janus_core.networks.vq import latent_to_tokens, tokens_to_latent
from ..janus_core.sampling.decode_loop import decode_loop
from ..janus_core.sampling.settings import TokenSamplerSettings
from ..janus_core.sampling.tokens import sample_image_tokens
from . import ignored
from .inputs import image_latent, with_samples
from .residency import capture_for_network, warn_of_streaming
from .token_model import JanusTokenModel
from .token_prompts import Prompts, read_prompts, rows

PREVIEW_SHARE = 0.1  # of the run's time, at most


def sample(model, positive, negative, latent: dict, settings: TokenSamplerSettings) -> dict:
    """Samples a token LATENT.

    Args:
        latent: batch and size (all zeros), or a token latent whose noise mask says which part is resampled.

    Raises:
        SamplingError, PromptError: an input is of another family or out of range.
    """
    if not isinstance(model.model, JanusTokenModel):
        raise SamplingError(
            "Janus Token Sampler needs the MODEL of Load Janus-Pro (for JanusFlow use KSampler or JanusFlow Sampler)."
        )
    network = model.model.diffusion_model
    batch, grid, given = read_latent(latent, network.params.vq)
    given = None if given is None else given_tokens(given, latent.get("noise_mask"), network.codebook, grid)
    image_indices = latent.get("batch_index") or range(batch)
    if len(image_indices) != batch:
        raise SamplingError(f"This latent holds {batch} images and {len(image_indices)} batch indices.")

    prompts = read_prompts(positive, negative, batch, network)
    warn_of_ignored(model, positive, negative)
    count = grid[0] * grid[1]
    token_size = network.params.vq.downscale
    model.model.check_size(grid[1] * token_size, grid[0] * token_size, token_size)
    previewer = Previewer.of(model.model, grid)
    chunk = load(model, previewer, prompts, batch, count)
    device, dtype = model.load_device, model.model.get_dtype_inference()
    prompts = prompts.to(device, dtype)

    progress = comfy.utils.ProgressBar(count * -(-batch // chunk))
    done = []
    model.pre_run()
    decode = decode_loop(settings.window, grid[1], capture_for_network(network, device, dtype))
    try:
        with comfy.model_management.cuda_device_context(device):
            for start in range(0, batch, chunk):
                part = slice(start, min(start + chunk, batch))
                steps = sample_image_tokens(
                    network,
                    rows(prompts.cond, part),
                    rows(prompts.uncond, part),
                    count,
                    settings,
                    part=None if prompts.part is None else rows(prompts.part, part),
                    part_weight=prompts.part_weight,
                    image_indices=image_indices[part],
                    given_tokens=None if given is None else tuple(t[part].to(device) for t in given),
                    decode=decode,
                )
                for step in steps:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    preview = previewer and previewer(step)
                    progress.update_absolute(count * len(done) + step.position + 1, preview=preview)
                done.append(step.tokens.cpu())
    finally:
        model.cleanup()
    samples = tokens_to_latent(torch.cat(done), network.codebook, grid)
    return with_samples(latent, samples.to(comfy.model_management.intermediate_device()))


def load(model, previewer: "Previewer | None", prompts: Prompts, batch: int, tokens: int) -> int:
    """Loads the models for a run. Returns how many images of the batch fit in memory at once, at least 1.

    Args:
        tokens: per image.
    """
    one = model.model.sampling_bytes(prompts.rows_per_image, max(512, prompts.longest), tokens)
    preview_bytes = 0 if previewer is None else previewer.memory_required()
    needed = one * batch + preview_bytes
    models = [model] if previewer is None else [model, previewer.vae.patcher]
    comfy.model_management.load_models_gpu(models, memory_required=needed, minimum_memory_required=one + preview_bytes)
    warn_of_streaming(model, batch, tokens, needed)
    free = model.get_free_memory(model.load_device) - preview_bytes
    return max(1, min(batch, int(free // one)))


def warn_of_ignored(model, *conditionings):
    """Logs one warning that names what stock nodes set on the MODEL or a CONDITIONING without effect."""
    names = ignored.of_model(model)
    names += [key for cond in conditionings for _, extra in cond for key in ignored.of_conditioning(extra)]
    if names:
        logging.warning(
            "Janus Token Sampler generates a whole image token by token, without the steps and regions of a diffusion "
            f"model. These settings have no effect on it: {', '.join(dict.fromkeys(names))}."
        )


def read_latent(latent: dict, vq) -> tuple[int, tuple[int, int], torch.Tensor | None]:
    """What a LATENT asks for: batch size, token grid (rows, columns), and its samples if it is a token latent.

    An all-zero latent of other channels, or with a downscale ratio, means a size in pixels; anything else must be a
    token latent.

    Raises:
        SamplingError: it is neither.
    """
    samples = image_latent(latent)
    ratio = latent.get("downscale_ratio_spacial")
    batch, channels, height, width = samples.shape
    if channels == vq.codebook_dim and ratio is None:
        return batch, (height, width), samples
    if torch.count_nonzero(samples):
        raise SamplingError(
            f"This latent has {channels} channels, so it is not a token latent: use Empty Latent Image for the size, "
            "or VAE Encode with the VAE of Load Janus-Pro."
        )
    scale = (ratio or 8) / vq.downscale
    return batch, (max(1, round(height * scale)), max(1, round(width * scale))), None


def given_tokens(samples, mask, codebook, grid):
    """The tokens of a token latent that a noise mask leaves unchanged, as sample_image_tokens takes them.

    Returns:
        (tokens int64 [B, N], bool [B, N], true outside the mask), or None without a mask.
    """
    if mask is None:
        return None
    tokens = latent_to_tokens(samples.cpu(), codebook)
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    is_sampled = F.adaptive_max_pool2d(mask, grid) > 0.5
    is_sampled = comfy.utils.repeat_to_batch_size(is_sampled, len(tokens))
    return tokens, ~is_sampled.flatten(1)


class Previewer:
    """Decodes the finished rows of the first image as a preview, in at most a tenth of the run's time."""

    def __init__(self, vae, codebook, grid):
        self.vae, self.codebook, self.grid = vae, codebook, grid
        self.start, self.spent, self.row_cost, self.shown = time.perf_counter(), 0.0, 0.0, 0

    @classmethod
    def of(cls, model: JanusTokenModel, grid):
        """A previewer, or None when ComfyUI's preview method is off."""
        if model.vae is None or args.preview_method == LatentPreviewMethod.NoPreviews:
            return None
        return cls(model.vae, model.diffusion_model.codebook, grid)

    def memory_required(self) -> int:
        """Bytes of decoding the image."""
        return int(self.vae.memory_used_decode((1, 0, *self.grid), self.vae.vae_dtype))

    def __call__(self, step):
        """A preview for ProgressBar, or None while there is no new row or no time for one."""
        height, width = self.grid
        complete = (step.position + 1) // width
        if (step.position + 1) % width or complete == height or complete == self.shown:
            return None
        now = time.perf_counter()
        if self.spent + self.row_cost * complete > PREVIEW_SHARE * (now - self.start):
            return None
        tokens = step.tokens[:1, : complete * width].cpu()
        now = time.perf_counter()  # the GPU work that was still running is not the preview's
        vae = self.vae
        latent = tokens_to_latent(tokens, self.codebook, (complete, width)).to(vae.device, vae.vae_dtype)
        try:
            top = to_images(vae.first_stage_model.decode(latent))[0]
        except comfy.model_management.OOM_EXCEPTION:
            self.spent = float("inf")  # the image matters more than its preview
            return None
        token_size = self.vae.upscale_ratio
        preview = Image.new("RGB", (width * token_size, height * token_size), GREY)
        preview.paste(top, (0, 0))
        took = time.perf_counter() - now
        self.spent, self.row_cost, self.shown = self.spent + took, took / complete, complete
        return ("JPEG", preview, latent_preview.MAX_PREVIEW_RESOLUTION)
