"""Running janus_core's token sampler on ComfyUI's objects: latents, masks, memory, previews, cancelling."""

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
from .token_model import JanusTokenModel

PREVIEW_SHARE = 0.1  # of the run's time
GREY = (127, 127, 127)


def sample(model, positive, negative, latent: dict, seed: int, cfg: float, choice) -> dict:
    """Samples a token LATENT.

    Args:
        latent: batch and size (all zeros), or a token latent, of which a noise mask redraws a part.

    Raises:
        SamplingError, PromptError: an input is of another family or out of range.
    """
    if not isinstance(model.model, JanusTokenModel):
        raise SamplingError(
            "Janus Token Sampler needs the MODEL of Load Janus-Pro (JanusFlow draws with KSampler or JanusFlow "
            "Sampler)."
        )
    network = model.model.diffusion_model
    batch, grid = latent_grid(latent, network.params.vq)
    kept = kept_tokens(latent, network, grid)
    indices = latent.get("batch_index") or range(batch)

    one = model.model.memory_required((1, 0, *grid))
    previewer = Previewer.of(model.model, grid)
    side = network.params.vq.downscale
    model.model.warn_of_size(grid[1] * side, grid[0] * side)
    models = [model] if previewer is None else [model, previewer.vae.patcher]
    comfy.model_management.load_models_gpu(models, memory_required=one * batch, minimum_memory_required=one)
    device, dtype = model.load_device, model.model.get_dtype_inference()
    positive, negative = sides(positive, negative, batch, device, dtype)

    together = max(1, min(batch, int(model.get_free_memory(device) // one)))
    count = grid[0] * grid[1]
    progress = comfy.utils.ProgressBar(count * -(-batch // together))
    done = []
    model.pre_run()
    try:
        with comfy.model_management.cuda_device_context(device):
            for start in range(0, batch, together):
                part = slice(start, min(start + together, batch))
                steps = sample_steps(
                    network,
                    rows(positive, part),
                    rows(negative, part),
                    count,
                    seed=seed,
                    indices=indices[part],
                    cfg=cfg,
                    choice=choice,
                    keep=None if kept is None else tuple(t[part].to(device) for t in kept),
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


def latent_grid(latent: dict, vq) -> tuple[int, tuple[int, int]]:
    """Batch size and token grid (rows, columns) of a LATENT.

    An all-zero latent of other channels, or with a downscale ratio, means a size in pixels; anything else must be a
    token latent.
    """
    samples = latent["samples"]
    ratio = latent.get("downscale_ratio_spacial")
    height, width = samples.shape[-2:]
    if samples.shape[1] == vq.codebook_dim and ratio is None:
        return samples.shape[0], (height, width)
    if torch.count_nonzero(samples):
        raise SamplingError(
            f"This latent has {samples.shape[1]} channels and is no token latent: use Empty Latent Image for the size, "
            "or VAE Encode with the VAE of Load Janus-Pro."
        )
    scale = (ratio or 8) / vq.downscale
    return samples.shape[0], (max(1, round(height * scale)), max(1, round(width * scale)))


def kept_tokens(latent: dict, network, grid):
    """(tokens [B, N], bool [B, N]) of what a noise mask leaves as it is, or None without a mask."""
    mask, samples = latent.get("noise_mask"), latent["samples"]
    if mask is None or samples.shape[1] != network.params.vq.codebook_dim:
        return None
    tokens = latent_to_tokens(samples.cpu(), network.codebook)
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    redraw = F.adaptive_max_pool2d(mask, grid) > 0.5
    redraw = comfy.utils.repeat_to_batch_size(redraw, len(tokens))
    return tokens, ~redraw.flatten(1)


def sides(positive, negative, batch: int, device, dtype):
    """Prompt embeddings of both sides on the device; an empty negative becomes the unconditional row."""
    (tensor, _), (negative_tensor, extra) = (
        single(c, name) for c, name in ((positive, "positive"), (negative, "negative"))
    )
    if conditioning.is_unconditional(negative_tensor, extra):
        negative_tensor, _ = conditioning.unconditional(extra, tensor.shape[1])
    for t in (tensor, negative_tensor):
        if t.shape[0] not in (1, batch):
            raise PromptError(f"The conditioning holds {t.shape[0]} prompts for a batch of {batch} pictures.")
    return tensor.to(device, dtype), negative_tensor.to(device, dtype)


def single(conds, name: str):
    """The one (tensor, dict) of a CONDITIONING."""
    if len(conds) != 1:
        raise PromptError(
            f"Janus Token Sampler takes one prompt as {name}, this conditioning holds {len(conds)}: join them with "
            "Conditioning (Concat) or (Average) instead of (Combine)."
        )
    tensor, extra = conds[0]
    conditioning.check_family(extra, "janus")
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
        vae = self.vae
        latent = tokens_to_latent(tokens, self.codebook, (complete, width)).to(vae.device, vae.vae_dtype)
        top = to_pictures(vae.first_stage_model.decode(latent))[0]
        side = self.vae.upscale_ratio
        picture = Image.new("RGB", (width * side, height * side), GREY)
        picture.paste(top, (0, 0))
        took = time.perf_counter() - now
        self.spent, self.row_cost, self.shown = self.spent + took, took / complete, complete
        return ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION)
