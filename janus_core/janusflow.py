"""JanusFlow: the decoder as the velocity network of a rectified flow in SDXL's latent space (arXiv 2411.07975)."""

from dataclasses import dataclass

import torch
from torch import nn

from .attention import attention as default_attention
from .networks.cache import PrefixCache
from .networks.llama import LlamaParams, causal_mask
from .networks.siglip import SiglipParams, VisionTower
from .networks.uvit import UViTDecoder, UViTEncoder, UViTParams
from .vision_language import VisionLanguageModel

VAE_DOWNSCALE = 8


@dataclass(frozen=True)
class JanusFlowParams:
    """Dimensions of a JanusFlow."""

    llama: LlamaParams
    siglip: SiglipParams
    uvit: UViTParams


class FlowPrompt:
    """Encoded prompts for the velocity network: keys and values of every layer, and the attention mask.

    Attention is causal, so they do not depend on the latents and are computed once per run.
    """

    def __init__(self, cache: PrefixCache, mask):
        self.cache = cache
        self.mask = mask  # additive, [1 or rows, 1, 1 + N, L + 1 + N]

    @property
    def rows(self) -> int:
        """Number of prompts, repetitions included."""
        return len(self.cache.keys[0])

    def first(self, rows: int) -> "FlowPrompt":
        """The first `rows` rows only."""
        return FlowPrompt(self.cache.first(rows), self.mask[:rows])

    def repeat(self, times: int) -> "FlowPrompt":
        """Each row repeated `times` times in place: rows (a, b) become (a, a, b, b)."""
        mask = self.mask if self.mask.shape[0] == 1 else self.mask.repeat_interleave(times, dim=0)
        return FlowPrompt(self.cache.repeat(times), mask)


class JanusFlow(VisionLanguageModel):
    """The rectified-flow model."""

    family = "janusflow"
    unused_in_generation = (
        "language_model.lm_head.",
        "language_model.model.embed_tokens.",
        "vision_und_enc_",
        "beg_of_und_embed",
    )

    def __init__(
        self, params: JanusFlowParams, operations=torch.nn, attention=default_attention, device=None, dtype=None
    ):
        super().__init__(params.llama, operations, attention, device, dtype)
        self.params = params
        kw = {"operations": operations, "device": device, "dtype": dtype}
        hidden, uvit = params.llama.hidden_size, params.uvit
        self.vision_und_enc_model = VisionTower(params.siglip, attention=attention, **kw)
        self.vision_und_enc_aligner = operations.Linear(params.siglip.width, hidden, device=device, dtype=dtype)
        self.beg_of_und_embed = nn.Parameter(torch.empty(1, hidden, device=device, dtype=dtype))
        self.vision_gen_enc_model = UViTEncoder(uvit, **kw)
        self.vision_gen_enc_aligner = operations.Linear(uvit.channels, hidden, device=device, dtype=dtype)
        self.vision_gen_dec_aligner_norm = operations.RMSNorm(
            hidden, eps=params.llama.norm_eps, device=device, dtype=dtype
        )
        self.vision_gen_dec_aligner = operations.Linear(hidden, uvit.decoder_channels, device=device, dtype=dtype)
        self.vision_gen_dec_model = UViTDecoder(uvit, **kw)

    def embed_images(self, pixels):
        """Images [B, 3, S, S] in [-1, 1] to embeddings of begin-of-image and the N placeholders, [B, 1 + N, hidden]."""
        features = self.vision_und_enc_aligner(self.vision_und_enc_model(pixels))
        begin = self.beg_of_und_embed.to(features).expand(features.shape[0], 1, -1)
        return torch.cat((begin, features), dim=1)

    def encode_prompt(self, embeds, visible, image_tokens: int, transformer_options=None) -> FlowPrompt:
        """Runs the prompts through the decoder once.

        Args:
            embeds: prompt embeddings without the last token, [rows, L, hidden].
            visible: bool [rows, L], or None when all tokens are visible. Hidden tokens still occupy rotary positions.
            image_tokens: N, the number of tokens of the latents that will be denoised.
        """
        rows, L, _ = embeds.shape
        like = {"dtype": embeds.dtype, "device": embeds.device}
        cache = PrefixCache()
        self.llama(
            embeds,
            cache=cache,
            mask=causal_mask(L, 0, visible=visible, **like),
            transformer_options=transformer_options,
        )
        if visible is not None:
            visible = torch.cat((visible, visible.new_ones(rows, 1 + image_tokens)), dim=1)
        return FlowPrompt(cache, causal_mask(1 + image_tokens, L, visible=visible, **like))

    def velocity(self, z, t, prompt: FlowPrompt, transformer_options=None):
        """Velocity dz/dt of latents on the straight path from noise (t = 0) to data (t = 1), paper eq. 3.

        Args:
            z: scaled latents [B, 4, H, W], H and W multiples of the encoder's stride.
            t: [B], 1000 times the time.
            prompt: from encode_prompt for the N tokens of z, with B rows for each branch of guidance.

        Returns:
            [rows of the prompt, 4, H, W].
        """
        skip, t_emb = self.vision_gen_enc_model(z, t)
        branches, (h, w) = prompt.rows // len(z), skip.shape[-2:]
        skip, t_emb = skip.repeat(branches, 1, 1, 1), t_emb.repeat(branches, 1)
        image = self.vision_gen_enc_aligner(skip.flatten(2).transpose(1, 2))
        states = self.llama(
            torch.cat((t_emb[:, None], image), dim=1),
            cache=prompt.cache,
            mask=prompt.mask,
            transformer_options=transformer_options,
        )[:, 1:]
        states = self.vision_gen_dec_aligner(self.vision_gen_dec_aligner_norm(states))
        return self.vision_gen_dec_model(states.transpose(1, 2).unflatten(2, (h, w)), skip, t_emb)

    def image_tokens(self, height: int, width: int) -> int:
        """Number of tokens of a latent of this size."""
        stride = self.params.uvit.stride
        return (height // stride) * (width // stride)
