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

from ..janus_core.errors import PromptError, SamplingError
from ..janus_core.image import to_pictures
from ..janus_core.networks.vq import latent_to_tokens, tokens_to_latent
from ..janus_core.sampling.tokens import sample_steps
from . import conditioning
from .residency import recorder_for
from .token_model import JanusTokenModel

PREVIEW_SHARE = 0.1  # of the run's time
GREY = (127, 127, 127)
IGNORED = ("area", "mask", "start_percent", "end_percent")  # of a conditioning: a token run has no steps or regions


def sample(model, positive, negative, latent: dict, **settings) -> dict:
    """Samples a token LATENT.

    Args:
        latent: batch and size (all zeros), or a token latent, of which a noise mask redraws a part.
        settings: of janus_core's token sampler: seed, cfg, cfg_interval, choice, window.

    Raises:
        SamplingError, PromptError: an input is of another family or out of range.
    """
    if not isinstance(model.model, JanusTokenModel):
        raise SamplingError(
            "Janus Token Sampler needs the MODEL of Load Janus-Pro (JanusFlow draws with KSampler or JanusFlow "
            "Sampler)."
        )
    network = model.model.diffusion_model
    batch, grid, given = read_latent(latent, network.params.vq)
    kept = None if given is None else kept_tokens(given, latent.get("noise_mask"), network.codebook, grid)
    indices = latent.get("batch_index") or range(batch)
    if len(indices) != batch:
        raise SamplingError(f"This latent holds {batch} pictures and {len(indices)} batch indices.")

    one = model.model.memory_required((1, 0, *grid))
    previewer = Previewer.of(model.model, grid)
    preview_bytes = 0 if previewer is None else previewer.memory_required()
    side = network.params.vq.downscale
    model.model.warn_of_size(grid[1] * side, grid[0] * side)
    models = [model] if previewer is None else [model, previewer.vae.patcher]
    comfy.model_management.load_models_gpu(
        models, memory_required=one * batch + preview_bytes, minimum_memory_required=one + preview_bytes
    )
    device, dtype = model.load_device, model.model.get_dtype_inference()
    positive, negative = sides(positive, negative, batch, network, device, dtype)

    together = max(1, min(batch, int((model.get_free_memory(device) - preview_bytes) // one)))
    count = grid[0] * grid[1]
    progress = comfy.utils.ProgressBar(count * -(-batch // together))
    done = []
    model.pre_run()
    record = recorder_for(network, device, dtype)
    try:
        with comfy.model_management.cuda_device_context(device):
            for start in range(0, batch, together):
                part = slice(start, min(start + together, batch))
                steps = sample_steps(
                    network,
                    rows(positive, part),
                    rows(negative, part),
                    count,
                    indices=indices[part],
                    keep=None if kept is None else tuple(t[part].to(device) for t in kept),
                    width=grid[1],
                    record=record,
                    **settings,
                )
                for step in steps:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    preview = previewer and previewer(step)
                    progress.update_absolute(count * len(done) + step.position + 1, preview=preview)
                done.append(step.tokens.cpu())
    finally:
        model.cleanup()
    out = {k: v for k, v in latent.items() if not k.startswith("downscale_ratio")}
    samples = tokens_to_latent(torch.cat(done), network.codebook, grid)
    out["samples"] = samples.to(comfy.model_management.intermediate_device())
    return out


def read_latent(latent: dict, vq) -> tuple[int, tuple[int, int], torch.Tensor | None]:
    """What a LATENT asks for: batch size, token grid (rows, columns), and its samples if it is a token latent.

    An all-zero latent of other channels, or with a downscale ratio, means a size in pixels; anything else must be a
    token latent.
    """
    samples = latent["samples"]
    ratio = latent.get("downscale_ratio_spacial")
    if samples.ndim != 4:
        raise SamplingError(f"This latent has {samples.ndim} dimensions, a picture's has 4: use Empty Latent Image.")
    batch, channels, height, width = samples.shape
    if channels == vq.codebook_dim and ratio is None:
        return batch, (height, width), samples
    if torch.count_nonzero(samples):
        raise SamplingError(
            f"This latent has {channels} channels and is no token latent: use Empty Latent Image for the size, or VAE "
            "Encode with the VAE of Load Janus-Pro."
        )
    scale = (ratio or 8) / vq.downscale
    return batch, (max(1, round(height * scale)), max(1, round(width * scale))), None


def kept_tokens(samples, mask, codebook, grid):
    """(tokens [B, N], bool [B, N]) of what a noise mask leaves as it is in a token latent, or None without a mask."""
    if mask is None:
        return None
    tokens = latent_to_tokens(samples.cpu(), codebook)
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    redraw = F.adaptive_max_pool2d(mask, grid) > 0.5
    redraw = comfy.utils.repeat_to_batch_size(redraw, len(tokens))
    return tokens, ~redraw.flatten(1)


def sides(positive, negative, batch: int, network, device, dtype):
    """Prompt embeddings of both sides on the device; an empty negative becomes the unconditional row."""
    (tensor, _), (negative_tensor, extra) = (
        single(c, name, network) for c, name in ((positive, "positive"), (negative, "negative"))
    )
    if conditioning.is_unconditional(negative_tensor, extra):
        negative_tensor, _ = conditioning.unconditional(extra, tensor.shape[1])
    for t in (tensor, negative_tensor):
        if t.shape[0] not in (1, batch):
            raise PromptError(f"The conditioning holds {t.shape[0]} prompts for a batch of {batch} pictures.")
    return tensor.to(device, dtype), negative_tensor.to(device, dtype)


def single(conds, name: str, network):
    """The one (tensor, dict) of a CONDITIONING."""
    if len(conds) != 1:
        raise PromptError(
            f"Janus Token Sampler takes one prompt as {name}, this conditioning holds {len(conds)}: join them with "
            "Conditioning (Concat) or (Average) instead of (Combine)."
        )
    tensor, extra = conds[0]
    conditioning.check(tensor, extra, network)
    ignored = [key for key in IGNORED if extra.get(key) is not None]
    if ignored:
        logging.warning(
            f"Janus Token Sampler draws the whole picture with one prompt: {', '.join(ignored)} has no effect."
        )
    return tensor, extra


def rows(prompts, part: slice):
    """The rows of a part of the batch; a single prompt serves every part."""
    return prompts if prompts.shape[0] == 1 else prompts[part]


class Previewer:
    """Draws the finished rows of the first picture while the others form, in at most a tenth of the run's time."""

    def __init__(self, vae, codebook, grid):
        self.vae, self.codebook, self.grid = vae, codebook, grid
        self.began, self.spent, self.row_cost, self.shown = time.perf_counter(), 0.0, 0.0, 0

    @classmethod
    def of(cls, model: JanusTokenModel, grid):
        """A previewer, or None when ComfyUI's preview method is off."""
        if model.vae is None or args.preview_method == LatentPreviewMethod.NoPreviews:
            return None
        return cls(model.vae, model.diffusion_model.codebook, grid)

    def memory_required(self) -> int:
        """Bytes of decoding the picture."""
        return int(self.vae.memory_used_decode((1, 0, *self.grid), self.vae.vae_dtype))

    def __call__(self, step):
        """What ProgressBar takes as a preview, or None when it is not time for one."""
        height, width = self.grid
        complete = (step.position + 1) // width
        if (step.position + 1) % width or complete == height or complete == self.shown:
            return None
        now = time.perf_counter()
        if self.spent + self.row_cost * complete > PREVIEW_SHARE * (now - self.began):
            return None
        tokens = step.tokens[:1, : complete * width].cpu()
        now = time.perf_counter()  # what was still being computed is no cost of the preview
        vae = self.vae
        latent = tokens_to_latent(tokens, self.codebook, (complete, width)).to(vae.device, vae.vae_dtype)
        try:
            top = to_pictures(vae.first_stage_model.decode(latent))[0]
        except comfy.model_management.OOM_EXCEPTION:
            self.spent = float("inf")  # the picture matters more than its preview
            return None
        side = self.vae.upscale_ratio
        picture = Image.new("RGB", (width * side, height * side), GREY)
        picture.paste(top, (0, 0))
        took = time.perf_counter() - now
        self.spent, self.row_cost, self.shown = self.spent + took, took / complete, complete
        return ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION)
