"""New small models with random weights, their starting checkpoints and their fixed image token weights."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from janus_core.checkpoint import VQ_PREFIX, Checkpoint, config_of
from janus_core.errors import CheckpointError
from janus_core.janus import Janus, JanusParams
from janus_core.janusflow import JanusFlow, JanusFlowParams
from janus_core.networks.llama import LlamaParams
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.uvit import GlobalResponseNorm, UViTParams
from janus_core.networks.vq import VQModel
from janus_core.prompt import BOS, EOS, IMAGE_PLACEHOLDER, PAD
from janus_core.training import stages

from .codebook import LEVELS
from .scenes import WIDER


def new_model(family: str, sizes: dict, vocabulary: int, vq: VQModel | None = None):
    """A model of either family with random weights.

    Args:
        sizes: keyword arguments of LlamaParams (`llama`), SiglipParams (`siglip`) and, for JanusFlow, UViTParams
            (`uvit`), as in the configs; for Janus also `gen_embed_width`, by default the codebook's width, and
            `gen_head_width`, by default the hidden size.
        vq: the trained VQ tokenizer of an AR model.
    """
    llama = LlamaParams(vocab_size=vocabulary, kv_heads=sizes["llama"]["heads"], **sizes["llama"])
    siglip = SiglipParams(**sizes["siglip"])
    if family == JanusFlow.family:
        uvit = UViTParams(hidden_size=llama.hidden_size, **sizes["uvit"])
        model = JanusFlow(JanusFlowParams(llama, siglip, uvit), attention=matmul_attention)
    else:
        width = sizes.get("gen_embed_width", vq.params.codebook_dim)
        head = sizes.get("gen_head_width", llama.hidden_size)
        params = JanusParams(llama, siglip, vq.params, gen_head_width=head, gen_embed_width=width)
        model = Janus(params, attention=matmul_attention)
    _initialise(model)
    if family == Janus.family:
        model.codebook = vq.codebook(vq.quantize.embedding.weight).detach().clone()
    return model


def matmul_attention(q, k, v, mask=None, transformer_options=None):
    """Attention (see janus_core.attention) in plain matrix products: on a CPU in bfloat16, the backward pass of
    PyTorch's kernel takes about eight times as long on sequences as short as the demos'."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


def compile_blocks(model):
    """Compiles the language model's blocks in place, for batches of any length."""
    for block in model.llama.layers:
        block.compile(dynamic=True)


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
    """Copies all weights of a checkpoint of the same family, or the language model and the understanding encoder of
    one of the other family; the original models also started from pretrained ones (JanusFlow, section 4.1).

    Raises:
        CheckpointError: a weight has another shape.
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
            raise CheckpointError(f"{checkpoint.path}: {name} does not fit the new model.")
        own[name].copy_(tensor)


KIND = 0.1  # share of a token's row that tells scenes from textures, whose patches may look the same
CELLS = 8  # rows and columns of cells in a patch; their similarities show its edges


@torch.no_grad()
def fix_image_tokens(model: Janus, scenes, textures, scale: float = 8.0):
    """Sets the token embeddings and the image head's last layer to features of the tokens' patches.

    The caller excludes `image_token_weights` from training. The model then learns to predict what a patch looks like
    instead of an arbitrary class, and can generate and read tokens that training never shows, such as a known shape in
    another colour. The head's rows have length `scale` and are rotated at random: the layer's input comes from a GELU
    and is hardly negative, so it could not reach rows of negative entries.

    Args:
        scenes, textures: each token's patch, uint8 [n, size^2 * 3] (see codebook.py).
    """
    shares = colour_shares(torch.cat((scenes, textures)))
    kinds = torch.tensor([1.0, -1.0]).repeat_interleave(torch.tensor([len(scenes), len(textures)]))[:, None]

    def features(width):
        return torch.cat((patch_features(shares, width - 1) * (1 - KIND) ** 0.5, kinds * KIND**0.5), dim=1)

    width = model.params.gen_embed_width
    model.gen_embed.weight.copy_(features(width) * width**0.5)
    width = model.params.gen_head_width
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    model.gen_head.vision_head.weight.copy_(scale * features(width) @ rotation)
    nn.init.zeros_(model.gen_head.vision_head.bias)


def colour_shares(centres, width: float = 30.0):
    """The share of every colour of the wider world at each pixel of patches: a soft choice of the nearest.

    Args:
        centres: [N, size^2 * 3], see codebook.py.
        width: of the choice, in levels of 0 to 255.

    Returns:
        [N, size^2 * colours].
    """
    palette = torch.tensor(list(WIDER.colours.values()), dtype=torch.float32)
    parts = []
    for part in centres.split(512):
        pixels = (part.float().unflatten(1, (-1, 3)) + 0.5) * (256 / LEVELS)
        distance = torch.cdist(pixels, palette.expand(len(part), -1, -1)).square()
        parts.append((-distance / (2 * width**2)).softmax(-1).flatten(1))
    return torch.cat(parts)


def patch_features(shares, width: int):
    """Unit vectors [N, width] that describe each token's patches, in equal parts: the colours that they have, where
    their edges are whatever the colours, and their pixels.

    Args:
        shares: see colour_shares.
        width: more than three times the number of colours.
    """
    pixels = shares.view(len(shares), -1, len(WIDER.colours))
    size = round(pixels.shape[1] ** 0.5)
    cells = F.adaptive_avg_pool2d(pixels.transpose(1, 2).unflatten(2, (size, size)), min(CELLS, size)).flatten(2)
    similarity = (cells.transpose(1, 2) @ cells).flatten(1)
    colours = pixels.mean(1).sqrt()
    third = width // 3
    edges, shapes = _components(similarity, third), _components(shares, width - third - len(WIDER.colours))
    parts = (colours - colours.mean(0), edges, shapes)
    return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=1) / len(parts) ** 0.5


def _components(features, count: int, rounds: int = 20):
    """The first principal components of features [N, D], each divided by the square root of its standard deviation.

    By subspace iteration from a fixed start: eigenvectors of all D directions would take minutes.
    """
    centred = features - features.mean(0)
    basis = torch.randn(centred.shape[1], count + 8, generator=torch.Generator().manual_seed(0))
    for _ in range(rounds):
        basis = torch.linalg.qr(centred.T @ (centred @ basis))[0]
    vectors = torch.linalg.eigh((centred @ basis).T @ (centred @ basis))[1][:, -count:].flip(1)
    components = centred @ (basis @ vectors)
    largest = components.abs().argmax(0, keepdim=True)
    components = components * components.gather(0, largest).sign()  # they have no sign of their own
    return components / components.std(0).sqrt()


def image_token_weights(model: Janus) -> list[nn.Parameter]:
    """The weights with one row per VQ token: their embeddings, and the last layer of the image head."""
    return [model.gen_embed.weight, *model.gen_head.vision_head.parameters()]


def new_checkpoint(model, tokenizer, path: Path = Path("new"), vq: VQModel | None = None) -> Checkpoint:
    """The checkpoint of a new model, as read_checkpoint would return it."""

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
