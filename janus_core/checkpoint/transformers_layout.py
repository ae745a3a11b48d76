"""Converts the Hugging Face transformers layout (`model_type: janus`) to the original one."""

import re

import torch

from ..errors import CheckpointError

LLAMA = "language_model.model."
# Regular expressions and replacements, all applied in this order.
_RULES = [
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision_model.vision_tower.patch_embed.proj."),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight$", "vision_model.vision_tower.pos_embed"),
    (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
    (r"^(vision_model\..*)\.self_attn\.projection_layer\.", r"\1.attn.proj."),
    (r"^(vision_model\..*)\.self_attn\.", r"\1.attn."),
    (r"^(vision_model\..*)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.", "gen_head."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"^(gen_vision_model\.decoder)\.up\.", r"\1.conv_blocks."),
    (r"^(gen_vision_model\.encoder)\.down\.", r"\1.conv_blocks."),
    (r"^(gen_vision_model\..*conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"^(gen_vision_model\.\w+\.mid)\.block_1\.", r"\1.0."),
    (r"^(gen_vision_model\.\w+\.mid)\.attn_1\.", r"\1.1."),
    (r"^(gen_vision_model\.\w+\.mid)\.block_2\.", r"\1.2."),
]
_VISION = ("image_size", "num_attention_heads", "num_hidden_layers", "layer_norm_eps", "hidden_act")
_ALIGNERS = {"generation_aligner": "gen_aligner", "aligner": "aligner"}


def is_converted(names) -> bool:
    """Whether tensor names are of the transformers layout."""
    return any(name.startswith("model.vqmodel.") for name in names)


def original_name(name: str) -> str:
    """The original name of a tensor; q, k and v of the vision tower stay separate."""
    aligner = re.match(r"^model\.(generation_aligner|aligner)\.(fc1|hidden_layers\.([0-9]{1,4}))\.(weight|bias)$", name)
    if aligner:
        index = 0 if aligner[2] == "fc1" else 2 * (int(aligner[3]) + 1)
        return f"{_ALIGNERS[aligner[1]]}.layers.{index}.{aligner[4]}"
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def transformers_name(name: str) -> str:
    """The name in transformers' JanusForConditionalGeneration of a tensor of the Llama in the language model."""
    if not name.startswith(LLAMA):
        raise ValueError(f"{name} is not of the Llama in the language model.")
    return "model.language_model." + name.removeprefix(LLAMA)


def joined_attention(name: str) -> tuple[str, str]:
    """The name of the tensor into which a q, k or v of the vision tower is concatenated, and which of the three it is.

    (name, "") for any other tensor.
    """
    found = re.match(r"^(vision_model\..*\.attn)\.([qkv])_proj\.(weight|bias)$", name)
    return (f"{found[1]}.qkv.{found[3]}", found[2]) if found else (name, "")


def original_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames tensors, concatenates q, k and v of the vision tower, and restores tied and reshaped tensors."""
    out, parts = {}, {}
    for name, tensor in tensors.items():
        name = original_name(name)
        joined, part = joined_attention(name)
        if part:
            parts.setdefault(joined, {})[part] = tensor
        elif name == "vision_model.vision_tower.pos_embed":
            out[name] = tensor.unsqueeze(0)
        else:
            out[name] = tensor
    for name, qkv in parts.items():
        if len(qkv) != 3:
            raise CheckpointError(f"The weights lack q, k or v of {name}: download the checkpoint again.")
        if len({(part.shape, part.dtype) for part in qkv.values()}) > 1 or not qkv["q"].dim():
            raise CheckpointError(
                f"The shapes or dtypes of q, k and v of {name} differ: download the checkpoint again."
            )
        out[name] = torch.cat([qkv["q"], qkv["k"], qkv["v"]])
    embedding = out.get("language_model.model.embed_tokens.weight")
    if embedding is not None:
        out.setdefault("language_model.lm_head.weight", embedding)
    return out


def original_config(config: dict, chat_template: str) -> tuple[dict, dict]:
    """The original form of a transformers config.json and chat template.

    Returns:
        (config, processor_config).
    """
    sections = {name: config.get(name) or {} for name in ("text_config", "vision_config", "vq_config")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise CheckpointError(f"config.json: {name} must be an object.")
    text, vision, vq = sections.values()
    original = {
        "model_type": "multi_modality",
        "language_config": text,
        "vision_config": {"params": {name: vision[name] for name in _VISION if name in vision}},
        "gen_vision_config": {"params": {"image_token_size": vq.get("num_embeddings"), "n_embed": vq.get("embed_dim")}},
    }
    plain = bool(chat_template) and "<|User|>" not in chat_template
    return original, {"sft_format": "deepseek_old" if plain else "deepseek"}
