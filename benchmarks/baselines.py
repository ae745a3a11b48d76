"""Baselines of benchmarks/speed.py: other implementations of both samplers, with random weights at real sizes.

Janus-Pro is compared with transformers' `generate(generation_mode="image")`, JanusFlow with the original loop on
transformers' LlamaModel, which computes the whole sequence in every step. If the environment variable JANUS_REFERENCE
names a checkout of deepseek-ai/Janus (its package needs transformers 4, attrdict, einops and timm), the original models
in their own loops are the baselines instead.

Modules that sampling does not use (vision tower, VQ tokenizer) are small where their size is free.
"""

import os
import sys
from pathlib import Path

import torch
import transformers

from janus_core.checkpoint import Checkpoint, config_of
from janus_core.checkpoint.transformers_layout import original_tensors
from janus_core.janus import Janus, JanusParams
from janus_core.janusflow import JanusFlow, JanusFlowParams
from janus_core.networks.llama import LlamaParams
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.uvit import UViTParams
from janus_core.networks.vq import VQParams

SIZES = {
    "1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, num_attention_heads=32),
    "demo": dict(hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6),
}
VOCABULARY, IMAGE_TOKENS = 102400, 24 * 24
EOS, PAD, BOS, BEGIN_OF_IMAGE = range(4)  # arbitrary, since the weights are random
SIGLIP = SiglipParams(width=1024, mlp_width=4096, layers=24, heads=16, patch_size=16, tokens=IMAGE_TOKENS)
VQ = VQParams(16384, 8, 256, (128, 128, 256, 256, 512))
SMALL_VQ = VQParams(16384, 8, 64, (32, 32, 32, 64, 64))
SMALL_SIGLIP = SiglipParams(width=64, mlp_width=64, layers=1, heads=1, patch_size=16, tokens=IMAGE_TOKENS)


def original_repository() -> str | None:
    """The checkout that JANUS_REFERENCE names, put on sys.path; None if it is not set.

    Raises:
        SystemExit: the folder is not a checkout of deepseek-ai/Janus.
    """
    folder = os.environ.get("JANUS_REFERENCE")
    if folder and folder not in sys.path:
        if not (Path(folder) / "janus" / "models").is_dir():
            raise SystemExit(f"JANUS_REFERENCE: {folder} is not a checkout of deepseek-ai/Janus.")
        sys.path.insert(0, folder)
    return folder


def randomise(model):
    """Gives a model random weights of a trained model's magnitude, in place and in its own dtype."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(1 if parameter.numel() > 1 else 0)
    return model.eval()


def build_random(dtype, device, build):
    """The model that build() returns, on `device`, with random weights in `dtype`."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build()
        return randomise(model.to(device))
    finally:
        torch.set_default_dtype(torch.float32)


def llama_config(size: str):
    return transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **SIZES[size])


def llama_params(size: str) -> LlamaParams:
    hidden, inner, layers, heads = SIZES[size].values()
    return LlamaParams(VOCABULARY, hidden, inner, layers, heads, heads, hidden // heads, max_positions=4096)


class TransformersJanus:
    """transformers' Janus. `checkpoint` holds its weights under the original names."""

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
        self.model = build_random(dtype, device, lambda: transformers.JanusForConditionalGeneration(config))
        self.model.generation_config.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}
        language = text.to_dict() | {"rope_scaling": None}
        tensors = original_tensors(self.model.state_dict())
        self.checkpoint = Checkpoint(Path("random"), Janus.family, tensors, {"language_config": language}, "")

    def generate(self, ids, batch: int, tokens: int):
        """Samples `batch` images after the prompt ids [L]; `tokens` must be the number given to the constructor."""
        self.model.generate(
            ids.repeat(batch, 1), attention_mask=torch.ones(batch, len(ids), dtype=torch.long, device=ids.device),
            generation_mode="image", do_sample=True, guidance_scale=5, max_length=len(ids) + tokens,
            bos_token_id=BOS, pad_token_id=PAD, eos_token_id=EOS,
        )  # fmt: skip


