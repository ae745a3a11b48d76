"""New small models with random weights, and writing any model as a folder in the published layout."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import Checkpoint
from ..checkpoint.read import VQ_PREFIX
from ..checkpoint.write import config_of
from ..errors import CheckpointError
from ..janus import Janus, JanusParams
from ..janusflow import JanusFlow, JanusFlowParams
from ..networks.llama import LlamaParams
from ..networks.siglip import SiglipParams
from ..networks.uvit import GlobalResponseNorm, UViTParams
from ..networks.vq import VQModel
from ..prompt import BOS, EOS, IMAGE_PLACEHOLDER, PAD
from . import stages
from .scenes import COLOURS


def new_model(family: str, sizes: dict, vocabulary: int, vq: VQModel | None = None):
    """A model of either family with random weights.

    Args:
        sizes: keyword arguments of LlamaParams (`llama`), SiglipParams (`siglip`) and, for JanusFlow, UViTParams
            (`uvit`), as the configs have them; for Janus also `gen_embed_width`, the codebook's width by default.
        vq: the trained tokenizer of an AR model.
    """
    llama = LlamaParams(vocab_size=vocabulary, kv_heads=sizes["llama"]["heads"], **sizes["llama"])
    siglip = SiglipParams(**sizes["siglip"])
    if family == JanusFlow.family:
        uvit = UViTParams(hidden_size=llama.hidden_size, **sizes["uvit"])
        model = JanusFlow(JanusFlowParams(llama, siglip, uvit), attention=matmul_attention)
    else:
        width = sizes.get("gen_embed_width", vq.params.codebook_dim)
        params = JanusParams(llama, siglip, vq.params, gen_head_width=llama.hidden_size, gen_embed_width=width)
        model = Janus(params, attention=matmul_attention)
    _initialise(model)
    if family == Janus.family:
        model.codebook = vq.codebook(vq.quantize.embedding.weight).detach().clone()
    return model


def matmul_attention(q, k, v, mask=None, transformer_options=None):
    """Attention (see janus_core.attention) in plain products: backwards in bfloat16 on a CPU, the fused kernel takes
    about eight times as long on sequences as short as the demos'."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


@torch.no_grad()
def _initialise(model):
    """PyTorch's own initialisation, with small embeddings, residual branches scaled by 1 / sqrt(2 layers) and a first
    velocity of zero."""
    for module in model.modules():
        if isinstance(module, GlobalResponseNorm):
            module.weight.zero_()
            module.bias.zero_()
    nn.init.normal_(model.llama.embed_tokens.weight, std=0.1)
    branch = 1 / math.sqrt(2 * len(model.llama.layers))
    for block in model.llama.layers:
        block.self_attn.o_proj.weight.mul_(branch)
        block.mlp.down_proj.weight.mul_(branch)
    initialise_tower(tower_of(model))
    if model.family == JanusFlow.family:
        nn.init.normal_(model.beg_of_und_embed, std=0.1)
        last = model.vision_gen_dec_model.out_convs[-1].unpatch_conv
        last.weight.zero_()
        last.bias.zero_()


def tower_of(model):
    """The understanding encoder of a model of either family."""
    return model.vision_und_enc_model if model.family == JanusFlow.family else model.vision_model


@torch.no_grad()
def initialise_tower(tower):
    """Random position embeddings of an encoder; its layers initialise themselves."""
    nn.init.normal_(tower.vision_tower.pos_embed, std=0.1)


@torch.no_grad()
def start_from(model, checkpoint: Checkpoint):
    """Copies a checkpoint of the same family, or the language model and the understanding encoder of the other one, as
    the published models started from trained ones (JanusFlow, section 4.1).

    Raises:
        CheckpointError: they have other sizes.
    """
    own = model.state_dict()
    encoders = stages.ENCODERS[checkpoint.family], stages.ENCODERS[model.family]
    for name, tensor in checkpoint.tensors.items():
        if model.family != checkpoint.family:
            if not name.startswith((stages.LANGUAGE_MODEL, encoders[0])):
                continue
            name = name.replace(*encoders, 1)
        elif name.startswith(VQ_PREFIX):
            continue
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(f"{checkpoint.path}: {name} does not fit the model that shall start from it.")
        own[name].copy_(tensor)


CELLS = 8  # per side of a patch, whose likeness tells where its edges run


@torch.no_grad()
def fix_image_tokens(model: Janus, centres, scale: float = 8.0):
    """Gives the token embeddings and the image head's last layer fixed values, which say what a token looks like;
    `image_token_weights` are then to be kept from training.

    What is learnt is then to name what a patch shows, not a class without likeness to others, and tokens that training
    never shows (a known shape in another colour) can be drawn and be seen when they have been. The head's rows are
    `scale` long and turned at random: what the layer reads has been through a GELU and is hardly negative, so a row of
    negative entries could not be reached.

    Args:
        centres: of each token's patches the share of every colour at every pixel, [N, side^2 * colours].
    """
    width = model.params.gen_embed_width
    model.gen_embed.weight.copy_(token_looks(centres, width) * width**0.5)
    width = model.params.gen_head_width
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    model.gen_head.vision_head.weight.copy_(scale * token_looks(centres, width) @ turn)
    nn.init.zeros_(model.gen_head.vision_head.bias)


def token_looks(centres, width: int):
    """What each token looks like, as unit vectors [N, width], in equal parts: which colours its patches have, where
    their edges run whatever the colours, and what their pixels are.

    Args:
        centres: see fix_image_tokens.
        width: more than three times the number of colours.
    """
    pixels = centres.view(len(centres), -1, len(COLOURS))
    side = round(pixels.shape[1] ** 0.5)
    cells = F.adaptive_avg_pool2d(pixels.transpose(1, 2).unflatten(2, (side, side)), min(CELLS, side)).flatten(2)
    likeness = (cells.transpose(1, 2) @ cells).flatten(1)
    colours = pixels.mean(1).sqrt()
    third = width // 3
    edges, looks = _components(likeness, third), _components(centres, width - third - len(COLOURS))
    parts = (colours - colours.mean(0), edges, looks)
    return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=1) / len(parts) ** 0.5


def _components(features, count: int):
    """The first principal components of features [N, D], each divided by the square root of its standard deviation."""
    centred = features - features.mean(0)
    components = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:count].T
    return components / components.std(0).sqrt()


def image_token_weights(model: Janus) -> list[nn.Parameter]:
    """The weights that tell VQ tokens apart, going in and coming out."""
    return [model.gen_embed.weight, *model.gen_head.vision_head.parameters()]


def new_checkpoint(model, tokenizer, path: Path = Path("new"), vq: VQModel | None = None) -> Checkpoint:
    """A model's checkpoint, float32, as read_checkpoint would give it."""

    def token(content):
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"__type": "AddedToken", "content": content, **flags}

    tensors = dict(model.state_dict())
    if vq is not None:
        tensors |= {VQ_PREFIX + name: weight for name, weight in vq.state_dict().items()}
    tokenizer_config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token(BOS),
        "eos_token": token(EOS),
        "pad_token": token(PAD),
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.params.llama.max_positions,
        "tokenizer_class": "LlamaTokenizer",
    }
    processor_config = {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": IMAGE_PLACEHOLDER,
        "mask_prompt": False,
        "num_image_tokens": model.params.siglip.tokens,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek",
    }
    config = config_of(model)
    return Checkpoint(path, model.family, tensors, config, tokenizer.to_str(), tokenizer_config, processor_config)
