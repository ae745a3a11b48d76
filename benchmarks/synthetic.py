"""Full-size checkpoints with random weights, in the original layout: `python -m benchmarks.synthetic --help`.

They have the names, shapes and dtype (bfloat16) of the official files, so that loading and speed can be measured where
these are not at hand. The tokenizer is the demo's. They are cached outside the repository.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import AR, FLOW, baselines
from janus_core.checkpoint import VQ_PREFIX, config_of, read_checkpoint, save_folder
from janus_core.janus import Janus, JanusParams
from janus_core.janusflow import JanusFlow
from janus_core.networks.vq import VQModel, VQParams

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "janus-native" / "synthetic"
LAYOUTS = ("safetensors", "bin", "sharded-bin")
VQ = VQParams(16384, 8, 256, (128, 128, 256, 256, 512))
SHARD_BYTES = 2 * 2**30


def shapes_of(family: str, size: str):
    """(config, {tensor name: shape}) of a full-size checkpoint, without any weights in memory."""
    if family == "flow":
        model = JanusFlow(baselines.flow_params(size, baselines.SIGLIP), device="meta")
        return config_of(model), {name: tensor.shape for name, tensor in model.state_dict().items()}
    hidden = baselines.SIZES[size]["hidden_size"]
    params = JanusParams(baselines.llama_params(size), baselines.SIGLIP, VQ, gen_head_width=hidden)
    model, vq = Janus(params, device="meta"), VQModel(VQ, device="meta")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shapes |= {VQ_PREFIX + name: tensor.shape for name, tensor in vq.state_dict().items()}
    return config_of(model), shapes


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
        layout: one of LAYOUTS: one .safetensors file, one .bin file, or .bin shards with an index.
    """
    folder = CACHE / f"{family}-{size}-{layout}"
    if (folder / "complete").is_file():
        return folder
    config, shapes = shapes_of(family, size)
    tensors = random_tensors(shapes)
    demo = read_checkpoint(AR if family == "ar" else FLOW)
    texts = replace(demo, path=folder, config=config, tensors={})
    save_folder(texts, folder)
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
    shards, used = [{}], 0
    for name, tensor in tensors.items():
        if used + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=__doc__)
    parser.add_argument("--family", choices=["ar", "flow"], default="ar")
    parser.add_argument("--size", choices=baselines.SIZES, default="1b")
    parser.add_argument("--layout", choices=LAYOUTS, default="safetensors")
    args = parser.parse_args()
    print(synthetic_checkpoint(args.family, args.size, args.layout))


if __name__ == "__main__":
    main()
