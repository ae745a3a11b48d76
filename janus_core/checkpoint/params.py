"""Network dimensions from tensor shapes, and the rest from config.json.

Each function raises CheckpointError where shapes are missing, do not fit together, or contradict config.json.

Where config.json is silent, the values of the official checkpoints are used: head_dim 128 in the language model and 64
in SigLIP, norm eps 1e-6, rope theta 1e4, 16384 positions.
"""

import re
from math import isqrt

from ..errors import CheckpointError
from ..janus import JanusParams
from ..janusflow import JanusFlowParams
from ..networks.llama import LlamaParams
from ..networks.siglip import SiglipParams
from ..networks.uvit import UViTParams
from ..networks.vq import GROUPS, VQParams
from . import config as fields
from .config import Config


class Shapes:
    """Shapes by tensor name. A missing name, another rank than asked for, or an empty tensor is a CheckpointError."""

    def __init__(self, tensors):
        self.shapes = {name: tuple(t.shape) for name, t in tensors.items()}

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"the weights lack {name}: download the checkpoint again.")
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(f"{name} is {list(shape)}, it must have {rank} dimensions, none of them empty.")
        return shape

    def count(self, prefix: str) -> int:
        """How many N there are among names `prefix.N.…`. Raises CheckpointError unless they are 0, 1, 2 and so on."""
        pattern = re.compile(re.escape(prefix) + r"\.(0|[1-9][0-9]*)\.")
        found = {m[1] for name in self.shapes if (m := pattern.match(name))}
        missing = next((k for k in range(len(found)) if str(k) not in found), None)
        if missing is not None:
            other = max(found, key=lambda digits: (len(digits), digits))
            raise CheckpointError(f"the weights have {prefix}.{other[:20]} but lack {prefix}.{missing}.")
        return len(found)

    def count_of(self, prefix: str) -> int:
        """As count, but none at all is a CheckpointError too."""
        count = self.count(prefix)
        if not count:
            raise CheckpointError(f"the weights lack {prefix}.0: the checkpoint is incomplete, download it again.")
        return count


