"""Checkpoints with random weights, in the original layout: `python -m benchmarks.synthetic --help`.

They have the names, shapes and dtype (bfloat16) of the official files, so that loading and speed can be measured where
these are not at hand; size "demo" is small. The tokenizer is the demo's. They are cached outside the repository.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks import AR, FLOW, baselines
from janus_core.checkpoint import VQ_PREFIX, Checkpoint, config_of, quantized, read_checkpoint, save_folder
from janus_core.checkpoint.quantize import DECODER_LAYERS
from janus_core.janus import Janus
from janus_core.janusflow import JanusFlow
from janus_core.networks.siglip import SiglipParams
from janus_core.networks.vq import VQModel, VQParams
from janus_core.vae import CONFIG as VAE_CONFIG

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "janus-native" / "synthetic"
LAYOUTS = ("safetensors", "bin", "sharded-bin")
SHARDS = 3
SMALL_SIGLIP = SiglipParams(width=192, mlp_width=512, layers=4, heads=6, patch_size=16, tokens=8 * 8)
LORA_RANK = 16


def siglip_of(size: str) -> SiglipParams:
    """The vision tower of a size; its image size is the model's."""
    return SMALL_SIGLIP if size == "demo" else baselines.SIGLIP


def vq_of(size: str) -> VQParams:
    """The image tokenizer of a size."""
    return baselines.SMALL_VQ if size == "demo" else baselines.VQ


def shapes_of(family: str, size: str):
    """(config, {tensor name: shape}) of a checkpoint, without any weights in memory."""
    siglip = siglip_of(size)
    if family == "flow":
        model = JanusFlow(baselines.flow_params(size, siglip), device="meta")
        return config_of(model), {name: tensor.shape for name, tensor in model.state_dict().items()}
    params = baselines.janus_params(size, siglip, vq_of(size))
    model, vq = Janus(params, device="meta"), VQModel(params.vq, device="meta")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shapes |= {VQ_PREFIX + name: tensor.shape for name, tensor in vq.state_dict().items()}
    return config_of(model), shapes


def weight_bytes(family: str, size: str, dtype: torch.dtype, weight_dtype: str | None = None) -> int:
    """Bytes of all weights in a dtype; with a `weight_dtype` of 8 bits, its layers count as they are stored."""
    config, shapes = shapes_of(family, size)
    tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    checkpoint = Checkpoint(Path("shapes"), family, tensors, config, "")
    if weight_dtype is not None:
        checkpoint = quantized(checkpoint, weight_dtype)
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def random_tensors(shapes: dict) -> dict[str, torch.Tensor]:
    """Weights of a trained model's magnitude: matrices of variance 1 / inputs, norms 1, biases 0."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            std = shape[1:].numel() ** -0.5
            tensors[name] = torch.empty(shape, dtype=torch.bfloat16).normal_(std=std, generator=generator)
        else:
            value = 1.0 if name.endswith("weight") else 0.0
            tensors[name] = torch.full(shape, value, dtype=torch.bfloat16)
    return tensors


def synthetic_checkpoint(family: str, size: str = "1b", layout: str = "safetensors") -> Path:
    """The folder of a synthetic checkpoint, which is written first where it is not cached.

    Args:
        family: "ar" or "flow".
        size: a key of baselines.SIZES.
        layout: one of LAYOUTS: one .safetensors file, one .bin file, or .bin shards with an index. All layouts hold
            the same weights.
    """
    folder = CACHE / f"{family}-{size}-{layout}"
    if (folder / "complete").is_file():
        return folder
    config, shapes = shapes_of(family, size)
    if layout == "safetensors":
        tensors = random_tensors(shapes)
    else:
        tensors = load_file(synthetic_checkpoint(family, size) / "model.safetensors")
    demo = read_checkpoint(AR if family == "ar" else FLOW)
    processor = {**demo.processor_config, "num_image_tokens": siglip_of(size).tokens}
    save_folder(replace(demo, path=folder, config=config, processor_config=processor, tensors={}), folder)
    (folder / "model.safetensors").unlink()
    if layout == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        _save_shards(tensors, folder)
    (folder / "complete").touch()
    return folder


def _save_shards(tensors: dict, folder: Path):
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards, before = [{} for _ in range(SHARDS)], 0
    for name, tensor in tensors.items():
        shards[before * SHARDS // total][name] = tensor
        before += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"pytorch_model-{number:05}-of-{SHARDS:05}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def synthetic_vae() -> Path:
    """A folder in diffusers' layout with a VAE of SDXL's shapes, written first where it is not cached."""
    folder = CACHE / "sdxl-vae"
    if not (folder / "complete").is_file():
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(VAE_CONFIG))
        vae.bfloat16().save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def synthetic_lora(family: str, size: str = "1b") -> Path:
    """A LoRA of all linear layers of the language model's blocks, written first where it is not cached."""
    path = CACHE / f"lora-{family}-{size}.safetensors"
    if not path.is_file():
        shapes = shapes_of(family, size)[1]
        layers = {n: s for n, s in shapes.items() if n.startswith(DECODER_LAYERS) and len(s) == 2}
        factors = {}
        for name, (outputs, inputs) in layers.items():
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            factors[f"{key}.lora_A.weight"] = torch.Size((LORA_RANK, inputs))
            factors[f"{key}.lora_B.weight"] = torch.Size((outputs, LORA_RANK))
        tensors = {name: 0.1 * tensor for name, tensor in random_tensors(factors).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    return path


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=__doc__)
    parser.add_argument("--family", choices=["ar", "flow"], default="ar")
    parser.add_argument("--size", choices=baselines.SIZES, default="1b")
    parser.add_argument("--layout", choices=LAYOUTS, default="safetensors")
    args = parser.parse_args()
    print(synthetic_checkpoint(args.family, args.size, args.layout))


if __name__ == "__main__":
    main()
