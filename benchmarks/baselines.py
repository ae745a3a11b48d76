"""What benchmarks/speed.py compares with: other implementations of both samplers, with random weights at real sizes.

The baseline of the autoregressive family is transformers' `generate(generation_mode="image")`; of JanusFlow, the
published loop written plainly on transformers' LlamaModel (the whole sequence in every step). Where the environment
variable JANUS_REFERENCE names a checkout of the published repository (deepseek-ai/Janus; its package needs transformers
4, attrdict, einops and timm), that package's own models run in their published loops instead.

Parts that do not run while sampling (vision tower, picture tokenizer) are small where they can be chosen.
"""

import os
import sys
from pathlib import Path

import torch
import transformers

from janus_core.checkpoint import Checkpoint
from janus_core.checkpoint.transformers_layout import original_tensors
from janus_core.janus import Janus, JanusParams
from janus_core.janusflow import JanusFlow, JanusFlowParams
from janus_core.networks.llama import LlamaParams
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.uvit import UViTParams
from janus_core.networks.vq import VQParams
from janus_core.training.build import config_of

SIZES = {
    "1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, num_attention_heads=32),
    "demo": dict(hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6),
}
VOCABULARY, PICTURE = 102400, 24 * 24
EOS, PAD, BOS, BEGIN_OF_IMAGE = range(4)  # in a vocabulary of our own
SIGLIP = SiglipParams(width=1024, mlp_width=4096, layers=24, heads=16, patch_size=16, tokens=PICTURE)
SMALL_SIGLIP = SiglipParams(width=64, mlp_width=64, layers=1, heads=1, patch_size=16, tokens=PICTURE)


def reference() -> str | None:
    """The checkout of the published repository that shall be the baseline, made importable; None without one."""
    folder = os.environ.get("JANUS_REFERENCE")
    if folder and folder not in sys.path:
        if not (Path(folder) / "janus" / "models").is_dir():
            raise SystemExit(f"JANUS_REFERENCE: {folder} is no checkout of deepseek-ai/Janus.")
        sys.path.insert(0, folder)
    return folder


def randomise(model):
    """Random weights of a trained model's magnitude, without a float32 copy of the whole."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(1 if parameter.numel() > 1 else 0)
    return model.eval()


def made(dtype, device, function):
    """What function() builds, its weights made in `dtype` and randomised."""
    torch.set_default_dtype(dtype)
    try:
        return randomise(function().to(device))
    finally:
        torch.set_default_dtype(torch.float32)


def llama_config(size: str):
    return transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **SIZES[size])


def llama_params(size: str) -> LlamaParams:
    hidden, inner, layers, heads = SIZES[size].values()
    return LlamaParams(VOCABULARY, hidden, inner, layers, heads, heads, hidden // heads, max_positions=4096)


class TransformersJanus:
    """transformers' Janus. `checkpoint` holds its weights under their published names."""

    name = "transformers"

    def __init__(self, size: str, tokens: int, device, dtype):
        text, hidden = llama_config(size), SIZES[size]["hidden_size"]
        config = transformers.JanusConfig(
            text_config=text,
            vision_config=transformers.JanusVisionConfig(
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=1,
                projection_dim=hidden,
                num_image_tokens=tokens,
            ),
            vq_config=transformers.JanusVQVAEConfig(
                base_channels=32, latent_channels=32, projection_dim=hidden, image_token_embed_dim=hidden
            ),
            tie_word_embeddings=False,
        )
        self.model = made(dtype, device, lambda: transformers.JanusForConditionalGeneration(config))
        self.model.generation_config.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}
        language = text.to_dict() | {"rope_scaling": None}
        tensors = original_tensors(self.model.state_dict())
        self.checkpoint = Checkpoint(Path("random"), Janus.family, tensors, {"language_config": language}, "")

    def draw(self, ids, batch: int, tokens: int):
        """Samples pictures of `tokens` tokens (as many as the model was made for) after the prompt ids [L]."""
        self.model.generate(
            ids.repeat(batch, 1), attention_mask=torch.ones(batch, len(ids), dtype=torch.long, device=ids.device),
            generation_mode="image", do_sample=True, guidance_scale=5, max_length=len(ids) + tokens,
            bos_token_id=BOS, pad_token_id=PAD, eos_token_id=EOS,
        )  # fmt: skip


