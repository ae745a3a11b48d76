"""Every layout loads to the same tensors, and whatever is wrong with one is reported in one sentence."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import janus_core
from janus_core.checkpoint import (
    SAVED_PREFIX,
    build_model,
    build_vq,
    config_of,
    detect_family,
    metadata_of,
    read_checkpoint,
    save_folder,
    save_single_file,
    text_tensors,
)
from janus_core.checkpoint.transformers_layout import original_tensors
from janus_core.errors import CheckpointError, OutputError


@pytest.fixture(params=["ar-a", "flow-a"])
def folder(request, golden, tmp_path):
    """A copy of a golden checkpoint for tests to modify."""
    target = tmp_path / request.param
    shutil.copytree(golden(request.param).folder, target, ignore=shutil.ignore_patterns("expected*", "picture*"))
    return target


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def write_shards(folder, suffix):
    tensors = tensors_of(folder)
    names = sorted(tensors)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for k in range(3):
        shard = f"{stem}-{k + 1:05}-of-00003.{suffix}"
        part = {name: tensors[name] for name in names[k::3]}
        save_file(part, folder / shard) if suffix == "safetensors" else torch.save(part, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    index = f"{stem}.{suffix}.index.json"
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def write_bin(folder, **kwargs):
    torch.save(tensors_of(folder), folder / "pytorch_model.bin", **kwargs)
    (folder / "model.safetensors").unlink()


LAYOUTS = {
    "safetensors": lambda folder: None,
    "sharded safetensors": lambda folder: write_shards(folder, "safetensors"),
    "bin": write_bin,
    "old bin": lambda folder: write_bin(folder, _use_new_zipfile_serialization=False),
    "sharded bin": lambda folder: write_shards(folder, "bin"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(folder, layout):
    expected = tensors_of(folder)
    LAYOUTS[layout](folder)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.tensors.keys() == expected.keys()
    assert all(torch.equal(checkpoint.tensors[n], t) for n, t in expected.items())
    model = build_model(checkpoint)
    assert all(torch.equal(p, expected[n]) for n, p in model.state_dict().items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert detect_family(folder) == checkpoint.family == model.family


def test_single_file_round_trip(folder, tmp_path):
    checkpoint = read_checkpoint(folder)
    file = tmp_path / "out" / "one.safetensors"
    save_single_file(checkpoint, file)
    written = read_checkpoint(file)
    assert written.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(written.tensors[n], t) for n, t in checkpoint.tensors.items())
    for name in ("config", "tokenizer", "tokenizer_config", "processor_config"):
        assert getattr(written, name) == getattr(checkpoint, name)
    assert detect_family(file) == checkpoint.family


def test_a_file_saved_by_comfyui(folder, tmp_path):
    """Model Save writes weights with a prefix, and config and tokenizer as tensors."""
    checkpoint = read_checkpoint(folder)
    tensors = {SAVED_PREFIX + name: tensor for name, tensor in checkpoint.tensors.items()}
    file = tmp_path / "saved.safetensors"
    save_file({**tensors, **text_tensors(metadata_of(checkpoint)), "vae.x": torch.zeros(1)}, file)
    saved = read_checkpoint(file)
    assert saved.tensors.keys() == checkpoint.tensors.keys() and detect_family(file) == checkpoint.family
    assert (saved.config, saved.tokenizer) == (checkpoint.config, checkpoint.tokenizer)


def test_tied_weights_are_written_twice(folder, tmp_path):
    checkpoint = read_checkpoint(folder)
    head, table = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    checkpoint.tensors[head] = checkpoint.tensors[table]
    save_single_file(checkpoint, tmp_path / "tied.safetensors")
    written = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(written[head], written[table])


def test_tensors_of_no_model_are_reported(folder, caplog):
    checkpoint = read_checkpoint(folder)
    checkpoint.tensors["something.else"] = torch.zeros(1)
    checkpoint.tensors["vision_model.vision_tower.attn_pool.weight"] = torch.zeros(1)  # expected, and not used
    build_model(checkpoint)
    assert [record.args[1:] for record in caplog.records] == [(1, "something.else")]


def test_dtype_is_the_files_by_default(folder):
    checkpoint = read_checkpoint(folder)
    assert {p.dtype for p in build_model(checkpoint).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in build_model(checkpoint, dtype=torch.float32).parameters()} == {torch.float32}


def test_loading_does_not_copy_tensors(folder):
    """The model's parameters are the checkpoint's tensors themselves."""
    checkpoint = read_checkpoint(folder)
    for name, parameter in build_model(checkpoint).named_parameters():
        assert parameter.data_ptr() == checkpoint.tensors[name].data_ptr()


def test_a_short_config_like_that_of_the_original_7b(folder):
    """Head counts and other dimensions come from shapes."""
    config = json.loads((folder / "config.json").read_text())
    config["language_config"] = {
        "num_hidden_layers": 3,
        "vocab_size": 640,
        "max_position_embeddings": 4096,
        "head_dim": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert build_model(read_checkpoint(folder)).params.llama.heads == 3


def assert_refused(path, *words, build=False):
    with pytest.raises(CheckpointError) as error:
        checkpoint = read_checkpoint(path)
        if build:
            build_model(checkpoint)
            build_vq(checkpoint)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_missing_checkpoint(tmp_path):
    assert_refused(tmp_path / "nowhere", "no checkpoint", "nowhere")


def test_a_file_of_another_type(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    assert_refused(tmp_path / "x.txt", "neither")


def test_a_config_of_another_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    assert_refused(folder, "not a Janus", "llava")


def test_weights_of_another_model(folder):
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert_refused(folder, "not a Janus")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "no weights", "pytorch_model.bin")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard(folder, suffix):
    write_shards(folder, suffix)
    shard = next(folder.glob("*-00002-of-*"))
    shard.unlink()
    assert_refused(folder, shard.name)


@pytest.mark.parametrize("layout", ["safetensors", "bin", "old bin", "sharded safetensors", "sharded bin"])
@pytest.mark.parametrize("fraction", [0, 1e-4, 0.5, 0.999])
def test_truncated_files(folder, layout, fraction):
    LAYOUTS[layout](folder)
    file = max((f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin")), key=lambda f: f.name)
    data = file.read_bytes()
    file.write_bytes(data[: int(fraction * len(data))])
    assert_refused(folder, file.name)


def test_corrupt_header(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:40] = b"\xff" * 32
    (folder / "model.safetensors").write_bytes(data)
    assert_refused(folder, "damaged")


def test_a_pickle_with_code_is_not_loaded(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Evil()}, file)
    assert_refused(folder, "pytorch_model.bin")
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    assert_refused(folder, "safety")
    assert not (tmp_path / "owned").exists()


def test_missing_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert_refused(folder, "tokenizer.json")


def test_a_tokenizer_of_another_model(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<begin_of_image>"]
    tokenizer["model"]["vocab"].pop("<begin_of_image>", None)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match="<begin_of_image>"):
        janus_core.load(folder, device="cpu")


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    assert_refused(folder, "config.json", "JSON")


def test_a_missing_weight(folder):
    tensors = tensors_of(folder)
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert_refused(folder, "layers.1.mlp.up_proj.weight", build=True)


def test_a_weight_of_another_shape(folder):
    tensors = tensors_of(folder)
    tensors["language_model.model.norm.weight"] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors")
    assert_refused(folder, "language_model.model.norm.weight", "do not fit", build=True)


@pytest.mark.parametrize("key,value", [("num_hidden_layers", 4), ("hidden_size", 64), ("num_attention_heads", 5)])
def test_a_config_that_does_not_fit(folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    config["language_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, "do not fit", build=True)


def test_a_single_file_without_a_tokenizer(folder):
    assert_refused(folder / "model.safetensors", "no tokenizer", "convert")


def test_converted_attention_is_concatenated_as_q_k_v():
    """The vision tower's fused projection, whatever the order of the parts in the file."""
    name = "model.vision_model.encoder.layers.0.self_attn.{}_proj.weight"
    parts = {name.format(part): torch.full((2, 3), value) for part, value in zip("vqk", (3.0, 1.0, 2.0))}
    tensors = original_tensors(parts)
    expected = torch.tensor([1.0, 1, 2, 2, 3, 3])
    assert torch.equal(tensors["vision_model.vision_tower.blocks.0.attn.qkv.weight"][:, 0], expected)
    del parts[name.format("k")]
    with pytest.raises(CheckpointError, match="q, k or v"):
        original_tensors(parts)


