"""The rectified-flow MODEL: JanusFlow under ComfyUI's conventions.

ComfyUI's sigma is 1 - t and its velocity points from data to noise, so the network runs at t = 1 - sigma and its
output is negated.
"""

import comfy.conds
import comfy.latent_formats
import comfy.ldm.common_dit
import comfy.patcher_extension
import torch

from ..janus_core.errors import SamplingError, not_finite
from ..janus_core.janusflow import VAE_DOWNSCALE, JanusFlow
from ..janus_core.prompt import check_context
from ..janus_core.sampling.captured_step import CapturedStep
from . import conditioning
from .attention import OVERRIDE
from .base_model import JanusBaseModel, ModelConfig
from .inputs import check_image_shape
from .residency import capture_for_network

SIGMAS = 3000  # stock `simple` is then exact for every step count that divides it
RUN = "janus_run"  # key in transformer_options


class CONDPrompt(comfy.conds.CONDRegular):
    """A prompt that all images of a batch share stays one row; the network repeats its keys and values."""

    def process_cond(self, batch_size, **kwargs):
        return self._copy_with(self.cond) if self.cond.shape[0] == 1 else super().process_cond(batch_size, **kwargs)


class JanusFlowModelConfig(ModelConfig):
    latent_format = comfy.latent_formats.SDXL


class FlowRun:
    """What the steps of one sampling run share: the prompts' keys and values, and captured steps.

    It lives in the run's transformer_options, so it ends with the run and can never meet other weights.
    """

    def __init__(self):
        self.velocities = {}

    def get(self, key, make):
        if key not in self.velocities:
            self.velocities[key] = make()
        return self.velocities[key]

    def end(self):
        """Frees all of it; the run's options, which outlive the run, still refer to this object."""
        self.velocities.clear()


