"""Network dimensions from tensor shapes, and from config.json what shapes cannot tell.

Fallbacks are the published values: head width 128 in the language model and 64 in SigLIP, Llama's norm eps 1e-6 and
rope theta 1e4, 16384 positions.
"""

import re

from ..errors import CheckpointError
from ..janus import JanusParams
from ..janusflow import JanusFlowParams
from ..networks.llama import LlamaParams
from ..networks.siglip import SiglipParams
from ..networks.uvit import UViTParams
from ..networks.vq import VQParams


class Shapes:
    """Shapes by tensor name, with a clear error for a name that is not there."""

    def __init__(self, tensors):
        self.shapes = {name: tuple(t.shape) for name, t in tensors.items()}

    def __getitem__(self, name):
        if name not in self.shapes:
            raise CheckpointError(f"The weights lack {name}.")
        return self.shapes[name]

    def __contains__(self, name):
        return name in self.shapes

    def count(self, prefix: str) -> int:
        """One more than the largest N among names `prefix.N.…`, 0 if there is none."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return max((int(m[1]) + 1 for name in self.shapes if (m := pattern.match(name))), default=0)


def _params_of(config: dict, key: str) -> dict:
    return (config.get(key) or {}).get("params") or {}


def _agree(config: dict, key: str, found: int):
    if key in config and config[key] != found:
        raise CheckpointError(
            f"The weights do not fit the config: config.json says {key} {config[key]}, they have {found}."
        )


def llama_params(shapes: Shapes, config: dict) -> LlamaParams:
    p = "language_model.model."
    vocab, hidden = shapes[p + "embed_tokens.weight"]
    layers = shapes.count(p + "layers")
    if layers == 0:
        raise CheckpointError("The weights hold no language model layers.")
    intermediate = shapes[p + "layers.0.mlp.gate_proj.weight"][0]
    q, k = (shapes[p + f"layers.0.self_attn.{n}_proj.weight"][0] for n in "qk")
    _agree(config, "hidden_size", hidden)
    _agree(config, "num_hidden_layers", layers)
    _agree(config, "intermediate_size", intermediate)

    heads = config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (q // heads if heads else 128)
    if q % head_dim or k % head_dim or (heads and heads * head_dim != q):
        raise CheckpointError(
            f"The weights do not fit the config: {heads or 'some'} heads of {head_dim} do not make {q} query channels."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError(f"Rotary scaling {rope} is of no published Janus model and is not supported.")
    return LlamaParams(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=layers,
        heads=q // head_dim,
        kv_heads=k // head_dim,
        head_dim=head_dim,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=config.get("rope_theta") or rope.get("rope_theta") or 10000.0,
        max_positions=config.get("max_position_embeddings", 16384),
    )


def siglip_params(shapes: Shapes, prefix: str, config: dict) -> SiglipParams:
    p = f"{prefix}.vision_tower."
    width, _, patch, _ = shapes[p + "patch_embed.proj.weight"]
    return SiglipParams(
        width=width,
        mlp_width=shapes[p + "blocks.0.mlp.fc1.weight"][0],
        layers=shapes.count(p + "blocks"),
        heads=config.get("num_attention_heads") or width // 64,
        patch_size=patch,
        tokens=shapes[p + "pos_embed"][1],
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )


def vq_params(shapes: Shapes) -> VQParams:
    p = "gen_vision_model."
    size, dim = shapes[p + "quantize.embedding.weight"]
    levels = shapes.count(p + "encoder.conv_blocks")
    return VQParams(
        codebook_size=size,
        codebook_dim=dim,
        z_channels=shapes[p + "quant_conv.weight"][1],
        channels=tuple(shapes[p + f"encoder.conv_blocks.{i}.res.0.conv1.weight"][0] for i in range(levels)),
        res_blocks=shapes.count(p + "encoder.conv_blocks.0.res"),
    )


def _depth(shapes: Shapes, prefix: str) -> int:
    return shapes.count(prefix + ".layers") // 2 + 1


def janus_params(tensors, config: dict) -> JanusParams:
    shapes = Shapes(tensors)
    return JanusParams(
        llama=llama_params(shapes, config.get("language_config") or {}),
        siglip=siglip_params(shapes, "vision_model", _params_of(config, "vision_config")),
        vq=vq_params(shapes),
        aligner_depth=_depth(shapes, "aligner"),
        gen_aligner_depth=_depth(shapes, "gen_aligner"),
        gen_head_width=shapes["gen_head.output_mlp_projector.weight"][0],
    )


def janusflow_params(tensors, config: dict) -> JanusFlowParams:
    shapes = Shapes(tensors)
    encoder = _params_of(config, "vision_gen_enc_config")
    channels, latent_channels, kernel, _ = shapes["vision_gen_enc_model.in_conv.weight"]
    stride = encoder.get("stride", 2)
    padding = encoder.get("padding")
    uvit = UViTParams(
        latent_channels=latent_channels,
        channels=channels,
        decoder_channels=shapes["vision_gen_dec_model.input_norm.weight"][0],
        hidden_size=shapes["vision_gen_enc_aligner.weight"][0],
        encoder_blocks=shapes.count("vision_gen_enc_model.mid_block.res_blocks"),
        decoder_blocks=shapes.count("vision_gen_dec_model.mid_block.res_blocks"),
        kernel=kernel,
        stride=stride,
        padding=kernel - stride if padding is None else padding,
        upsamples=shapes.count("vision_gen_dec_model.out_convs"),
        norm_eps=encoder.get("norm_eps", 1e-6),
    )
    if 2**uvit.upsamples != stride:
        raise CheckpointError(
            f"The weights do not fit the config: a stride of {stride} does not undo {uvit.upsamples} upsampling layers."
        )
    return JanusFlowParams(
        llama=llama_params(shapes, config.get("language_config") or {}),
        siglip=siglip_params(shapes, "vision_und_enc_model", _params_of(config, "vision_und_enc_config")),
        uvit=uvit,
    )