class PublishedJanus:
    """The published package's Janus in its own sampling loop (generation_inference.py)."""

    name = "published package"

    def __init__(self, size: str, tokens: int, device, dtype):
        from janus.models.modeling_vlm import MultiModalityCausalLM, MultiModalityConfig

        vq = VQParams(16384, 8, 256, (128, 128, 256, 256, 512))
        hidden = SIZES[size]["hidden_size"]
        config = config_of(Janus(JanusParams(llama_params(size), SIGLIP, vq, gen_head_width=hidden), device="meta"))
        self.model = made(dtype, device, lambda: MultiModalityCausalLM(MultiModalityConfig(**config)))
        self.checkpoint = Checkpoint(Path("random"), Janus.family, self.model.state_dict(), config, "")

    def draw(self, ids, batch: int, tokens: int):
        """Samples pictures of `tokens` tokens after the prompt ids [L]; rows with and without the prompt alternate."""
        rows = ids.repeat(2 * batch, 1)
        rows[1::2, 1:-1] = PAD
        embeds, past = self.model.language_model.get_input_embeddings()(rows), None
        for _ in range(tokens):
            out = self.model.language_model.model(inputs_embeds=embeds, use_cache=True, past_key_values=past)
            past = out.past_key_values
            logits = self.model.gen_head(out.last_hidden_state[:, -1])
            c, u = logits[0::2], logits[1::2]
            token = torch.multinomial(torch.softmax(u + 5 * (c - u), dim=-1), num_samples=1)
            embeds = self.model.prepare_gen_img_embeds(token.repeat_interleave(2, dim=0))


class PlainFlow:
    """The published JanusFlow loop on transformers' LlamaModel; encoder and decoder are this package's."""

    name = "published loop"

    def __init__(self, size: str, device, dtype):
        params = flow_params(size, SMALL_SIGLIP)
        self.model = randomise(JanusFlow(params, device=device, dtype=dtype))
        tensors, prefix = self.model.state_dict(), "language_model.model."
        self.llama = transformers.LlamaModel(llama_config(size)).to(device, dtype).eval()
        inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        self.llama.load_state_dict(inner, assign=True)
        self.checkpoint = Checkpoint(Path("random"), JanusFlow.family, tensors, config_of(self.model), "")

    def encode(self, z, t):
        skip, t_emb = self.model.vision_gen_enc_model(z, t)
        return skip, t_emb, skip

    def draw(self, embeds, visible, z, steps: int, cfg: float = 2.0):
        """The latents that guided Euler steps make of noise z [B, 4, H, W].

        Args:
            embeds: prompts without their last token, [2 B, L, hidden], those of the guided side first.
            visible: bool [2 B, L].
        """
        model = self.model
        for step in range(steps):
            rows = torch.cat((z, z)).to(embeds.dtype)
            grid, t_emb, skip = self.encode(rows, torch.full((len(rows),), 1000 * step / steps).to(rows))
            image = model.vision_gen_enc_aligner(grid.flatten(2).transpose(1, 2))
            x = torch.cat((embeds, t_emb[:, None], image), dim=1)
            mask = torch.cat((visible, visible.new_ones(len(rows), 1 + image.shape[1])), dim=1).long()
            states = self.llama(inputs_embeds=x, attention_mask=mask, use_cache=True).last_hidden_state
            states = states[:, -image.shape[1] :]
            states = model.vision_gen_dec_aligner(model.vision_gen_dec_aligner_norm(states))
            v = model.vision_gen_dec_model(states.transpose(1, 2).unflatten(2, grid.shape[2:]), skip, t_emb)
            c, u = v.float().chunk(2)
            z = z + (cfg * c - (cfg - 1) * u) / steps
        return z


class PublishedFlow(PlainFlow):
    """The published package's JanusFlow in the loop of its demo (demo/app_janusflow.py)."""

    name = "published package"

    def __init__(self, size: str, device, dtype):
        if SIZES[size]["hidden_size"] != 2048:
            raise SystemExit("The published JanusFlow has one size: use --size 1b with JANUS_REFERENCE.")
        from janus.janusflow.models.modeling_vlm import MultiModalityCausalLM, MultiModalityConfig

        config = config_of(JanusFlow(flow_params(size, SIGLIP), device="meta"))
        self.model = made(dtype, device, lambda: MultiModalityCausalLM(MultiModalityConfig(**config)))
        self.llama = self.model.language_model.model
        self.checkpoint = Checkpoint(Path("random"), JanusFlow.family, self.model.state_dict(), config, "")

    def encode(self, z, t):
        return self.model.vision_gen_enc_model(z, t)


def flow_params(size: str, siglip: SiglipParams) -> JanusFlowParams:
    hidden = SIZES[size]["hidden_size"]
    return JanusFlowParams(llama_params(size), siglip, UViTParams(4, 768, 768, hidden, 2, 2, 2, 2, 0, 1))
