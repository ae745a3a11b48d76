"""LoRA files: their names, shapes and strengths; merging at load and in `convert`; what cannot be used is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import janus_core
from janus_core.checkpoint import WEIGHT_FORMATS, quantized, read_checkpoint, with_loras
from janus_core.checkpoint.lora_read import read_lora
from janus_core.checkpoint.quantize import quantize_weight
from janus_core.cli import main
from janus_core.cli_options import lora
from janus_core.errors import CheckpointError

Q, DOWN_PROJ = (f"language_model.model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.down_proj"))
VISION = "vision_model.vision_tower.blocks.1.attn.qkv"
RANK = 3


@pytest.fixture
def checkpoint(golden):
    """The golden checkpoint in float32."""
    return widened(read_checkpoint(golden("ar-a").folder), torch.float32)


def widened(checkpoint, dtype):
    return replace(checkpoint, tensors={name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()})


def matrices(weight, rank=RANK, rows=None):
    generator = torch.Generator().manual_seed(len(weight))
    down = 0.3 * torch.randn(rank, weight.shape[1], generator=generator)
    return down, 0.3 * torch.randn(rows or len(weight), rank, generator=generator)


def write(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def plain(checkpoint, tmp_path):
    """(file of a LoRA with alpha for two layers, their changes at strength 1)."""
    tensors, changes = {}, {}
    for layer in (Q, DOWN_PROJ):
        down, up = matrices(checkpoint.tensors[f"{layer}.weight"])
        key = f"diffusion_model.{layer}"
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(6.0)}
        changes[f"{layer}.weight"] = 2 * (up @ down)
    return write(tmp_path / "plain.safetensors", tensors), changes


def test_a_lora_changes_its_layers_and_no_others(checkpoint, plain):
    file, changes = plain
    merged = with_loras(checkpoint, [(file, 0.5)]).tensors
    assert merged.keys() == checkpoint.tensors.keys()
    for name, weight in checkpoint.tensors.items():
        if name in changes:
            expected = (weight.float() + 0.5 * changes[name]).to(weight.dtype)
            assert merged[name].dtype == weight.dtype and not torch.equal(merged[name], weight)
            torch.testing.assert_close(merged[name], expected)
        else:
            assert merged[name] is weight


def test_several_loras_are_summed_before_rounding(checkpoint, plain):
    file, changes = plain
    checkpoint = widened(checkpoint, torch.bfloat16)
    merged = with_loras(checkpoint, [(file, 0.75), file, (str(file), -1.0)]).tensors
    for name, change in changes.items():
        expected = (checkpoint.tensors[name].float() + 0.75 * change).to(torch.bfloat16)
        assert (merged[name] != expected).float().mean() < 0.01, "but for the order of the sum"


def test_strength_0_leaves_the_weights_as_they_are(checkpoint, plain):
    merged = with_loras(checkpoint, [(plain[0], 0.0), (plain[0], 0)]).tensors
    assert all(merged[name] is weight for name, weight in checkpoint.tensors.items())


NAMES = [
    ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", Q),
    ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", Q),
    ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight", Q),
    ("transformer.{}.lora_A", "transformer.{}.lora_B", Q),
    ("{}.lora_down.weight", "{}.lora_up.weight", Q),
    ("{}_lora.down.weight", "{}_lora.up.weight", Q),
    ("{}.lora.down.weight", "{}.lora.up.weight", Q),
    ("{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight", Q),
    ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", Q.replace(".", "_")),
    ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", Q.removeprefix("language_model.")),
    ("{}.lora_A.weight", "{}.lora_B.weight", Q.removeprefix("language_model.model.")),
    ("base_model.model.model.{}.lora_A.weight", "base_model.model.model.{}.lora_B.weight",
     "language_model.layers.0.self_attn.q_proj"),
    ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight",
     "language_model.layers.0.self_attn.q_proj"),
]  # fmt: skip


@pytest.mark.parametrize("down, up, layer", NAMES)
def test_the_names_of_common_trainers(checkpoint, tmp_path, down, up, layer):
    weight = checkpoint.tensors[f"{Q}.weight"]
    a, b = matrices(weight)
    file = write(tmp_path / "x.safetensors", {down.format(layer): a, up.format(layer): b})
    merged = with_loras(checkpoint, file).tensors
    torch.testing.assert_close(merged[f"{Q}.weight"], weight + b @ a)
    assert sum(merged[name] is not tensor for name, tensor in checkpoint.tensors.items()) == 1


@pytest.mark.parametrize("third", range(3))
def test_transformers_separates_q_k_and_v_of_the_vision_tower(checkpoint, tmp_path, third):
    weight = checkpoint.tensors[f"{VISION}.weight"]
    size = weight.shape[1]
    a, b = matrices(weight, rows=size)
    key = f"base_model.model.model.vision_model.encoder.layers.1.self_attn.{'qkv'[third]}_proj"
    file = write(tmp_path / "x.safetensors", {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b})
    change = with_loras(checkpoint, file).tensors[f"{VISION}.weight"] - weight
    expected = torch.zeros_like(weight)
    expected[third * size : (third + 1) * size] = b @ a
    torch.testing.assert_close(change, expected)


def test_a_convolution(golden, tmp_path):
    checkpoint = widened(read_checkpoint(golden("flow-a").folder), torch.float32)
    name, weight = next((n, t) for n, t in checkpoint.tensors.items() if t.dim() == 4 and n.endswith(".weight"))
    layer = name.removesuffix(".weight")
    a, b = torch.randn(RANK, *weight.shape[1:]), torch.randn(len(weight), RANK, 1, 1)
    file = write(tmp_path / "x.safetensors", {f"{layer}.lora_down.weight": a, f"{layer}.lora_up.weight": b})
    expected = weight + torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    torch.testing.assert_close(with_loras(checkpoint, file).tensors[name], expected)


def test_differences_of_norms_and_biases(checkpoint, tmp_path):
    """ComfyUI's Train LoRA writes them beside the matrices."""
    norm, linear = "language_model.model.layers.0.input_layernorm", VISION
    a, b = matrices(checkpoint.tensors[f"{linear}.weight"])
    tensors = {f"{linear}.lora_up.weight": b, f"{linear}.lora_down.weight": a, f"{linear}.alpha": torch.tensor(1.0)}
    tensors |= {f"{norm}.diff": torch.ones(96), f"{linear}.diff_b": torch.full((len(b),), 2.0)}
    file = write(tmp_path / "x.safetensors", {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()})
    merged = with_loras(checkpoint, [(file, 0.5)]).tensors
    torch.testing.assert_close(merged[f"{norm}.weight"], checkpoint.tensors[f"{norm}.weight"] + 0.5)
    torch.testing.assert_close(merged[f"{linear}.bias"], checkpoint.tensors[f"{linear}.bias"] + 1)
    torch.testing.assert_close(merged[f"{linear}.weight"], checkpoint.tensors[f"{linear}.weight"] + b @ a / 2 / RANK)