class OriginalJanus:
    """The original package's Janus in its own sampling loop (generation_inference.py)."""

    name = "original package"

    def __init__(self, size: str, tokens: int, device, dtype):
        from janus.models.modeling_vlm import MultiModalityCausalLM, MultiModalityConfig

        config = config_of(Janus(janus_params(size, SIGLIP, VQ), device="meta"))
        self.model = build_random(dtype, device, lambda: MultiModalityCausalLM(MultiModalityConfig(**config)))
        self.checkpoint = Checkpoint(Path("random"), Janus.family, self.model.state_dict(), config, "")

    def generate(self, ids, batch: int, tokens: int):
        """Samples `batch` images after the prompt ids [L]; conditional and unconditional rows alternate."""
        rows = ids.repeat(2 * batch, 1)
        rows[1::2, 1:-1] = PAD
        embeds, past = self.model.language_model.get_input_embeddings()(rows), None
        for _ in range(tokens):
            out = self.model.language_model.model(inputs_embeds=embeds, use_cache=True, past_key_values=past)
            past = out.past_key_values
            logits = self.model.gen_head(out.last_hidden_state[:, -1])
            cond, uncond = logits[0::2], logits[1::2]
            token = torch.multinomial(torch.softmax(uncond + 5 * (cond - uncond), dim=-1), num_samples=1)
            embeds = self.model.prepare_gen_img_embeds(token.repeat_interleave(2, dim=0))


class TransformersFlow:
    """The original JanusFlow loop on transformers' LlamaModel; the U-ViT is janus_core's."""

    name = "original loop"

    def __init__(self, size: str, device, dtype):
        params = flow_params(size, SMALL_SIGLIP)
        self.model = randomise(JanusFlow(params, device=device, dtype=dtype))
        tensors, prefix = self.model.state_dict(), "language_model.model."
        with torch.device(device):
            self.llama = transformers.LlamaModel(llama_config(size)).to(device, dtype).eval()
        inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        self.llama.load_state_dict(inner, assign=True)
        self.checkpoint = Checkpoint(Path("random"), JanusFlow.family, tensors, config_of(self.model), "")

    def encode(self, z, t):
        skip, t_emb = self.model.vision_gen_enc_model(z, t)
        return skip, t_emb, skip

    def generate(self, embeds, visible, z, steps: int, guidance: float = 2.0):
        """Integrates noise z [B, 4, H, W] to latents with guided Euler steps.

        Args:
            embeds: prompts without their last token, [2 B, L, hidden], the conditional rows first.
            visible: bool [2 B, L], False where attention does not see a token.
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
            cond, uncond = v.float().chunk(2)
            z = z + (guidance * cond - (guidance - 1) * uncond) / steps
        return z


class OriginalFlow(TransformersFlow):
    """The original package's JanusFlow in the loop of its demo (demo/app_janusflow.py)."""

    name = "original package"

    def __init__(self, size: str, device, dtype):
        if SIZES[size]["hidden_size"] != 2048:
            raise SystemExit("The original JanusFlow has one size: use --size 1b with JANUS_REFERENCE.")
        from janus.janusflow.models.modeling_vlm import MultiModalityCausalLM, MultiModalityConfig

        config = config_of(JanusFlow(flow_params(size, SIGLIP), device="meta"))
        self.model = build_random(dtype, device, lambda: MultiModalityCausalLM(MultiModalityConfig(**config)))
        self.llama = self.model.language_model.model
        self.checkpoint = Checkpoint(Path("random"), JanusFlow.family, self.model.state_dict(), config, "")

    def encode(self, z, t):
        return self.model.vision_gen_enc_model(z, t)


def janus_params(size: str, siglip: SiglipParams, vq: VQParams) -> JanusParams:
    return JanusParams(llama_params(size), siglip, vq, gen_head_width=SIZES[size]["hidden_size"])


def flow_params(size: str, siglip: SiglipParams) -> JanusFlowParams:
    hidden = SIZES[size]["hidden_size"]
    return JanusFlowParams(llama_params(size), siglip, UViTParams(4, 768, 768, hidden, 2, 2, 2, 2, 0, 1))
