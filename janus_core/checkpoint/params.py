"""Network dimensions from tensor shapes, and the rest from config.json.

Where config.json is silent, the values of the official checkpoints are used: head_dim 128 in the language model and 64
in SigLIP, norm eps 1e-6, rope theta 1e4, 16384 positions.
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
    """Shapes by tensor name; a missing name is a CheckpointError."""

    def __init__(self, tensors):
        self.shapes = {name: tuple(t.shape) for name, t in tensors.items()}

    def __getitem__(self, name):
        if name not in self.shapes:
            raise CheckpointError(f"the weights lack {name}: download the checkpoint again.")
        return self.shapes[name]

    def count(self, prefix: str) -> int:
        """One more than the largest N among names `prefix.N.…`, 0 without such names."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return max((int(m[1]) + 1 for name in self.shapes if (m := pattern.match(name))), default=0)


class Config:
    """A section of config.json."""

    def __init__(self, values, name: str = "config.json"):
        if not isinstance(values or {}, dict):
            raise CheckpointError(f"config.json: {name} must be an object.")
        self.values, self.name = values or {}, name

    def section(self, *keys: str) -> "Config":
        """A nested section, empty if missing."""
        section = self
        for key in keys:
            section = Config(section.values.get(key), key)
        return section

    def number(self, key: str, default=None):
        """The number under `key`, or the default. Raises CheckpointError if it is something else."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise CheckpointError(f"config.json: {key} in {self.name} must be a number, but is {value!r}.")
        return value

    def check(self, key: str, found: int):
        """Raises CheckpointError if the config has another number than the weights."""
        if self.number(key, found) != found:
            raise CheckpointError(
                f"the weights do not fit config.json: {key} is {self.values[key]}, but the weights have {found}."
            )


def llama_params(shapes: Shapes, config: Config) -> LlamaParams:
    p = "language_model.model."
    vocab, hidden = shapes[p + "embed_tokens.weight"]
    layers = shapes.count(p + "layers")
    if layers == 0:
        raise CheckpointError("the weights have no language model layers: the checkpoint is incomplete.")
    intermediate = shapes[p + "layers.0.mlp.gate_proj.weight"][0]
    q, k = (shapes[p + f"layers.0.self_attn.{n}_proj.weight"][0] for n in "qk")
    config.check("vocab_size", vocab)
    config.check("hidden_size", hidden)
    config.check("num_hidden_layers", layers)
    config.check("intermediate_size", intermediate)

    heads = config.number("num_attention_heads")
    head_dim = config.number("head_dim") or (q // heads if heads else 128)
    if q % head_dim or k % head_dim or (heads and heads * head_dim != q):
        raise CheckpointError(
            f"the weights do not fit config.json: {q} query channels are not {heads or 'some'} heads of {head_dim}."
        )
    config.check("num_key_value_heads", k // head_dim)
    rope = config.section("rope_parameters").values or config.section("rope_scaling").values
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError(f"config.json: rope_scaling {rope} is not supported, since no Janus model uses it.")
    return LlamaParams(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=layers,
        heads=q // head_dim,
        kv_heads=k // head_dim,
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=config.number("rope_theta") or rope.get("rope_theta") or 10000.0,
        max_positions=config.number("max_position_embeddings", 16384),
    )


def siglip_params(shapes: Shapes, prefix: str, config: Config) -> SiglipParams:
    p = f"{prefix}.vision_tower."
    width, _, patch, _ = shapes[p + "patch_embed.proj.weight"]
    heads = config.number("num_attention_heads") or width // 64
    if not heads or width % heads:
        raise CheckpointError(f"the weights do not fit config.json: {width} channels are not {heads} vision heads.")
    params = SiglipParams(
        width=width,
        mlp_width=shapes[p + "blocks.0.mlp.fc1.weight"][0],
        layers=shapes.count(p + "blocks"),
        heads=heads,
        patch_size=patch,
        tokens=shapes[p + "pos_embed"][1],
        norm_eps=config.number("layer_norm_eps", 1e-6),
    )
    config.check("image_size", params.image_size)
    return params


def vq_params(shapes: Shapes, config: Config) -> VQParams:
    p = "gen_vision_model."
    size, dim = shapes[p + "quantize.embedding.weight"]
    config.check("image_token_size", size)
    levels = shapes.count(p + "encoder.conv_blocks")
    return VQParams(
        codebook_size=size,
        codebook_dim=dim,
        z_channels=shapes[p + "quant_conv.weight"][1],
        channels=tuple(shapes[p + f"encoder.conv_blocks.{i}.res.0.conv1.weight"][0] for i in range(levels)),
        res_blocks=shapes.count(p + "encoder.conv_blocks.0.res"),
        base_channels=shapes[p + "encoder.conv_in.weight"][0],
    )


def _depth(shapes: Shapes, prefix: str) -> int:
    return shapes.count(prefix + ".layers") // 2 + 1


def janus_params(tensors, config: dict) -> JanusParams:
    shapes, config = Shapes(tensors), Config(config)
    codebook = config.section("gen_vision_config", "params")
    gen_embed_width = shapes["gen_embed.weight"][1]
    codebook.check("n_embed", gen_embed_width)
    return JanusParams(
        llama=llama_params(shapes, config.section("language_config")),
        siglip=siglip_params(shapes, "vision_model", config.section("vision_config", "params")),
        vq=vq_params(shapes, codebook),
        aligner_depth=_depth(shapes, "aligner"),
        gen_aligner_depth=_depth(shapes, "gen_aligner"),
        gen_head_width=shapes["gen_head.output_mlp_projector.weight"][0],
        gen_embed_width=gen_embed_width,
    )


def uvit_params(shapes: Shapes, encoder: Config, decoder: Config) -> UViTParams:
    channels, latent_channels, kernel, _ = shapes["vision_gen_enc_model.in_conv.weight"]
    upsamples = shapes.count("vision_gen_dec_model.out_convs")
    stride = encoder.number("stride") or 2**upsamples
    encoder.check("input_channels", latent_channels)
    if stride != 2**upsamples:
        raise CheckpointError(
            f"the weights do not fit config.json: stride is {stride}, but {upsamples} upsamplings need {2**upsamples}."
        )
    return UViTParams(
        latent_channels=latent_channels,
        channels=channels,
        decoder_channels=shapes["vision_gen_dec_model.input_norm.weight"][0],
        hidden_size=shapes["vision_gen_enc_aligner.weight"][0],
        encoder_blocks=shapes.count("vision_gen_enc_model.mid_block.res_blocks"),
        decoder_blocks=shapes.count("vision_gen_dec_model.mid_block.res_blocks"),
        kernel=kernel,
        stride=stride,
        padding=encoder.number("padding", kernel - stride),
        upsamples=upsamples,
        norm_eps=encoder.number("norm_eps", 1e-6),
        decoder_norm_eps=decoder.number("norm_eps", 1e-6),
    )


def janusflow_params(tensors, config: dict) -> JanusFlowParams:
    shapes, config = Shapes(tensors), Config(config)
    return JanusFlowParams(
        llama=llama_params(shapes, config.section("language_config")),
        siglip=siglip_params(shapes, "vision_und_enc_model", config.section("vision_und_enc_config", "params")),
        uvit=uvit_params(
            shapes,
            config.section("vision_gen_enc_config", "params"),
            config.section("vision_gen_dec_config", "params"),
        ),
    )
