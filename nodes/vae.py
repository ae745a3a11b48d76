"""The VAE of Janus-Pro: its VQ picture tokenizer behind comfy.sd.VAE."""

import logging

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch

from ..janus_core.checkpoint import Checkpoint, build_vq
from ..janus_core.errors import ImageError, SamplingError


class JanusVAE(comfy.sd.VAE):
    """Token latents to pictures and back; VAE Decode, VAE Encode and their tiled forms use it as any VAE."""

    def __init__(self, checkpoint: Checkpoint):
        # The base class sets its defaults and warns that an empty file holds no VAE; the weights come below.
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            super().__init__(sd={})
        finally:
            logging.disable(level)

        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        if self.vae_dtype not in self.working_dtypes:  # --fp16-vae; float16 overflows here
            self.vae_dtype = torch.float32
        offload_device = comfy.model_management.vae_offload_device()
        self.first_stage_model = build_vq(
            checkpoint, operations=comfy.ops.disable_weight_init, dtype=self.vae_dtype, device=offload_device
        )
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload_device
        )
        params = self.first_stage_model.params
        self.latent_channels = params.codebook_dim
        self.downscale_ratio = self.upscale_ratio = params.downscale
        # The widest moment: a full-resolution level holds its input, norm, and convolution's output.
        widest = 6 * max(params.channels[0], params.channels[-1] // params.downscale)
        self.memory_used_encode = lambda shape, dtype: widest * shape[2] * shape[3] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: (
            widest * shape[2] * shape[3] * params.downscale**2 * dtype.itemsize
        )
        self.model_size()

    def _check(self, samples):
        if samples.shape[1] != self.latent_channels:
            raise SamplingError(
                f"This latent has {samples.shape[1]} channels, the Janus-Pro VAE decodes token latents of "
                f"{self.latent_channels}: use the VAE that belongs to the latent (for JanusFlow the SDXL VAE)."
            )

    def decode(self, samples_in, **kwargs):
        self._check(samples_in)
        return super().decode(samples_in, **kwargs)

    def decode_tiled(self, samples, **kwargs):
        self._check(samples)
        return super().decode_tiled(samples, **kwargs)

    def encode(self, pixel_samples):
        return super().encode(self._readable(pixel_samples))

    def encode_tiled(self, pixel_samples, **kwargs):
        return super().encode_tiled(self._readable(pixel_samples), **kwargs)

    def _readable(self, pixel_samples):
        """IMAGE [B, H, W, C] with at least three channels, large enough for a token."""
        side = self.downscale_ratio
        if min(pixel_samples.shape[1:3]) < side:
            raise ImageError(
                f"The picture is {pixel_samples.shape[2]}x{pixel_samples.shape[1]}: each side needs at least {side} "
                "pixels."
            )
        return pixel_samples.expand(-1, -1, -1, 3) if pixel_samples.shape[-1] == 1 else pixel_samples
