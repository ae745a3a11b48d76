"""Damaged, contradictory and malicious checkpoints: each is refused in one sentence that names what is wrong."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from janus_core.checkpoint import check_checkpoint, detect_family, quantized, read_checkpoint
from janus_core.cli import main
from janus_core.errors import CheckpointError, PromptError
from janus_core.prompt import PromptEncoder
from tests.fuzz.models import TOKENIZER, digest, tiny, write_tiny
from tests.fuzz.weights import Harmful
from tests.refusals import one_sentence

LLM = "language_model.model."
UP = f"{LLM}layers.0.mlp.up_proj"


@pytest.fixture
def folder(tmp_path):
    return write_tiny("janus", tmp_path / "model")


@pytest.fixture
def flow(tmp_path):
    return write_tiny("janusflow", tmp_path / "flow")


def refused(path, *words):
    with one_sentence(*words, error=CheckpointError):
        digest(path)


def write(folder, tensors):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def set_field(folder, file, path, value):
    """Sets a field of a JSON file; the value may be the text of JSON that Python does not write."""
    values = json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = "<here>"
    text = json.dumps(values).replace('"<here>"', value)
    (folder / f"{file}.json").write_text(text, encoding="utf-8")


LANGUAGE, VISION = ("language_config",), ("vision_config", "params")
ALIGNER = ("aligner_config", "params")
FIELDS = [
    ("config", (*LANGUAGE, "rms_norm_eps"), "NaN"),
    ("config", (*LANGUAGE, "rms_norm_eps"), "Infinity"),
    ("config", (*LANGUAGE, "rms_norm_eps"), "1e9"),
    ("config", (*LANGUAGE, "rms_norm_eps"), "0"),
    ("config", (*LANGUAGE, "max_position_embeddings"), "1e9"),
    ("config", (*LANGUAGE, "max_position_embeddings"), "NaN"),
    ("config", (*LANGUAGE, "rope_theta"), '"10000"'),
    ("config", (*LANGUAGE, "rope_theta"), "1e999"),
    ("config", (*LANGUAGE, "num_attention_heads"), "1000000000.0"),
    ("config", (*LANGUAGE, "num_attention_heads"), "true"),
    ("config", (*LANGUAGE, "hidden_act"), '"relu"'),
    ("config", (*LANGUAGE, "attention_bias"), "true"),
    ("config", (*LANGUAGE, "rope_scaling"), '{"rope_type": "yarn"}'),
    ("config", (*VISION, "select_layer"), "-2"),
    ("config", (*VISION, "select_feature"), '"patch"'),
    ("config", (*VISION, "num_hidden_layers"), "24"),
    ("config", (*ALIGNER, "projector_type"), '"linear"'),
    ("config", (*ALIGNER, "depth"), "3"),
    ("config", ("gen_head_config", "params", "image_token_size"), "16384"),
    ("processor_config", ("sft_format",), '"llama-2"'),
    ("processor_config", ("sft_format",), "[]"),
    ("processor_config", ("num_image_tokens",), "576"),
    ("tokenizer_config", ("add_bos_token",), '"no"'),
    ("tokenizer_config", ("bos_token",), "5"),
    ("tokenizer_config", ("bos_token",), '"\\ud800"'),
]


@pytest.mark.parametrize("file,path,value", FIELDS)
def test_a_field_that_is_wrong_or_unsupported_is_named(folder, file, path, value):
    set_field(folder, file, path, value)
    refused(folder, "special token" if path[-1] == "bos_token" and value == "5" else "json")
    if "ud800" not in value and path[-1] not in ("num_attention_heads", "bos_token", "rope_scaling"):
        refused(folder, path[-1] if path[-1] != "num_hidden_layers" else "layers")


@pytest.mark.parametrize(
    "path,value", [("padding", "0.5"), ("padding", "7"), ("stride", "0"), ("layers_in_middle", "3")]
)
def test_flow_fields(flow, path, value):
    set_field(flow, "config", ("vision_gen_enc_config", "params", path), value)
    refused(flow, "padding" if path == "padding" else path)


@pytest.mark.parametrize("key,value", [("image_mean", [0.4, 0.5, 0.5]), ("image_std", 5), ("min_size", 1)])
def test_a_preprocessor_that_is_not_followed_is_warned_about(folder, caplog, key, value):
    expected = digest(folder)
    set_field(folder, "preprocessor_config", (key,), json.dumps(value))
    assert digest(folder) == expected
    assert f"{key} {value} is ignored" in caplog.text


JSONS = {
    "deep": '{"a": ' + "[" * 100000 + "]" * 100000 + "}",
    "deeper than any config": '{"a": ' + "[" * 50 + "]" * 50 + "}",
    "huge number": '{"a": ' + "1" * 5000 + "}",
    "list": "[]",
    "empty": "",
    "half a character": '{"a": "\\ud800"}',
}


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("file", ["config", "tokenizer_config", "preprocessor_config", "model.safetensors.index"])
def test_json_that_is_none(folder, name, file):
    (folder / f"{file}.json").write_text(JSONS[name], encoding="utf-8")
    if file.endswith("index"):
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    refused(folder, f"{file}.json")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
def test_pipes_and_folders_are_not_opened(folder, file):
    (folder / "config.json").write_text("{}")
    if file.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    refused(folder, file, "not a regular file")
    if file != "tokenizer.json":
        with pytest.raises(CheckpointError):
            detect_family(folder)
    os.mkfifo(folder / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        detect_family(folder / "x.safetensors")


def test_detecting_raises_nothing_but_checkpoint_errors(folder):
    for path in ("~nosuchuser/x", "a\0b", "x" * 5000, "/", folder / "nowhere"):
        with pytest.raises(CheckpointError):
            detect_family(path)


def drop(prefix):
    return lambda t: {name: tensor for name, tensor in t.items() if not name.startswith(prefix)}


def change(name, function):
    return lambda t: {**t, name: function(t[name])}


def eight_bits(**parts):
    """A quantised layer, of which some parts are others; None leaves one out."""

    def function(tensors):
        tensors = dict(quantized(tiny("janus"), "int8").tensors)
        for part, value in parts.items():
            tensors[f"{UP}.{part}"] = value
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    return function


def note(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


TENSORS = {
    "an int8 weight without note and scale": (change(f"{UP}.weight", lambda t: t.to(torch.int8)), "int8"),
    "an fp8 weight": (change(f"{UP}.weight", lambda t: t.to(torch.float8_e4m3fn)), "float8"),
    "a bool weight": (change("gen_embed.weight", lambda t: t > 0), "bool"),
    "an integer norm": (change(f"{LLM}norm.weight", lambda t: t.long()), "norm.weight"),
    "no scale": (eight_bits(weight_scale=None), "weight_scale"),
    "no note": (eight_bits(comfy_quant=None), "int8"),
    "another dtype than the note's": (eight_bits(weight=torch.zeros(48, 32)), "int8"),
    "scales of another number": (eight_bits(weight_scale=torch.ones(7, 1)), "weight_scale"),
    "scales along the inputs": (eight_bits(weight_scale=torch.ones(1, 32)), "weight_scale"),
    "integer scales": (eight_bits(weight_scale=torch.ones(48, 1, dtype=torch.int32)), "weight_scale"),
    "a scale of NaN": (eight_bits(weight_scale=torch.full((48, 1), float("nan"))), "not finite"),
    "a note of nested lists": (eight_bits(comfy_quant=note("[" * 9000)), "quantised as None"),
    "a note of numbers": (eight_bits(comfy_quant=torch.ones(5)), "quantised as None"),
    "an embedding of rank 1": (change(f"{LLM}embed_tokens.weight", lambda t: t[0]), "dimensions"),
    "an empty layer": (change(f"{UP.replace('up', 'gate')}.weight", lambda t: t[:0]), "dimensions"),
    "no language model": (drop(LLM), "lack"),
    "no final norm": (drop(f"{LLM}norm"), "norm.weight"),
    "no last layer": (drop(f"{LLM}layers.2."), "num_hidden_layers"),
    "no first layer": (drop(f"{LLM}layers.0."), "layers.0"),
    "no last SigLIP block": (drop("vision_model.vision_tower.blocks.1."), "layers"),
    "no quant_conv": (drop("gen_vision_model.quant_conv"), "quant_conv"),
    "a layer of number 2000000000": (lambda t: {**t, f"{LLM}layers.2000000000.x": torch.zeros(1)}, "layers.3"),
    "a layer of 5000 digits": (lambda t: {**t, f"{LLM}layers.{'1' * 5000}.x": torch.zeros(1)}, "layers.3"),
    "a bias that no layer has": (lambda t: {**t, f"{UP}.bias": torch.zeros(48)}, "up_proj.bias"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_do_not_fit(folder, name):
    mutate, words = TENSORS[name]
    write(folder, mutate(dict(tiny("janus").tensors)))
    refused(folder, words)


def shards(folder, weight_map_of):
    """Two shards of a checkpoint, and an index that `weight_map_of` changes."""
    tensors = dict(tiny("janus").tensors)
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for k in range(2):
        file = f"model-{k}.safetensors"
        save_file({name: tensors[name].clone() for name in names[k::2]}, folder / file)
        weight_map |= dict.fromkeys(names[k::2], file)
    shutil.copy(folder / "model-0.safetensors", folder.parent / "outside.safetensors")
    shutil.copy(folder / "model-0.safetensors", folder / "model-0.bin")
    index = {"weight_map": weight_map_of(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/dev/zero", "{}/outside.safetensors", "model-0.bin", "..", 5]
)
def test_a_shard_that_is_not_beside_its_index(folder, name):
    name = name.format(folder.parent) if isinstance(name, str) else name
    shards(folder, lambda m: {k: name if f == "model-0.safetensors" else f for k, f in m.items()})
    refused(folder, "not a .safetensors file beside it")


def test_the_index_says_which_shard_a_tensor_is_in(folder):
    expected = digest(folder)
    shards(folder, lambda m: m)
    last = dict(tiny("janus").tensors)
    file = folder / "model-1.safetensors"
    part = {name: last[name].clone() for name in sorted(last)[1::2]}
    save_file({**part, "aligner.layers.0.bias": torch.full((32,), 9.0)}, file)
    assert "aligner.layers.0.bias" not in part and digest(folder) == expected


def write_bin(folder, value, **kwargs):
    (folder / "model.safetensors").unlink()
    torch.save(value, folder / "pytorch_model.bin", **kwargs)


EXPANDED = torch.zeros(1).expand(2**20, 2**20)
PICKLES = {
    "keys that are no names": ({5: torch.zeros(1)}, "named"),
    "nested": ({"model": {"a": torch.zeros(1)}}, "named"),
    "a sparse tensor": ({"a": torch.eye(3).to_sparse()}, "dense"),
    "one value for a tensor of terabytes": ({"a": EXPANDED}, "dense"),
    "a tensor without data": ({"a": torch.empty(2**40, device="meta")}, "dense"),
    "code": ({"a": Harmful()}, "for safety"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_hold_something_else(folder, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, words = PICKLES[name]
    write_bin(folder, value)
    refused(folder, words)
    assert not (tmp_path / "executed").exists()


def test_pickles_larger_than_they_look(folder):
    (folder / "model.safetensors").unlink()
    for compression, words in ((zipfile.ZIP_DEFLATED, "compressed"), (zipfile.ZIP_STORED, "for safety")):
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compression) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + b"(" * (5 * 2**20))
            archive.writestr("archive/version", b"3\n")
        refused(folder, words)


OTHERS = {
    "a web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
    "nothing": (b"", "damaged"),
    "a part": (b"PK\x03\x04" + b"\0" * 50, "damaged"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_something_else(folder, file, name):
    data, words = OTHERS[name]
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(data)
    refused(folder, file, words)


@pytest.mark.parametrize("error", [RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), MemoryError()])
def test_too_little_memory_is_not_told_as_damage(folder, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    refused(folder, "does not fit in memory")


def tokenizer_without(token, in_vocabulary):
    value = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    ids = {one["content"]: one["id"] for one in value["added_tokens"]}
    value["added_tokens"] = [one for one in value["added_tokens"] if one["content"] != token]
    if in_vocabulary:
        value["model"]["vocab"][token] = ids[token]
    else:
        value["model"]["vocab"].pop(token, None)
    return value


def exploding_tokenizer():
    value = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    pattern = {"Regex": "(a|a)*$"}
    value["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return value


def test_a_tokenizer_that_splits_a_special_token(folder):
    value = tokenizer_without("<image_placeholder>", in_vocabulary=True)
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    refused(folder, "<image_placeholder> as one token")


def test_a_tokenizer_that_panics_is_an_error(folder):
    (folder / "tokenizer.json").write_text(json.dumps(exploding_tokenizer()), encoding="utf-8")
    prompts = PromptEncoder.of(read_checkpoint(folder))
    with pytest.raises(PromptError, match="cannot encode"):
        prompts.generation_ids("a" * 100 + "!")


@pytest.mark.parametrize("damage", ["weights", "tokenizer"])
def test_convert_builds_before_it_writes(folder, tmp_path, capsys, damage):
    if damage == "weights":
        write(folder, drop("gen_vision_model.decoder.norm_out")(dict(tiny("janus").tensors)))
    else:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_without("<end_of_image>", False)), encoding="utf-8")
    assert main(["convert", str(folder), str(tmp_path / "out.safetensors")]) == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert ("norm_out" if damage == "weights" else "<end_of_image>") in capsys.readouterr().err


def test_an_intact_checkpoint_passes(folder, flow):
    for path in (folder, flow):
        check_checkpoint(read_checkpoint(path))
        assert digest(path)
