"""A small random model in the transformers layout, with the tokenizer of a golden checkpoint.

Its rope_theta and norm eps differ from the defaults, so that one that is ignored changes the results.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

TEMPLATE = "{% for m in messages %}<|User|>: {{ m['content'] }}\n\n{% endfor %}<|Assistant|>:"


def make_converted(folder: Path, tokenizer_from: Path) -> JanusForConditionalGeneration:
    """Saves the model and its text files to `folder`; returns the model, float32."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=640, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-2, rope_theta=500.0,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16, projection_dim=128,
        num_image_tokens=16, mlp_ratio=2.0, layer_norm_eps=1e-2,
    )  # fmt: skip
    vq = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=128, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 1, 2, 2],
        projection_dim=128, image_token_embed_dim=128,
    )  # fmt: skip
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False)
    model = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            elif not name.endswith("weight"):
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "JanusProcessor"}), encoding="utf-8")
    return model
