"""Writing checkpoints: a folder in the original layout, or one .safetensors file."""

import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from ..errors import CheckpointError, OutputError
from ..files import user_path, write_atomically, write_text
from ..janus import JanusParams
from ..janusflow import JanusFlow, JanusFlowParams
from ..networks.siglip import SiglipParams
from ..prompt import BEGIN_OF_IMAGE, BOS, END_OF_IMAGE, EOS, IMAGE_PLACEHOLDER, PAD
from .quantize import quantized_layers
from .read import METADATA, TEXT_PREFIX, VQ_PREFIX, Checkpoint

IMAGE_SIZE = 384  # of the original models, in pixels


def config_of(model) -> dict:
    """A model's config.json in the original layout."""
    llama, siglip = model.params.llama, model.params.siglip
    language = {
        "model_type": "llama",
        "vocab_size": llama.vocab_size,
        "hidden_size": llama.hidden_size,
        "intermediate_size": llama.intermediate_size,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.kv_heads,
        "max_position_embeddings": llama.max_positions,
        "rms_norm_eps": llama.norm_eps,
        "rope_theta": llama.rope_theta,
        "torch_dtype": "bfloat16",
    }
    vision = {
        "image_size": siglip.image_size,
        "model_name": "siglip_large_patch16_384",
        "num_attention_heads": siglip.heads,
        "num_hidden_layers": siglip.layers,
        "select_feature": "same",
        "select_layer": -1,
    }
    if siglip.norm_eps != SiglipParams.norm_eps:
        vision["layer_norm_eps"] = siglip.norm_eps
    sections = _janusflow_sections if model.family == JanusFlow.family else _janus_sections
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "language_config": language,
        **sections(model.params, vision),
    }


def _janus_sections(p: JanusParams, vision: dict) -> dict:
    hidden, vq = p.llama.hidden_size, p.vq
    projector = {"n_embed": hidden, "projector_type": "mlp_gelu"}
    aligner = {"depth": p.aligner_depth, "input_dim": p.siglip.width, **projector}
    gen_aligner = {"depth": p.gen_aligner_depth, "input_dim": p.gen_embed_width, **projector}
    head = {"image_token_embed": p.gen_head_width, "image_token_size": vq.codebook_size, "n_embed": hidden}
    codebook = {"image_token_size": vq.codebook_size, "n_embed": p.gen_embed_width}
    return {
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": vision},
        "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": aligner},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": codebook},
        "gen_aligner_config": {"cls": "MlpProjector", "model_type": "gen_aligner", "params": gen_aligner},
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": head},
    }


def _janusflow_sections(p: JanusFlowParams, vision: dict) -> dict:
    uvit = p.uvit
    common = {
        "block_out_channels": [uvit.channels],
        "hidden_size": uvit.hidden_size,
        "elementwise_affine": True,
        "use_bias": True,
        "dropout": 0.0,
        "use_mid_block": True,
    }
    encoder = {
        "input_channels": uvit.latent_channels,
        "stride": uvit.stride,
        "kernel_size": uvit.kernel,
        "padding": uvit.padding,
        "layers_in_middle": uvit.encoder_blocks,
        "norm_eps": uvit.norm_eps,
        **common,
    }
    decoder = {
        "in_channels": uvit.decoder_channels,
        "out_channels": uvit.latent_channels,
        "upsamples": uvit.upsamples,
        "layers_in_middle": uvit.decoder_blocks,
        "norm_eps": uvit.decoder_norm_eps,
        **common,
    }
    return {
        "vision_und_enc_config": {"cls": "CLIPVisionTower", "model_type": "vision_und_enc", "params": vision},
        "vision_gen_enc_config": {"cls": "ShallowUViTEncoder", "model_type": "vision_gen_enc", "params": encoder},
        "vision_gen_dec_config": {"cls": "ShallowUViTDecoder", "model_type": "vision_gen_dec", "params": decoder},
    }


def save_folder(checkpoint: Checkpoint, folder: str | Path, dtype: torch.dtype = torch.bfloat16):
    """Writes a checkpoint as a folder in the original layout, the weights last.

    Raises:
        CheckpointError: weights are quantised.
        OutputError: a file cannot be written.
    """
    folder = user_path(folder, OutputError)
    if quantized_layers(checkpoint.tensors):
        raise CheckpointError(
            f"{checkpoint.path} has quantised weights, which the original layout cannot hold: "
            "write one .safetensors file instead."
        )
    vision = checkpoint.config.get("vision_config") or checkpoint.config.get("vision_und_enc_config") or {}
    texts = {
        "config": checkpoint.config,
        "tokenizer_config": checkpoint.tokenizer_config,
        "processor_config": checkpoint.processor_config,
        "preprocessor_config": {
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_processor_type": "VLMImageProcessor",
            "image_size": (vision.get("params") or {}).get("image_size") or IMAGE_SIZE,
            "image_std": [0.5] * 3,
            "min_size": 14,
            "processor_class": "VLChatProcessor",
            "rescale_factor": 1 / 255,
        },
        "special_tokens_map": {
            "additional_special_tokens": [IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE],
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
        },
    }
    for name, value in texts.items():
        write_text(folder / f"{name}.json", json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    write_text(folder / "tokenizer.json", checkpoint.tokenizer)
    tensors = {name: tensor.detach().cpu().to(dtype) for name, tensor in checkpoint.tensors.items()}
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]):
    """Writes one .safetensors file. Raises OutputError when it cannot be written."""
    separate, pointers = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        # Tied weights share memory, which the format does not allow.
        separate[name] = tensor.clone() if tensor.data_ptr() in pointers else tensor
        pointers.add(tensor.data_ptr())
    write_atomically(path, lambda file: safetensors.torch.save_file(separate, file, metadata=metadata))


def save_model(model, like: Checkpoint, vq, folder: str | Path):
    """Writes a trained model as a folder in the original layout, in bfloat16.

    Args:
        like: the checkpoint whose tokenizer and configs are written.
        vq: the VQ tokenizer of a Janus model, None for JanusFlow.
    """
    tensors = dict(model.state_dict())
    if vq is not None:
        tensors |= {VQ_PREFIX + name: weight for name, weight in vq.state_dict().items()}
    save_folder(replace(like, path=Path(folder), tensors=tensors), folder)


def text_tensors(metadata: dict[str, str]) -> dict[str, torch.Tensor]:
    """The metadata of a single file as uint8 tensors, for hosts that save only tensors."""
    return {TEXT_PREFIX + key: torch.tensor(list(metadata[key].encode("utf-8")), dtype=torch.uint8) for key in METADATA}


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a single file: config, tokenizer, tokenizer_config, processor_config."""
    configs = ("config", "tokenizer_config", "processor_config")
    texts = {name: json.dumps(getattr(checkpoint, name), ensure_ascii=False) for name in configs}
    return {**texts, "tokenizer": checkpoint.tokenizer, "format": "pt"}


def save_single_file(checkpoint: Checkpoint, path: str | Path):
    """Writes weights (under their original names), config and tokenizer into one .safetensors file.

    Raises:
        OutputError: the file cannot be written.
    """
    path = user_path(path, OutputError)
    if path.suffix != ".safetensors":
        raise OutputError(f"{path} cannot be written: its name must end in .safetensors.")
    save_tensors(checkpoint.tensors, path, metadata_of(checkpoint))
