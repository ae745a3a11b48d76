"""8-bit weights: rounding, loading, files, errors."""

import errno
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from mappings import file_of

import janus_core
from janus_core.checkpoint import (
    WEIGHT_FORMATS,
    build_model,
    quantized,
    quantized_layers,
    read_checkpoint,
    save_folder,
    save_single_file,
)
from janus_core.checkpoint.quantize import ROWS, quant_settings, quantize_weight
from janus_core.cli import main
from janus_core.errors import CheckpointError
from janus_core.operations.quantized import operations_over


def comfy_quant(settings):
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


LAYER = "language_model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("name, step", [("int8", 0.5 / 127), ("fp8_e4m3fn", 2**-4)])
def test_rounding_is_to_the_nearest_value(name, step):
    """Errors are at most half a step: of each row's maximum in int8, of the value itself (unless tiny) in e4m3."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 16)[:, None]
    stored, scale = quantize_weight(weight, WEIGHT_FORMATS[name])
    error = (stored.float() * scale - weight).abs()
    if name == "int8":
        assert scale.shape == (16, 1)
        assert (error <= 1.001 * step * weight.abs().amax(1, keepdim=True)).all()
    else:
        assert scale.dim() == 0
        tiny = weight.abs() < weight.abs().max() * 2**-6 / 448
        assert (error[~tiny] <= 1.001 * step * weight.abs()[~tiny]).all()


@pytest.mark.parametrize("weight", [torch.zeros(2, 4), torch.full((2, 4), 1e4)])
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_constant_weights_are_exact(name, weight):
    stored, scale = quantize_weight(weight, WEIGHT_FORMATS[name])
    torch.testing.assert_close(stored.float() * scale, weight)


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_a_weight_is_rounded_as_a_whole(name):
    """Its rows are rounded in groups, the last of which has fewer; one scale of all rows is that of the largest."""
    weight, format = torch.randn(2 * ROWS + 3, 16).to(torch.bfloat16), WEIGHT_FORMATS[name]
    stored, scale = quantize_weight(weight, format)
    assert stored.shape == weight.shape and stored.dtype == format.dtype
    limit = 127 if name == "int8" else 448
    scaled = weight.float() / (weight.float().abs().amax(*([1, True] if format.per_channel else [])) / limit)
    assert torch.equal(stored.float(), (scaled.round() if name == "int8" else scaled.to(format.dtype)).float())
    out = torch.empty_like(stored)
    assert quantize_weight(weight, format, out)[0] is out and torch.equal(out.float(), stored.float())


@pytest.mark.skipif(sys.platform != "linux", reason="weights are mapped on Linux alone")
@pytest.mark.parametrize("weight_dtype", WEIGHT_FORMATS)
def test_weights_quantised_on_a_cpu_are_memory_mapped(golden, tmp_path, monkeypatch, weight_dtype):
    """Their file has no name, and stays open only as a mapping."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened = os.listdir("/proc/self/fd")
    model = janus_core.load(golden("ar-a").folder, device="cpu", weight_dtype=weight_dtype).model
    weight = model.get_submodule(LAYER).weight
    assert file_of(weight).startswith(str(tmp_path)) and not file_of(torch.empty(9))
    assert os.listdir(tmp_path) == [] and len(os.listdir("/proc/self/fd")) <= len(opened)
    expected = quantized(read_checkpoint(golden("ar-a").folder), weight_dtype).tensors[LAYER + ".weight"]
    assert not file_of(expected) and torch.equal(weight.float(), expected.float())