def peft_folder(checkpoint, folder, **config):
    folder.mkdir()
    a, b = matrices(checkpoint.tensors[f"{Q}.weight"])
    key = f"base_model.model.{Q}"
    write(folder / "adapter_model.safetensors", {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config, scale", [
    ({}, 2.0),
    ({"use_rslora": True}, 6 / math.sqrt(RANK)),
    ({"alpha_pattern": {"mlp.down_proj": 1, "layers.0.self_attn.q_proj": 12}}, 4.0),
    ({"alpha_pattern": {"proj": 12}}, 2.0),
    ({"modules_to_save": None, "init_lora_weights": "gaussian", "a_field_of_another_version": 1}, 2.0),
])  # fmt: skip
@pytest.mark.parametrize("name", [".", "adapter_model.safetensors"])
def test_a_peft_folder(checkpoint, tmp_path, config, scale, name):
    folder = peft_folder(checkpoint, tmp_path / "peft", **config)
    (layer,) = read_lora(folder / name, checkpoint.tensors)
    assert layer.name == f"{Q}.weight" and layer.scale == pytest.approx(scale)


@pytest.mark.parametrize("config, message", [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"use_dora": True}, "use_dora"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"lora_alpha": None}, "lacks lora_alpha"),
    ({"lora_alpha": "16"}, "lora_alpha"),
    ({"alpha_pattern": {"(a+)+": 1}}, "alpha_pattern"),
])  # fmt: skip
def test_a_peft_config_that_means_something_else(checkpoint, tmp_path, config, message):
    folder = peft_folder(checkpoint, tmp_path / "peft", **config)
    with pytest.raises(CheckpointError, match=message):
        with_loras(checkpoint, folder)


