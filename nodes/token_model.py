"""The autoregressive MODEL."""

import comfy.latent_formats

from ..janus_core.checkpoint import SAVED_PREFIX, VQ_PREFIX
from ..janus_core.errors import SamplingError
from ..janus_core.janus import Janus
from .base_model import JanusBaseModel, ModelConfig


class TokenLatentFormat(comfy.latent_formats.LatentFormat):
    """Codebook vectors on the token grid, as they are."""

    latent_channels = 8
    spacial_downscale_ratio = 16


class JanusModelConfig(ModelConfig):
    latent_format = TokenLatentFormat


class JanusTokenModel(JanusBaseModel):
    """Janus and Janus-Pro. They predict tokens, not noise, so only Janus Token Sampler can sample them."""

    def __init__(self, checkpoint, weight_dtype, load_device, offload_device):
        super().__init__(checkpoint, JanusModelConfig, Janus, weight_dtype, load_device, offload_device)
        self.vae = None  # the JanusVAE of the same checkpoint, for previews and for saving
        vq = self.diffusion_model.params.vq
        self.latent_format.latent_channels = vq.codebook_dim
        self.latent_format.spacial_downscale_ratio = vq.downscale

    def saved_beside(self):
        """As the base class, with the image tokenizer's weights from the VAE."""
        saved = super().saved_beside()
        if self.vae is not None:
            weights = self.vae.first_stage_model.state_dict()
            saved.update({SAVED_PREFIX + VQ_PREFIX + name: tensor.contiguous() for name, tensor in weights.items()})
        return saved

    def extra_conds_shapes(self, **kwargs):
        """The first that every diffusion sampler and guider asks a model for. Raises SamplingError."""
        raise SamplingError(
            "This is a Janus-Pro model, which generates images token by token: connect it to Janus Token Sampler "
            "instead of a diffusion sampler or guider."
        )

    def sampling_bytes(self, rows: int, prompt: int, tokens: int) -> int:
        """Bytes to sample `tokens` in this many rows, with prompts of at most `prompt` tokens."""
        return self.cache_bytes(rows, prompt + tokens) + self.activation_bytes(2, prompt)