def llama_params(shapes: Shapes, config: Config) -> LlamaParams:
    p = "language_model.model."
    vocab, hidden = shapes.of(p + "embed_tokens.weight", 2)
    layers = shapes.count_of(p + "layers")
    intermediate = shapes.of(p + "layers.0.mlp.gate_proj.weight", 2)[0]
    q, k = (shapes.of(p + f"layers.0.self_attn.{n}_proj.weight", 2)[0] for n in "qk")
    config.check(vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=intermediate)

    heads = config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (q // heads if heads else 128)
    if not head_dim or head_dim % 2 or q % head_dim or k % head_dim or (heads and heads * head_dim != q) or q % k:
        raise CheckpointError(
            f"the weights do not fit config.json: {q} query and {k} key channels are not {heads or 'some'} heads of "
            f"{head_dim}."
        )
    config.check(num_key_value_heads=k // head_dim)
    rope = config.section(fields.ROPE, "rope_parameters")
    if not rope.values:
        rope = config.section(fields.ROPE, "rope_scaling")
    return LlamaParams(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=layers,
        heads=q // head_dim,
        kv_heads=k // head_dim,
        head_dim=head_dim,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        max_positions=config.get("max_position_embeddings", 16384),
    )


def siglip_params(shapes: Shapes, prefix: str, config: Config) -> SiglipParams:
    p = f"{prefix}.vision_tower."
    width, _, patch, _ = shapes.of(p + "patch_embed.proj.weight", 4)
    heads = config.get("num_attention_heads") or width // 64
    if not heads or width % heads:
        raise CheckpointError(f"the weights do not fit config.json: {width} channels are not {heads} vision heads.")
    params = SiglipParams(
        width=width,
        mlp_width=shapes.of(p + "blocks.0.mlp.fc1.weight", 2)[0],
        layers=shapes.count_of(p + "blocks"),
        heads=heads,
        patch_size=patch,
        tokens=shapes.of(p + "pos_embed", 3)[1],
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )
    if isqrt(params.tokens) ** 2 != params.tokens:
        raise CheckpointError(f"{p}pos_embed has {params.tokens} positions, which are not a square image.")
    official = fields.SIGLIP_LAYERS.get((config.get("model_name"), width), params.layers)
    if config.get("num_hidden_layers", official) != params.layers:
        raise CheckpointError(
            f"the weights do not fit config.json: the vision tower has {params.layers} layers instead of "
            f"{config.get('num_hidden_layers', official)}."
        )
    config.check(image_size=params.image_size)
    return params


def vq_params(shapes: Shapes, config: Config) -> VQParams:
    p = "gen_vision_model."
    size, dim = shapes.of(p + "quantize.embedding.weight", 2)
    config.check(image_token_size=size)
    levels = shapes.count_of(p + "encoder.conv_blocks")
    params = VQParams(
        codebook_size=size,
        codebook_dim=dim,
        z_channels=shapes.of(p + "quant_conv.weight", 4)[1],
        channels=tuple(shapes.of(p + f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(levels)),
        res_blocks=shapes.count_of(p + "encoder.conv_blocks.0.res"),
        base_channels=shapes.of(p + "encoder.conv_in.weight", 4)[0],
    )
    if any(channels % GROUPS for channels in (*params.channels, params.base_channels)):
        raise CheckpointError(f"{p}encoder has {params.channels} channels, they must be multiples of {GROUPS}.")
    return params


def _depth(shapes: Shapes, config: Config, name: str, inputs: int, hidden: int) -> int:
    """The number of linear layers of a projector, whose names count the activations between them too."""
    pattern = re.compile(rf"{name}\.layers\.([0-9]{{1,4}})\.weight")
    found = sorted(int(m[1]) for tensor in shapes.shapes if (m := pattern.fullmatch(tensor)))
    if found != list(range(0, 2 * len(found), 2)) or not found:
        raise CheckpointError(f"the weights of {name} are of layers {found} instead of 0, 2 and so on.")
    section = config.section(fields.PROJECTOR, f"{name}_config", "params")
    section.check(depth=len(found), input_dim=inputs, n_embed=hidden)
    return len(found)


def janus_params(tensors, config: dict) -> JanusParams:
    shapes, config = Shapes(tensors), Config(config, {})
    codebook = config.section(fields.CODEBOOK, "gen_vision_config", "params")
    gen_embed_width = shapes.of("gen_embed.weight", 2)[1]
    codebook.check(n_embed=gen_embed_width)
    llama = llama_params(shapes, config.section(fields.LANGUAGE, "language_config"))
    siglip = siglip_params(shapes, "vision_model", config.section(fields.VISION, "vision_config", "params"))
    vq = vq_params(shapes, codebook)
    head_width = shapes.of("gen_head.output_mlp_projector.weight", 2)[0]
    head = config.section(fields.HEAD, "gen_head_config", "params")
    head.check(image_token_embed=head_width, image_token_size=vq.codebook_size, n_embed=llama.hidden_size)
    return JanusParams(
        llama=llama,
        siglip=siglip,
        vq=vq,
        aligner_depth=_depth(shapes, config, "aligner", siglip.width, llama.hidden_size),
        gen_aligner_depth=_depth(shapes, config, "gen_aligner", gen_embed_width, llama.hidden_size),
        gen_head_width=head_width,
        gen_embed_width=gen_embed_width,
    )


def uvit_params(shapes: Shapes, encoder: Config, decoder: Config) -> UViTParams:
    channels, latent_channels, kernel, _ = shapes.of("vision_gen_enc_model.in_conv.weight", 4)
    upsamples = shapes.count_of("vision_gen_dec_model.out_convs")
    stride = encoder.get("stride") or 2**upsamples
    params = UViTParams(
        latent_channels=latent_channels,
        channels=channels,
        decoder_channels=shapes.of("vision_gen_dec_model.input_norm.weight", 1)[0],
        hidden_size=shapes.of("vision_gen_enc_aligner.weight", 2)[0],
        encoder_blocks=shapes.count("vision_gen_enc_model.mid_block.res_blocks"),
        decoder_blocks=shapes.count("vision_gen_dec_model.mid_block.res_blocks"),
        kernel=kernel,
        stride=stride,
        padding=encoder.get("padding", max(0, kernel - stride)),
        upsamples=upsamples,
        norm_eps=encoder.get("norm_eps", 1e-6),
        decoder_norm_eps=decoder.get("norm_eps", 1e-6),
    )
    hidden = params.hidden_size
    if channels % 2:
        raise CheckpointError(f"vision_gen_enc_model has {channels} channels, the time embedding needs an even number.")
    encoder.check(input_channels=latent_channels, kernel_size=kernel, hidden_size=hidden)
    encoder.check(layers_in_middle=params.encoder_blocks, block_out_channels=[channels])
    decoder.check(in_channels=params.decoder_channels, out_channels=latent_channels, upsamples=upsamples)
    decoder.check(layers_in_middle=params.decoder_blocks, hidden_size=hidden)
    # A convolution must give one position per patch: 2 padding is within kernel - stride and one stride more.
    if stride != 2**upsamples or not 0 <= 2 * params.padding - (kernel - stride) < stride:
        raise CheckpointError(
            f"the weights do not fit config.json: a stride of {stride} with kernel {kernel} and padding "
            f"{params.padding} does not fit {upsamples} upsamplings by 2."
        )
    return params


def janusflow_params(tensors, config: dict) -> JanusFlowParams:
    shapes, config = Shapes(tensors), Config(config, {})
    vision = config.section(fields.VISION, "vision_und_enc_config", "params")
    return JanusFlowParams(
        llama=llama_params(shapes, config.section(fields.LANGUAGE, "language_config")),
        siglip=siglip_params(shapes, "vision_und_enc_model", vision),
        uvit=uvit_params(
            shapes,
            config.section(fields.FLOW_ENCODER, "vision_gen_enc_config", "params"),
            config.section(fields.FLOW_DECODER, "vision_gen_dec_config", "params"),
        ),
    )
