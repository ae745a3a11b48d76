"""Weights of 4 bits, with comfy-kitchen: test_int4.py runs this file with ComfyUI's Python and folder."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from load_pack import PACK  # isort: split

import comfy.quant_ops
import torch
from comfy.quant_ops import QuantizedTensor
from pack.janus_core.checkpoint import read_checkpoint as read_in_pack
from pack.janus_core.checkpoint import save_single_file
from pack.janus_core.errors import CheckpointError as PackError
from pack.janus_core.sampling.settings import TokenSamplerSettings
from pack.nodes import loader_nodes, operations, token_sampling
from pack.nodes.clip import make_clip

import janus_core
from janus_core.checkpoint import build_model, int4, quantized, quantized_layers, read_checkpoint
from janus_core.checkpoint.quantize import COMFY_QUANT, is_int4, quant_settings
from janus_core.cli import main
from janus_core.errors import CheckpointError
from janus_core.operations.quantized import operations_over

GOLDEN = PACK / "tests" / "data" / "goldens" / "ar-a"
DOWN, UP = (f"language_model.model.layers.0.mlp.{name}_proj" for name in ("down", "up"))  # of 256 and 96 inputs
GPU = SimpleNamespace(type="cuda")


def of(tensors, layer):
    return {part: tensors[f"{layer}.{part}"] for part in ("weight", *int4.PARTS)}


def the_layout_is_comfyuis():
    """Layers of whole rotations have 4 bits, the others 8; ComfyUI's decoding is ours, 7 % from the weight."""
    plain, packed = read_checkpoint(GOLDEN), quantized(read_checkpoint(GOLDEN), "int4")
    layers = quantized_layers(packed.tensors)
    fours = {layer for layer in layers if is_int4(packed.tensors[f"{layer}.{COMFY_QUANT}"])}
    assert DOWN in fours and UP in layers - fours and len(fours) * 7 == len(layers)
    parts = of(packed.tensors, DOWN)
    weight = plain.tensors[f"{DOWN}.weight"].float()
    bits = 8 * sum(parts[name].nbytes for name in ("weight", int4.SCALES)) / weight.numel()
    assert bits == 4.5
    decoded = int4.tensor_of(parts, quant_settings(packed.tensors[f"{DOWN}.{COMFY_QUANT}"]), torch.float32)
    error = (decoded.dequantize() - weight).norm() / weight.norm()
    assert 0.05 < error < 0.09, error
    layer = build_model(packed, operations_over(torch.nn), dtype=torch.float32).get_submodule(DOWN)
    assert type(layer.weight) is torch.nn.Parameter and layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, decoded.dequantize())
    x = torch.randn(3, weight.shape[1])
    assert torch.allclose(torch.nn.functional.linear(x, decoded), x @ decoded.dequantize().T, rtol=0.05, atol=0.05)


def a_file_is_written_and_read():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int4.safetensors"
        assert main(["convert", str(GOLDEN), str(path), "--weights", "int4"]) == 0
        settings = {"seed": 1, "temperature": 0.0}
        tokens = [
            janus_core.load(source, device="cpu", dtype=torch.float32, **kw).generate_tokens("a cat", **settings)
            for source, kw in ((path, {}), (GOLDEN, {"weight_dtype": "int4"}))
        ]
        assert torch.equal(*tokens)
        again = quantized(read_checkpoint(path), "int8").tensors
        assert is_int4(again[f"{DOWN}.{COMFY_QUANT}"]), "a quantised layer must not be quantised twice"
        for part in (int4.SCALES, int4.CHANNELS, int4.CODEBOOK, "weight"):
            broken = dict(read_checkpoint(path).tensors)
            broken[f"{DOWN}.{part}"] = broken[f"{DOWN}.{part}"][:3]
            try:
                build_model(replace(read_checkpoint(path), tensors=broken), operations_over(torch.nn))
            except CheckpointError as error:
                assert DOWN in str(error)
            else:
                raise AssertionError(part)


def sample(model, checkpoint):
    clip = make_clip(model, checkpoint)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", ""))
    latent = {"samples": torch.zeros(1, 8, 4, 4)}
    return token_sampling.sample(model, positive, negative, latent, TokenSamplerSettings(seed=3))["samples"]


def the_loader_samples_with_them():
    """On a CPU they are decoded once, when first used; the MODEL's file is read back."""
    checkpoint = read_in_pack(GOLDEN)
    model = loader_nodes.make_patcher(checkpoint, "int4")
    layer = model.model.diffusion_model.get_submodule(DOWN)
    assert isinstance(layer.weight, QuantizedTensor) and layer.quant_format == int4.FORMAT
    decoded = []
    layout = comfy.quant_ops.AsymW4A8Int8Layout
    dequantize = layout.dequantize

    def counted(data, params):
        decoded.append(params)
        return dequantize(data, params)

    with mock.patch.object(layout, "dequantize", counted):
        first = sample(model, checkpoint)
        layers = model.model.diffusion_model.params.llama.layers
        assert len(decoded) == layers, len(decoded)
        assert torch.equal(sample(model, checkpoint), first) and len(decoded) == layers
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        save_single_file(replace(checkpoint, tensors=quantized(read_checkpoint(GOLDEN), "int4").tensors), path)
        assert torch.equal(sample(loader_nodes.make_patcher(read_in_pack(path), "default"), checkpoint), first)


def they_are_refused_where_they_cannot_run():
    packed = replace(read_in_pack(GOLDEN), tensors=quantized(read_checkpoint(GOLDEN), "int4").tensors)
    cpu = torch.device("cpu")
    with mock.patch.dict(comfy.quant_ops.QUANT_ALGOS):
        operations.check_int4(packed, GPU, False)
        del comfy.quant_ops.QUANT_ALGOS[int4.FORMAT]
        for device, packs, word in ((GPU, False, "update"), (cpu, False, "update")):
            refused(packed, device, packs, word)
    refused(packed, cpu, False, "slow")
    operations.check_int4(packed, cpu, True)
    operations.check_int4(read_in_pack(GOLDEN), cpu, False)
    with mock.patch.dict(sys.modules, {"comfy_kitchen": None}):
        try:
            quantized(read_checkpoint(GOLDEN), "int4")
        except CheckpointError as error:
            assert "comfy-kitchen" in str(error)
        else:
            raise AssertionError("comfy-kitchen is missing")


def refused(checkpoint, device, packs, word):
    try:
        operations.check_int4(checkpoint, device, packs)
    except PackError as error:
        assert word in str(error)
    else:
        raise AssertionError(word)


with torch.inference_mode():
    globals()[sys.argv[1]]()