def test_a_folder_without_a_lora(checkpoint, tmp_path, golden):
    with pytest.raises(CheckpointError, match="has no adapter_model.safetensors"):
        with_loras(checkpoint, golden("ar-a").folder)
    folder = peft_folder(checkpoint, tmp_path / "peft")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="no file .*adapter_config.json"):
        with_loras(checkpoint, folder)


def change_names(tensors):
    return {name.replace("layers.0", "layers.70"): tensor for name, tensor in tensors.items()}


def narrow(tensors):
    return {name: t[:, :-1] if ".lora_A." in name else t for name, t in tensors.items()}


def other_rank(tensors):
    return {name: t[:-1] if ".lora_A." in name else t for name, t in tensors.items()}


def no_rank(tensors):
    return {name: t[:0] if ".lora_A." in name else t for name, t in tensors.items()}


def half(tensors):
    return {name: tensor for name, tensor in tensors.items() if ".lora_A." not in name}


def only_alpha(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}


def dora(tensors):
    return {**tensors, f"diffusion_model.{Q}.dora_scale": torch.ones(3)}


def twice(tensors):
    return {**tensors, **{name.removeprefix("diffusion_model."): tensor.clone() for name, tensor in tensors.items()}}


def infinite(tensors):
    return {name: t / 0 if ".lora_B." in name else t for name, t in tensors.items()}


def whole_numbers(tensors):
    return {name: t.int() if t.dim() else t for name, t in tensors.items()}


def odd_alpha(tensors):
    return {name: torch.tensor(math.nan) if name.endswith(".alpha") else t for name, t in tensors.items()}


def wide_alpha(tensors):
    return {name: t if t.dim() else torch.tensor([1.0, 2.0]) for name, t in tensors.items()}


def long_diff(tensors):
    return {**tensors, "diffusion_model.language_model.model.layers.0.input_layernorm.diff": torch.ones(97)}


def bias_of_none(tensors):
    return {**tensors, f"diffusion_model.{Q}.diff_b": torch.ones(96)}


def huge(tensors):
    return {name: t * 1e30 if t.dim() else t for name, t in tensors.items()}


@pytest.mark.parametrize("change, message", [
    (change_names, r"has no place for diffusion_model\.language_model\.model\.layers\.70\..* and 3 more"),
    (narrow, r"does not fit the model: .*_proj has \[\d+, 3\] and \[3, \d+\], no change of \[\d+, \d+\]"),
    (other_rank, "does not fit the model: .* no change of"),
    (no_rank, "does not fit the model"),
    (half, "lora_B.weight without its counterpart"),
    (only_alpha, "has no place for .*alpha"),
    (dora, "has no place for .*dora_scale: .*not a plain LoRA"),
    (twice, "changes .*weight twice"),
    (infinite, "not finite"),
    (whole_numbers, "fewer than 16 bits"),
    (odd_alpha, "alpha is not a number"),
    (wide_alpha, "alpha is not a number"),
    (long_diff, r"does not fit the model: .*input_layernorm has \[97\], no change of \[96\]"),
    (bias_of_none, "has no place for .*diff_b"),
    (huge, "not finite once"),
])  # fmt: skip
def test_a_file_that_does_not_fit(checkpoint, plain, tmp_path, change, message):
    file = write(tmp_path / "bad.safetensors", change(load_file(plain[0])))
    with pytest.raises(CheckpointError, match=message) as error:
        with_loras(checkpoint, file)
    assert "\n" not in str(error.value)