@pytest.mark.skipif(sys.platform != "linux", reason="weights are mapped on Linux alone")
@pytest.mark.parametrize("failure", ["no folder", "full disk", "no fallocate"])
def test_weights_that_cannot_be_mapped_are_in_memory(golden, tmp_path, monkeypatch, failure):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing" if failure == "no folder" else tmp_path))
    if failure == "full disk":

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
    if failure == "no fallocate":
        monkeypatch.delattr(os, "posix_fallocate")
    checkpoint = read_checkpoint(golden("ar-a").folder)
    weights = [quantized(checkpoint, "int8", memory_map=m).tensors[LAYER + ".weight"] for m in (True, False)]
    assert torch.equal(*weights) and not file_of(weights[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", WEIGHT_FORMATS)
@pytest.mark.parametrize("name", ["ar-a", "flow-a"])
def test_a_model_computes_with_the_rounded_weights(golden, name, weight_dtype, dtype):
    """As plain layers with the rounded weights would, for one row and for 20; int8 layers round their input as well."""
    folder = golden(name).folder
    pipe = janus_core.load(folder, device="cpu", dtype=dtype, weight_dtype=weight_dtype)
    checkpoint = quantized(read_checkpoint(folder), weight_dtype)
    layers = quantized_layers(checkpoint.tensors)
    assert LAYER in layers and len(layers) == 7 * pipe.model.params.llama.layers
    layer = pipe.model.get_submodule(LAYER)
    assert layer.weight.dtype == WEIGHT_FORMATS[weight_dtype].dtype
    settings = quant_settings(checkpoint.tensors[LAYER + ".comfy_quant"])
    assert settings.get("full_precision_matrix_mult", False) == (weight_dtype == "fp8_e4m3fn")
    weight = checkpoint.tensors[LAYER + ".weight"].float() * checkpoint.tensors[LAYER + ".weight_scale"]
    x = torch.randn(20, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.float() @ weight.T
    with torch.inference_mode():
        for rows in (1, 20):
            error = (layer(x[:rows]).float() - expected[:rows]).abs().max() / expected.abs().max()
            exact = dtype == torch.float32 and weight_dtype != "int8"
            assert error < (1e-5 if exact else 0.02)


def test_a_quantised_file_is_smaller_and_is_read_back(golden, tmp_path, capsys):
    folder, file = golden("ar-a").folder, tmp_path / "int8.safetensors"
    assert main(["convert", str(folder), str(file), "--weights", "int8"]) == 0
    save_single_file(read_checkpoint(folder), tmp_path / "plain.safetensors")
    assert file.stat().st_size < (tmp_path / "plain.safetensors").stat().st_size
    common = {"device": "cpu", "dtype": torch.float32}
    settings = {"seed": 1, "temperature": 0.0}
    from_file = janus_core.load(file, **common).generate_tokens("a cat", **settings)
    assert torch.equal(
        from_file, janus_core.load(folder, weight_dtype="int8", **common).generate_tokens("a cat", **settings)
    )
    tensors = quantized(read_checkpoint(file), "fp8_e4m3fn").tensors
    assert tensors[LAYER + ".weight"].dtype == torch.int8, "a quantised layer must not be quantised twice"


@pytest.mark.parametrize("format, missing, message", [
    ("nvfp4", None, "quantised as nvfp4, which is not supported"),
    ("int8_tensorwise", "weight_scale", "lack .*up_proj.weight_scale"),
])  # fmt: skip
def test_unsupported_quantised_layers(golden, tmp_path, format, missing, message):
    checkpoint = quantized(read_checkpoint(golden("ar-a").folder), "int8")
    checkpoint.tensors[LAYER + ".comfy_quant"] = comfy_quant({"format": format})
    if missing:
        del checkpoint.tensors[f"{LAYER}.{missing}"]
    save_single_file(checkpoint, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=message):
        janus_core.load(tmp_path / "odd.safetensors", device="cpu")


def test_an_unknown_weight_dtype(golden):
    with pytest.raises(CheckpointError, match="int8, fp8_e4m3fn"):
        janus_core.load(golden("ar-a").folder, device="cpu", weight_dtype="int3")


def test_a_folder_in_the_original_layout_holds_no_quantised_weights(golden, tmp_path):
    checkpoint = quantized(read_checkpoint(golden("ar-a").folder), "int8")
    with pytest.raises(CheckpointError, match="original layout cannot hold"):
        save_folder(checkpoint, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def quantized_layer(weight_dtype):
    """(layer, its dequantised weight)"""
    weight = 0.02 * torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    stored, scale = quantize_weight(weight, WEIGHT_FORMATS[weight_dtype])
    layer = operations_over(torch.nn).Linear(256, 64, bias=False)
    layer.load_state_dict(
        {"weight": stored, "weight_scale": scale, "comfy_quant": comfy_quant({"format": "int8_tensorwise"})}
    )
    return layer, stored.float() * scale


@pytest.mark.parametrize("weight_dtype", WEIGHT_FORMATS)
def test_one_layer_takes_every_dtype_in_turn(weight_dtype):
    layer, weight = quantized_layer(weight_dtype)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16):
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), x @ weight.T, rtol=0.02, atol=0.01 if dtype != torch.float32 else 1e-5)


def test_a_layer_can_move_to_another_device():
    layer, _ = quantized_layer("fp8_e4m3fn")
    layer(torch.ones(1, 256))
    assert layer.to("meta")(torch.ones(1, 256, device="meta")).device.type == "meta"


def test_reloading_a_layer_replaces_its_scale():
    layer, weight = quantized_layer("int8")
    x = torch.eye(256)[:3]
    layer(x)
    settings = comfy_quant({"format": "int8_tensorwise"})
    layer.load_state_dict({"weight": layer.weight, "weight_scale": 2 * layer.scale[:, None], "comfy_quant": settings})
    torch.testing.assert_close(layer(x), 2 * x @ weight.T)


@pytest.mark.parametrize("weight_dtype", WEIGHT_FORMATS)
def test_float16_does_not_overflow(weight_dtype):
    """Unscaled 8-bit values reach 127 and 448: products with them leave float16's range though the output does not."""
    layer, weight = quantized_layer(weight_dtype)
    x = torch.zeros(1, 256, dtype=torch.float16)
    x[0, 0] = 3000
    y = layer(x)
    assert y.isfinite().all() and torch.allclose(y.float(), x.float() @ weight.T, rtol=2e-3, atol=0.1)


def test_the_state_dict_that_a_hosts_layers_load(golden):
    """ComfyUI reads comfy_quant while loading, so it stays on the CPU; scales of shape [out] become [out, 1]."""
    state_dict = {}

    class Linear(torch.nn.Linear):
        def _load_from_state_dict(self, state, prefix, *args):
            state_dict.update(state)

    checkpoint = quantized(read_checkpoint(golden("ar-a").folder), "int8")
    checkpoint.tensors = {
        name: t.flatten() if name.endswith("weight_scale") else t for name, t in checkpoint.tensors.items()
    }
    operations = SimpleNamespace(**{**vars(operations_over(torch.nn)), "Linear": Linear})
    build_model(checkpoint, operations, device="meta")
    assert state_dict[LAYER + ".comfy_quant"].device.type == "cpu"
    assert state_dict[LAYER + ".weight_scale"].device.type == "meta" and state_dict[LAYER + ".weight_scale"].dim() == 2


@pytest.mark.parametrize("settings", [{"convrot": True}, {"params": {"convrot": True}}])
def test_rotated_weights(golden, settings):
    checkpoint = quantized(read_checkpoint(golden("ar-a").folder), "int8")
    checkpoint.tensors[LAYER + ".comfy_quant"] = comfy_quant({"format": "int8_tensorwise", **settings})
    with pytest.raises(CheckpointError, match="rotated"):
        build_model(checkpoint, operations_over(torch.nn))


def test_a_quantised_embedding(golden):
    checkpoint = quantized(read_checkpoint(golden("ar-a").folder), "int8")
    name = "language_model.model.embed_tokens"
    checkpoint.tensors[name + ".weight"] = checkpoint.tensors[name + ".weight"].to(torch.int8)
    checkpoint.tensors[name + ".comfy_quant"] = comfy_quant({"format": "int8_tensorwise"})
    checkpoint.tensors[name + ".weight_scale"] = torch.ones(())
    with pytest.raises(CheckpointError, match="embed_tokens is quantised"):
        build_model(checkpoint, operations_over(torch.nn))
