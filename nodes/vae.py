"""The VAE of Janus-Pro: its VQ image tokenizer as a comfy.sd.VAE."""

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.cli_args import args

from ..janus_core.checkpoint import Checkpoint, build_vq
from ..janus_core.errors import CheckpointError, ImageError, SamplingError
from ..janus_core.operations import multiplies_bf16

WORKING_DTYPES = [torch.bfloat16, torch.float32]


class Unsaveable(dict):
    """The state dict of a VAE that no node would load: it can be passed on, and whoever reads it to write a file fails.

    Checkpoint Save asks the VAE for it and then saves the VQ model with the MODEL (JanusTokenModel.saved_beside).
    """

    def _refuse(self, *args):
        raise CheckpointError(
            "The VAE of Load Janus-Pro cannot be saved alone, since no node would load the file: save the MODEL with "
            "ModelSave, or convert the checkpoint with `python janus_core convert`; both include the VAE."
        )

    __iter__ = __len__ = __getitem__ = keys = items = values = _refuse


class JanusVAE(comfy.sd.VAE):
    """Token latents to images and back, for VAE Decode, VAE Encode and their tiled forms.

    Args:
        model_dtype: the MODEL's arithmetic. On a CPU, where ComfyUI always chooses float32, the VAE follows it.
    """

    def __init__(self, checkpoint: Checkpoint, model_dtype: torch.dtype = torch.float32):
        device = comfy.model_management.vae_device()
        dtype = comfy.model_management.vae_dtype(device, WORKING_DTYPES)
        if dtype not in WORKING_DTYPES:  # --fp16-vae; float16 overflows here
            dtype = torch.float32
        if device.type == "cpu" and not (args.fp16_vae or args.bf16_vae or args.fp32_vae):
            dtype = torch.bfloat16 if model_dtype == torch.bfloat16 and multiplies_bf16() else torch.float32
        # The base class only builds the VAEs it knows. This one has no weights, and what differs is replaced below.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=dtype)
        self.working_dtypes, self.disable_offload = WORKING_DTYPES, False
        offload_device = comfy.model_management.vae_offload_device()
        self.first_stage_model = build_vq(
            checkpoint, operations=comfy.ops.disable_weight_init, dtype=dtype, device=offload_device
        )
        if device.type == "cpu":
            self.first_stage_model.to(memory_format=torch.channels_last)  # convolutions are faster there
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload_device
        )
        params = self.first_stage_model.params
        self.latent_channels = params.codebook_dim
        self.downscale_ratio = self.upscale_ratio = params.downscale
        # The peak is at full resolution: a level's input, its norm, and the convolution's output.
        widest = 6 * max(params.channels[0], params.channels[-1] // params.downscale)
        self.memory_used_encode = lambda shape, dtype: widest * shape[2] * shape[3] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: (
            widest * shape[2] * shape[3] * params.downscale**2 * dtype.itemsize
        )
        self.size = None
        self.model_size()

    def get_sd(self):
        return Unsaveable()

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
        """An IMAGE [B, H, W, C] with at least three channels. Raises ImageError when it is smaller than a token."""
        height, width = pixel_samples.shape[1:3]
        smallest = self.downscale_ratio
        if min(height, width) < smallest:
            raise ImageError(f"The image is {width}x{height}: its width and height must be at least {smallest} pixels.")
        return pixel_samples.expand(-1, -1, -1, 3) if pixel_samples.shape[-1] == 1 else pixel_samples