def test_a_file_without_tensors(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="holds no tensors"):
        with_loras(checkpoint, write(tmp_path / "empty.safetensors", {}))
    with pytest.raises(CheckpointError, match="no file"):
        with_loras(checkpoint, tmp_path / "absent.safetensors")


@pytest.mark.parametrize("strength", [math.nan, math.inf, 101, "1", None, True])
def test_a_strength_that_is_none(checkpoint, plain, strength):
    with pytest.raises(CheckpointError, match="strength of .*plain.safetensors is"):
        with_loras(checkpoint, [(plain[0], strength)])


def test_weights_of_8_bits_are_not_merged_into(checkpoint, plain):
    """Rounding undoes changes of less than half a step: most of those of an eighth of a step on average."""
    weight = checkpoint.tensors[f"{Q}.weight"]
    stored, scale = quantize_weight(weight, WEIGHT_FORMATS["int8"])
    change = scale / 8 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    effect = scale * ((stored + change / scale).round() - stored)
    assert (effect * change).sum() < 0.25 * change.square().sum()
    with pytest.raises(CheckpointError, match="quantised weights"):
        with_loras(quantized(checkpoint, "int8"), plain[0])
    merged = with_loras(quantized(checkpoint, "int8"), [(plain[0], 0.0)])
    assert merged.tensors[f"{Q}.weight"].dtype == torch.int8


def test_quantised_after_merging(golden, plain):
    """`weight_dtype` and a LoRA together are the quantised merged weights."""
    folder = golden("ar-a").folder
    pipe = janus_core.load(folder, device="cpu", weight_dtype="int8", loras=[plain[0]])
    expected = quantized(with_loras(read_checkpoint(folder), plain[0]), "int8").tensors[f"{Q}.weight"]
    assert torch.equal(pipe.model.get_submodule(Q).weight, expected)


def test_every_way_to_a_merged_model(golden, plain, tmp_path, capsys):
    """load, generate, describe and convert with a LoRA agree, and differ from the checkpoint without."""
    golden, (file, _) = golden("ar-a"), plain
    common = ["--model", str(golden.folder), "--device", "cpu", "--dtype", "fp32"]
    settings = {"device": "cpu", "dtype": torch.float32}
    loaded = janus_core.load(golden.folder, loras=(file, 0.5), **settings)
    image = loaded("a cat", seed=3)[0]
    assert image.tobytes() != janus_core.load(golden.folder, **settings)("a cat", seed=3)[0].tobytes()

    out = tmp_path / "x.png"
    halves = ["--lora", f"{file}:0.25", "--lora", f"{file}:0.25"]
    assert main(["generate", "a cat", *common, "--seed", "3", "--out", str(out), *halves]) == 0
    written = Image.open(out)
    assert written.tobytes() == image.tobytes()
    assert json.loads(written.text["parameters"])["loras"] == [f"{file}:0.25"] * 2

    merged = tmp_path / "merged.safetensors"
    assert main(["convert", str(golden.folder), str(merged), "--lora", f"{file}:0.5"]) == 0
    assert janus_core.load(merged, **settings)("a cat", seed=3)[0].tobytes() == image.tobytes()

    capsys.readouterr()
    picture, question = str(golden.folder / "picture.png"), golden.text["und.question"]
    assert main(["describe", picture, question, *common, "--max-new-tokens", "12", "--lora", f"{file}:0.5"]) == 0
    answer = loaded.describe(janus_core.image.open_image(picture), question, max_new_tokens=12)[0]
    assert capsys.readouterr().out.strip() == answer.strip()
    assert main(["generate", "a cat", *common, "--lora", str(tmp_path / "absent")]) == 1
    assert "There is no file" in capsys.readouterr().err


def test_strengths_on_the_command_line():
    assert lora("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert lora("a/b.safetensors:0.5") == ("a/b.safetensors", 0.5)
    assert lora("C:\\loras\\b.safetensors:-1") == ("C:\\loras\\b.safetensors", -1.0)
    assert lora("C:\\loras\\b.safetensors") == ("C:\\loras\\b.safetensors", 1.0)
