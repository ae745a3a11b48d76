"""Janus and Janus-Pro: one decoder for text and for VQ image tokens (arXiv 2410.13848, arXiv 2501.17811)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .attention import attention as default_attention
from .networks.llama import LlamaParams
from .networks.siglip import SiglipParams, VisionTower
from .networks.vq import VQParams
from .vision_language import VisionLanguageModel


@dataclass(frozen=True)
class JanusParams:
    """Dimensions of a Janus or Janus-Pro; the depths are numbers of linear layers, the widths numbers of channels."""

    llama: LlamaParams
    siglip: SiglipParams
    vq: VQParams
    aligner_depth: int = 2
    gen_aligner_depth: int = 2
    gen_head_width: int = 2048
    gen_embed_width: int = 8


class Projector(nn.Module):
    """Linear layers with GELU in between (`mlp_gelu` in the original config)."""

    def __init__(self, inputs, outputs, depth, operations, device, dtype):
        super().__init__()
        layers = [operations.Linear(inputs, outputs, device=device, dtype=dtype)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), operations.Linear(outputs, outputs, device=device, dtype=dtype)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class ImageHead(nn.Module):
    """Hidden states to logits over the codebook."""

    def __init__(self, hidden, inner, codebook_size, operations, device, dtype):
        super().__init__()
        self.output_mlp_projector = operations.Linear(hidden, inner, device=device, dtype=dtype)
        self.vision_head = operations.Linear(inner, codebook_size, device=device, dtype=dtype)

    def forward(self, x):
        return self.vision_head(F.gelu(self.output_mlp_projector(x)))


class Janus(VisionLanguageModel):
    """The autoregressive model.

    The VQ autoencoder is a separate model (networks.vq). `codebook` is a float32 CPU copy of its normalised codebook,
    [codebook_size, codebook_dim], set by checkpoint.build_model, which converts between tokens and latents.
    """

    family = "janus"
    unused_in_generation = (
        "language_model.lm_head.",
        "language_model.model.embed_tokens.",
        "vision_model.",
        "aligner.",
    )

    def __init__(self, params: JanusParams, operations=torch.nn, attention=default_attention, device=None, dtype=None):
        super().__init__(params.llama, operations, attention, device, dtype)
        self.params = params
        self.codebook = None
        kw = {"operations": operations, "device": device, "dtype": dtype}
        hidden, vq = params.llama.hidden_size, params.vq
        self.vision_model = VisionTower(params.siglip, attention=attention, **kw)
        self.aligner = Projector(params.siglip.width, hidden, params.aligner_depth, **kw)
        self.gen_embed = operations.Embedding(vq.codebook_size, params.gen_embed_width, device=device, dtype=dtype)
        self.gen_aligner = Projector(params.gen_embed_width, hidden, params.gen_aligner_depth, **kw)
        self.gen_head = ImageHead(hidden, params.gen_head_width, vq.codebook_size, **kw)

    def embed_images(self, pixels):
        """Images [B, 3, S, S] in [-1, 1] to the embeddings of their image placeholders, [B, tokens, hidden]."""
        return self.aligner(self.vision_model(pixels))

    def embed_image_tokens(self, tokens, dtype: torch.dtype):
        """Codebook tokens [...] to embeddings [..., hidden] in `dtype`."""
        return self.gen_aligner(self.gen_embed(tokens).to(dtype))

    def image_logits(self, hidden):
        """Hidden states [..., hidden] to logits over the codebook, float32."""
        return self.gen_head(hidden).float()