def test_a_written_config_describes_the_same_model(folder):
    """Whatever shapes do not tell survives config_of, with values that are not the defaults."""
    config = json.loads((folder / "config.json").read_text())
    config["language_config"].update(rms_norm_eps=1e-3, rope_theta=500.0, max_position_embeddings=512)
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(folder)
    params = build_model(checkpoint).params
    assert (params.llama.norm_eps, params.llama.rope_theta, params.llama.max_positions) == (1e-3, 500.0, 512)
    checkpoint.config = config_of(build_model(checkpoint))
    assert build_model(checkpoint).params == params


def test_a_written_config_of_janusflow_has_each_norms_own_epsilon(golden, tmp_path):
    folder = shutil.copytree(golden("flow-a").folder, tmp_path / "flow")
    config = json.loads((folder / "config.json").read_text())
    for part, key, value in (
        ("vision_und_enc_config", "layer_norm_eps", 1e-5),
        ("vision_gen_enc_config", "norm_eps", 1e-4),
        ("vision_gen_dec_config", "norm_eps", 1e-3),
    ):
        config[part]["params"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    params = build_model(read_checkpoint(folder)).params
    assert (params.siglip.norm_eps, params.uvit.norm_eps, params.uvit.decoder_norm_eps) == (1e-5, 1e-4, 1e-3)
    written = replace(read_checkpoint(folder), config=config_of(build_model(read_checkpoint(folder))))
    assert build_model(written).params == params


def test_a_folder_without_sizes_and_with_tied_weights_can_be_written(golden, tmp_path):
    checkpoint = read_checkpoint(golden("ar-a").folder)
    head = "language_model.lm_head.weight"
    tied = {**checkpoint.tensors, head: checkpoint.tensors["language_model.model.embed_tokens.weight"]}
    dtype = tied[head].dtype
    save_folder(replace(checkpoint, tensors=tied, config={}), tmp_path / "new", dtype)
    assert torch.equal(load_file(tmp_path / "new" / "model.safetensors")[head], tied[head])


def test_a_single_file_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        save_single_file(read_checkpoint(folder), tmp_path / "file" / "x.safetensors")
    with pytest.raises(OutputError, match="safetensors"):
        save_single_file(read_checkpoint(folder), tmp_path / "x.bin")


def test_a_failed_write_leaves_no_file(folder, tmp_path, monkeypatch):
    def disk_full(tensors, path, metadata):
        path.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    checkpoint = read_checkpoint(folder)
    monkeypatch.setattr("safetensors.torch.save_file", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        save_single_file(checkpoint, tmp_path / "out" / "x.safetensors")
    assert not list((tmp_path / "out").iterdir())