class JanusFlowNetwork(JanusFlow):
    """JanusFlow called as ComfyUI calls a diffusion model."""

    @property
    def in_channels(self) -> int:
        """Channels of the latent; stock nodes such as RenormCFG ask for it."""
        return self.params.uvit.latent_channels

    def forward(self, x, timesteps, context=None, control=None, transformer_options={}, **kwargs):
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, control, transformer_options, **kwargs)

    def _forward(
        self, x, timesteps, context, control, transformer_options={}, janus_prompt=None, janus_visible=None, **kwargs
    ):
        height, width = x.shape[-2:]
        stride = self.params.uvit.stride
        x = comfy.ldm.common_dit.pad_to_patch_size(x, (stride, stride))
        image_tokens = self.image_tokens(*x.shape[-2:])

        def encode():
            encoded = self.encode_prompt(janus_prompt, janus_visible.bool(), image_tokens, transformer_options)
            return encoded.repeat(x.shape[0] // janus_prompt.shape[0])

        def make():
            prompt = encode()
            shared = "multigpu_thread_device" in transformer_options  # other GPUs' threads run at the same time
            traced = torch.compiler.is_compiling()
            capture = None if shared or traced else capture_for_network(self, x.device, x.dtype)

            def plain(x, t, options=None):
                return self.velocity(x, t, prompt, options)

            if capture is None:
                return plain
            captured = CapturedStep("The velocity", plain, capture)
            return lambda x, t, options: plain(x, t, options) if OVERRIDE in options else captured(x, t)

        run, conds = transformer_options.get(RUN), transformer_options.get("uuids")
        if run is None or conds is None or torch.is_grad_enabled():  # training changes the weights every step
            v = self.velocity(x, timesteps, encode(), transformer_options)
        else:
            key = (tuple(conds), x.device, x.dtype, tuple(x.shape))
            v = run.get(key, make)(x, timesteps, transformer_options)
        return -v[..., :height, :width]


class JanusFlowModel(JanusBaseModel):
    def __init__(self, checkpoint, weight_dtype, load_device, offload_device):
        super().__init__(checkpoint, JanusFlowModelConfig, JanusFlowNetwork, weight_dtype, load_device, offload_device)
        self.model_sampling.set_parameters(shift=1.0, timesteps=SIGMAS, multiplier=1000)

    def process_timestep(self, timestep, **kwargs):
        """ComfyUI's timestep (sigma times the sampling's multiplier) to 1000 t."""
        return 1000 * (1 - timestep / getattr(self.model_sampling, "multiplier", 1))

    def extra_conds(self, **kwargs):
        embeds = kwargs["cross_attn"]
        return {
            "janus_prompt": CONDPrompt(embeds),
            "janus_visible": CONDPrompt(conditioning.visible_tokens(embeds, kwargs)),
        }

    def extra_conds_shapes(self, **kwargs):
        embeds = kwargs.get("cross_attn")
        return {} if embeds is None else {"janus_prompt": list(embeds.shape)}

    def memory_required(self, input_shape, cond_shapes={}):
        """Bytes of one step on a batch of latents: prompt cache, activations of the decoder and the ConvNeXt blocks."""
        rows, _, *size = input_shape
        uvit = self.diffusion_model.params.uvit
        tokens = size[-1] * size[-2] // uvit.stride**2 + 1
        length = tokens + max((shape[1] for shape in cond_shapes.get("janus_prompt", ())), default=64)
        blocks = 4 * 3 * (uvit.channels + uvit.decoder_channels) * tokens * rows * self.get_dtype_inference().itemsize
        return self.cache_bytes(rows, length) + self.activation_bytes(rows, length) + blocks


def prepare_flow_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE wrapper: checks the run, aligns its empty negative prompts, and adds its prompt cache."""
    guider = executor.class_obj
    check_run(guider, noise, sigmas)
    conds = [cond for entries in guider.conds.values() for cond in entries]
    run = FlowRun()
    # Between steps, hooks change the weights and context windows change the prompts: nothing may be cached then.
    if "context_handler" not in guider.model_options and not any("hooks" in cond for cond in conds):
        guider.model_options["transformer_options"][RUN] = run
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        run.end()
    if not samples.isfinite().all():
        raise not_finite()
    return samples


def check_run(guider, noise, sigmas):
    """Checks noise, sigmas, size and prompts of a run, and aligns its empty negative prompts.

    Raises:
        SamplingError, ImageError, PromptError: the run cannot give an image.
    """
    model = guider.model_patcher.model
    check_image_shape(noise)
    if not torch.is_grad_enabled():  # stock Train LoRA has sigmas of its own
        check_end(guider.model_patcher.get_model_object("model_sampling"), sigmas)
    channels = model.latent_format.latent_channels
    if noise.shape[1] != channels:
        raise SamplingError(
            f"This latent has {noise.shape[1]} channels, JanusFlow needs an SDXL latent of {channels}: use Empty "
            "Latent Image, or VAE Encode with the SDXL VAE."
        )
    params = model.diffusion_model.params
    stride = params.uvit.stride
    height, width = noise.shape[-2:]
    model.check_size(width * VAE_DOWNSCALE, height * VAE_DOWNSCALE, stride * VAE_DOWNSCALE)
    conds = [cond for entries in guider.conds.values() for cond in entries]
    for cond in conds:
        conditioning.check(cond.get("cross_attn"), cond, model.diffusion_model)
    align_negatives(guider.conds)
    tokens = -(-width // stride) * -(-height // stride) + 1
    for cond in conds:
        check_context(cond["cross_attn"].shape[1] + tokens, params.llama.max_positions, tokens)


def check_end(model_sampling, sigmas):
    """Raises SamplingError where the last sigma leaves no latent: at 1, ComfyUI divides by 1 - sigma."""
    if not model_sampling.inverse_noise_scaling(sigmas[-1:].cpu(), torch.ones(1, 1, 1, 1)).isfinite().all():
        raise SamplingError(
            f"This run ends at sigma {float(sigmas[-1]):g}, where a latent is nothing but noise: end it lower "
            "(FlipSigmas ends at 1, and so does the high half of SplitSigmas at step 0)."
        )


def align_negatives(conds: dict[str, list[dict]]):
    """Replaces empty prompts, except positive ones, by the unconditional row of the positive prompt's length."""
    positive = conds.get("positive") or [cond for entries in conds.values() for cond in entries]
    if not positive:
        return
    length = positive[0]["cross_attn"].shape[1]
    for name, entries in conds.items():
        for cond in entries if name != "positive" else ():
            if conditioning.is_unconditional(cond["cross_attn"], cond):
                cond["cross_attn"], cond[conditioning.MASK] = conditioning.unconditional(cond, length)


def flow_sigmas(times: list[float]) -> torch.Tensor:
    """SIGMAS of janus_core's flow times, float32."""
    return torch.tensor([1 - t for t in times], dtype=torch.float64).float()
