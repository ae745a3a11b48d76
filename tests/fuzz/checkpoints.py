"""Fuzz cases of checkpoints: weights, configs and tokenizers in every layout, mutated."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from janus_core.checkpoint import metadata_of

from .case import OK, REFUSED, SAME, Case, flip, pick
from .models import FAMILIES, digest, tiny, write_tiny

LLM = "language_model.model."
FREE = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "rope_theta", "max_position_embeddings", "head_dim")
FREE += ("num_attention_heads", "bos_token", "eos_token", "content", "add_bos_token", "sft_format", "num_hidden_layers")
DTYPES = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)
STRANGE = (None, True, 0, -1, 0.5, 1e9, 1e300, float("nan"), float("inf"), 10**30, "x", "32", [], [1], {}, {"a": 1})


class Folder:
    """A checkpoint folder being mutated: tensors, and the texts of its JSON files."""

    def __init__(self, family: str, path: Path):
        self.family, self.path = family, path
        write_tiny(family, path)
        self.tensors = dict(tiny(family).tensors)
        self.weights = path / "model.safetensors"

    def json(self, name: str = "config") -> dict:
        return json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))

    def write_json(self, value, name: str = "config"):
        (self.path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")

    def write(self, layout: str, rng: random.Random) -> Path:
        """Writes the tensors in a layout; returns the path to load."""
        if layout == "safetensors":
            self.weights.write_bytes(to_safetensors(self.tensors, {"format": "pt"}))
        elif layout == "single":
            texts = {key: self.json(key) for key in ("config", "tokenizer_config", "processor_config")}
            metadata = {key: json.dumps(value) for key, value in texts.items()}
            metadata["tokenizer"] = (self.path / "tokenizer.json").read_text(encoding="utf-8")
            file = self.path / "one.safetensors"
            file.write_bytes(to_safetensors(self.tensors, metadata))
            return file
        elif layout in ("bin", "old bin"):
            self.weights.unlink(missing_ok=True)
            file = self.path / "pytorch_model.bin"
            torch.save(self.tensors, file, _use_new_zipfile_serialization=layout == "bin")
        else:
            self.write_shards(rng)
        return self.path

    def write_shards(self, rng: random.Random):
        self.weights.unlink(missing_ok=True)
        names = sorted(self.tensors)
        rng.shuffle(names)
        weight_map = {}
        for k in range(2):
            file, part = f"model-{k + 1:05}-of-00002.safetensors", names[k::2]
            data = to_safetensors({name: self.tensors[name] for name in part}, {"format": "pt"})
            (self.path / file).write_bytes(data)
            weight_map |= dict.fromkeys(part, file)
        self.index = {"metadata": {}, "weight_map": weight_map}
        self.write_json(self.index, "model.safetensors.index")


LAYOUTS = ("safetensors", "single", "bin", "old bin", "shards")


@cache
def baseline(family: str, folder: Path) -> str:
    return digest(write_tiny(family, folder / f"baseline-{family}"))


def make(rng: random.Random, work: Path) -> Case:
    """A case of a random kind."""
    family = pick(rng, FAMILIES)
    folder = Folder(family, work / "checkpoint")
    kind = pick(rng, KINDS)
    label, path, expected = kind(folder, rng)
    return Case(f"{kind.__name__}: {label}", lambda: digest(path), expected, baseline(family, work.parent))


def tensor_values(folder: Folder, rng):
    """One tensor of another dtype, rank or size, missing, renamed or additional."""
    tensors, name = folder.tensors, pick(rng, sorted(folder.tensors))
    tensor, layout = tensors[name], pick(rng, LAYOUTS)
    action = pick(rng, ("dtype", "flatten", "unsqueeze", "empty", "scalar", "grow", "drop", "rename", "extra", "huge"))
    expected = (REFUSED,)
    if action == "dtype":
        tensors[name] = tensor.to(pick(rng, DTYPES))
    elif action == "flatten":
        tensors[name] = tensor.flatten()
        expected = (REFUSED, SAME)
    elif action == "unsqueeze":
        tensors[name] = tensor[None]
    elif action == "empty":
        tensors[name] = tensor[:0].clone()
    elif action == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif action == "grow":
        tensors[name] = torch.cat((tensor, tensor[-1:]))
    elif action == "drop":
        del tensors[name]
    elif action == "rename":
        del tensors[name]
        tensors[name + pick(rng, ("x", ".weight", "\u0660", " "))] = tensor
    elif action == "extra":
        tensors[pick(rng, (f"{LLM}extra", "repa.0.weight", "x", f"{LLM}rotary_emb.inv_freq"))] = torch.zeros(3)
        expected = (SAME,)
    else:
        number = pick(rng, ("2000000000", "7", "99999999999999999999999", "1" * 5000))
        prefix = pick(rng, (f"{LLM}layers", "gen_vision_model.encoder.conv_blocks", "aligner.layers"))
        tensors[f"{prefix}.{number}.input_layernorm.weight"] = torch.zeros(32)
        unknown = folder.family == "janusflow" and "layers" not in prefix.partition("model.")[2]
        expected = (REFUSED, SAME) if unknown or prefix == "aligner.layers" else (REFUSED,)
    return f"{action} {name[:60]} in {layout}", folder.write(layout, rng), expected


def whole_layers(folder: Folder, rng):
    """A block is missing: the first, one in the middle, or the last."""
    vision = "vision_model" if folder.family == "janus" else "vision_und_enc_model"
    prefixes = [(f"{LLM}layers", 3), (f"{vision}.vision_tower.blocks", 2)]
    if folder.family == "janus":
        prefixes += [("gen_vision_model.encoder.conv_blocks", 2), ("gen_vision_model.decoder.conv_blocks", 2)]
    else:
        prefixes += [("vision_gen_enc_model.mid_block.res_blocks", 2), ("vision_gen_dec_model.mid_block.res_blocks", 2)]
    prefix, count = pick(rng, prefixes)
    number = rng.randrange(count)
    folder.tensors = {n: t for n, t in folder.tensors.items() if not n.startswith(f"{prefix}.{number}.")}
    return f"no {prefix}.{number}", folder.write(pick(rng, LAYOUTS), rng), (REFUSED,)


def quantised(folder: Folder, rng):
    """8-bit weights with missing or wrong notes and scales, and biases that no layer has."""
    layer = f"{LLM}layers.{rng.randrange(3)}.mlp.up_proj"
    weight, tensors = folder.tensors[f"{layer}.weight"], folder.tensors

    def note(text):
        return torch.tensor(list(text.encode("utf-8", "replace")), dtype=torch.uint8)

    good = '{"format": "int8_tensorwise"}'
    action = pick(rng, ("note", "dtype", "no note", "no scale", "scale", "scale dtype", "nan scale", "text", "bias"))
    tensors[f"{layer}.weight"] = (weight * 100).round().clamp(-127, 127).to(torch.int8)
    tensors[f"{layer}.weight_scale"] = torch.full((len(weight), 1), 0.01)
    tensors[f"{layer}.comfy_quant"] = note(good)
    if action == "note":
        tensors[f"{layer}.comfy_quant"] = note(pick(rng, ('{"format": 5}', "[]", '{"format": ["a"]}', '{"format": "x"}')))
    elif action == "dtype":
        tensors[f"{layer}.weight"] = weight.to(pick(rng, (torch.float32, torch.float8_e4m3fn, torch.uint8)))
    elif action == "no note":
        del tensors[f"{layer}.comfy_quant"]
    elif action == "no scale":
        del tensors[f"{layer}.weight_scale"]
    elif action == "scale":
        tensors[f"{layer}.weight_scale"] = torch.ones(pick(rng, ((3,), (1, len(weight)), (len(weight), 2), (0,))))
    elif action == "scale dtype":
        tensors[f"{layer}.weight_scale"] = torch.ones(len(weight), 1, dtype=torch.int32)
    elif action == "nan scale":
        tensors[f"{layer}.weight_scale"][0] = pick(rng, (float("nan"), float("inf")))
    elif action == "text":
        tensors[f"{layer}.comfy_quant"] = note("[" * 100000) if rng.random() < 0.5 else torch.ones(3)
    else:
        tensors[f"{layer}.weight"] = weight
        del tensors[f"{layer}.weight_scale"], tensors[f"{layer}.comfy_quant"]
        tensors[f"{layer}.bias"] = torch.ones(len(weight))
    return f"{action} of {layer}", folder.write(pick(rng, LAYOUTS), rng), (REFUSED,)


def raw_weights(folder: Folder, rng):
    """Damaged bytes of a weight file: its header or pickle changed, cut off, or something else altogether."""
    layout = pick(rng, LAYOUTS)
    path = folder.write(layout, rng)
    file = path if path.is_file() else pick(rng, sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin")))
    data = file.read_bytes()
    is_tensors = file.suffix == ".safetensors"
    header = 8 + struct.unpack("<Q", data[:8])[0] if is_tensors else 4000
    action = pick(rng, ("flip", "flip", "cut", "cut", "length", "append", "other", "html", "lfs", "empty", "zip tail"))
    expected = (REFUSED,)
    if action == "flip":
        texts = layout == "single"  # a changed letter of the tokenizer is another tokenizer
        file.write_bytes(flip(rng, data, 0, header))
        expected = (REFUSED, SAME) if is_tensors and not texts else (REFUSED, OK)
    elif action == "cut":
        file.write_bytes(data[: int(len(data) * rng.random() ** 2)])
    elif action == "length":
        start = struct.pack("<Q", pick(rng, (0, 1, 2**63, 2**64 - 1, header * 2, 10**8)))
        file.write_bytes(start + data[8:])
        expected = (REFUSED, SAME)
    elif action == "append":
        file.write_bytes(data + rng.randbytes(100))
        expected = (REFUSED, SAME)
    elif action == "other":
        file.write_bytes(rng.randbytes(rng.randrange(3000)))
    elif action == "html":
        file.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    elif action == "lfs":
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    elif action == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(flip(rng, data, len(data) - 200))
        expected = (REFUSED, OK)
    return f"{action} of {layout}", path, expected


def raw_header(folder: Folder, rng):
    """A safetensors header with other fields."""
    path = folder.write("safetensors", rng)
    data = folder.weights.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = pick(rng, [n for n in header if n != "__metadata__"])
    action = pick(rng, ("dtype", "shape", "offsets", "metadata", "entry", "deep"))
    expected = (REFUSED,)
    if action == "dtype":
        header[name]["dtype"] = pick(rng, ("F64", "I32", "F4", "X", 5, None, "BF16", "F8_E8M0", "C64"))
    elif action == "shape":
        header[name]["shape"] = pick(rng, ([], [0], [-1], [2**62, 4], ["a"], 5, [10**30], [1.5]))
    elif action == "offsets":
        header[name]["data_offsets"] = pick(rng, ([0, 0], [5, 1], [0, 2**62], [0], None, [0, "a"]))
    elif action == "metadata":
        header["__metadata__"] = pick(rng, ([], "a", {"a": 5}, None, {"config": "["}))
        expected = (REFUSED, SAME)
    elif action == "entry":
        header[name] = pick(rng, (None, [], 5, {}))
    text = json.dumps(header).encode()
    if action == "deep":
        text = text[:-1] + b',"x":' + b"[" * 100000 + b"]" * 100000 + b"}"
    folder.weights.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return f"{action} of {name[:50]}", path, expected


def index(folder: Folder, rng):
    """An index that names other files, or shards that disagree with it."""
    folder.write_shards(rng)
    weight_map = folder.index["weight_map"]
    name, other = rng.sample(sorted(weight_map), 2)
    expected = (REFUSED,)
    action = pick(rng, ("path", "type", "map", "missing", "wrong shard", "override", "unlisted", "fifo"))
    if action == "path":
        outside = folder.path.parent / "outside.safetensors"
        outside.write_bytes((folder.path / weight_map[name]).read_bytes())
        weight_map[name] = pick(
            rng, ("../outside.safetensors", str(outside), "x.bin", "config.json", "/dev/zero", "..", "", "a\0b.safetensors")
        )
    elif action == "type":
        weight_map[name] = pick(rng, (5, None, [], {}, True))
    elif action == "map":
        folder.index["weight_map"] = pick(rng, ([], {}, None, "x", 5, {"a": "b"}))
    elif action == "missing":
        (folder.path / weight_map[name]).unlink()
    elif action == "wrong shard":
        weight_map[name] = next(file for file in weight_map.values() if file != weight_map[name])
    elif action in ("override", "unlisted"):
        file = next(file for file in weight_map.values() if file != weight_map[name])
        names = [n for n, f in weight_map.items() if f == file]
        tensors = {n: folder.tensors[n] for n in names}
        tensors[name if action == "override" else "x.y"] = torch.ones_like(folder.tensors[name])
        (folder.path / file).write_bytes(to_safetensors(tensors))
        expected = (SAME,)
    else:
        (folder.path / weight_map[name]).unlink()
        os.mkfifo(folder.path / weight_map[name])
    folder.write_json(folder.index, "model.safetensors.index")
    return f"{action} {name[:40]} {other[:20]}", folder.path, expected


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def pickles(folder: Folder, rng):
    """Pickles that are no dictionaries of dense tensors, or larger than they look."""
    folder.weights.unlink()
    file, tensors = folder.path / "pytorch_model.bin", folder.tensors
    name = pick(rng, sorted(tensors))
    action = pick(rng, ("keys", "values", "top", "code", "sparse", "expanded", "meta", "nested", "deflated", "marks",
                        "old marks", "parameter", "plain pickle", "bytes"))  # fmt: skip
    expected, old = (REFUSED,), rng.random() < 0.3
    value = tensors
    if action == "keys":
        value = {**tensors, pick(rng, (5, None, ("a",), b"x")): tensors[name]}
    elif action == "values":
        value = {**tensors, name: pick(rng, (None, 5, "x", [1.0], {"a": 1}))}
    elif action == "top":
        value = pick(rng, (None, [], 5, "x", list(tensors.values()), {"state_dict": tensors}, tensors[name]))
    elif action == "code":
        value = {**tensors, "x": Harmful()}
    elif action == "sparse":
        value = {**tensors, name: torch.eye(3).to_sparse()}
    elif action == "expanded":
        value = {**tensors, name: torch.zeros(1).expand(pick(rng, ([2**40], [2**20, 2**20], list(tensors[name].shape))))}
    elif action == "meta":
        value, old = {**tensors, name: torch.empty(2**40, device="meta")}, False
    elif action == "nested":
        for _ in range(500):
            value = {"model": value}
    elif action == "parameter":
        value, expected = {n: torch.nn.Parameter(t, requires_grad=False) for n, t in tensors.items()}, (SAME,)
    if action in ("deflated", "marks"):
        compression = zipfile.ZIP_DEFLATED if action == "deflated" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", compression) as archive:
            size = 300 * 2**20 if action == "deflated" else 6 * 2**20
            archive.writestr("archive/data.pkl", b"\x80\x02" + b"(" * size)
            archive.writestr("archive/version", b"3\n")
    elif action == "old marks":
        buffer = io.BytesIO()
        torch.save(tensors, buffer, _use_new_zipfile_serialization=False)
        start = buffer.getvalue().index(b"\x80\x02", 60)
        file.write_bytes(buffer.getvalue()[:start] + b"\x80\x02" + b"(" * (8 * 2**20))
    elif action == "plain pickle":
        file.write_bytes(pickle.dumps({"a": 1}))
    elif action == "bytes":
        file.write_bytes(pick(rng, (b"\x80\x02", b"\x80\x05.", b"PK\x03\x04", b"\x00" * 50, b"(lp0\n.")))
    else:
        torch.save(value, file, _use_new_zipfile_serialization=not old)
    return f"{action} {name[:40]}", folder.path, expected


def fields(values, path=()):
    """(path, value) of everything in a JSON value."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from fields(value, (*path, key))
    else:
        yield path, json.dumps(values)


def free_fields(text: str):
    """The fields of a JSON text that may have other values; None where it is not JSON."""
    try:
        return [(path[-1], value) for path, value in fields(json.loads(text)) if path and path[-1] in FREE]
    except (ValueError, RecursionError):
        return None


def json_fields(folder: Folder, rng):
    """One field of one JSON file has another type or value."""
    file = pick(rng, ("config", "config", "config", "tokenizer_config", "processor_config", "preprocessor_config"))
    value = folder.json(file)
    section = value
    while True:
        key = pick(rng, sorted(section))
        if not isinstance(section[key], dict) or rng.random() < 0.15:
            break
        section = section[key]
    before, section[key] = section[key], pick(rng, STRANGE)
    strange = section[key]
    folder.write_json(value, file)
    expected = (REFUSED, SAME)
    if key in FREE and (strange is None or (key in ("bos_token", "eos_token") and isinstance(strange, dict))):
        expected += (OK,)  # the default
    elif key == "rope_theta" and strange == 1e9:
        expected += (OK,)
    elif isinstance(before, dict) and not strange:
        expected += (OK,)  # a section without fields
    return f"{file}: {key} is {str(strange)[:30]}", folder.write(pick(rng, LAYOUTS), rng), expected


def json_text(folder: Folder, rng):
    """A JSON file that is not what it should be as text."""
    layout = pick(rng, LAYOUTS[:1] + LAYOUTS[2:])
    path = folder.write(layout, rng)
    name = pick(rng, ("config", "tokenizer_config", "processor_config", "preprocessor_config"))
    if layout == "shards" and rng.random() < 0.3:
        name = "model.safetensors.index"
    file = folder.path / f"{name}.json"
    text = file.read_text(encoding="utf-8")
    action = pick(rng, ("flip", "flip", "flip", "cut", "deep", "digits", "bom", "utf16", "list", "fifo", "folder", "big"))
    if action == "flip":
        file.write_bytes(flip(rng, text.encode(), most=2))
        after = file.read_bytes().decode("utf-8", "replace")
        expected = (REFUSED, SAME) if free_fields(text) == free_fields(after) else (REFUSED, SAME, OK)
        return f"{action} {name} in {layout}", path, expected
    if action == "cut":
        file.write_text(text[: rng.randrange(len(text) - 2)], encoding="utf-8")
    elif action == "deep":
        depth = pick(rng, (40, 900, 100000))
        file.write_text('{"a": ' + "[" * depth + "]" * depth + "," + text.lstrip()[1:], encoding="utf-8")
    elif action == "digits":
        file.write_text('{"a": ' + "1" * 5000 + "," + text.lstrip()[1:], encoding="utf-8")
    elif action == "bom":
        file.write_text(text, encoding="utf-8-sig")
    elif action == "utf16":
        file.write_text(text, encoding="utf-16")
    elif action == "list":
        file.write_text(f"[{text}]", encoding="utf-8")
    elif action == "big":
        file.write_text(text + " " * 70_000_000, encoding="utf-8")
    else:
        file.unlink()
        os.mkfifo(file) if action == "fifo" else file.mkdir()
    return f"{action} {name} in {layout}", path, (REFUSED,)


def tokenizers(folder: Folder, rng):
    """A tokenizer.json that is damaged, of another model, or explodes when it is used."""
    file = folder.path / "tokenizer.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    action = pick(rng, ("regex", "added", "ids", "field", "flip", "cut", "deep", "vocab", "merges", "split special"))
    expected = (REFUSED,)
    if action == "regex":
        value["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pick(rng, ("(a|a)*$x", "(.*)*\\d\\1", "(", "a{99999}"))},
                                  "behavior": "Isolated", "invert": False}  # fmt: skip
        expected = (REFUSED, OK)
    elif action == "added":
        gone = pick(rng, ("<image_placeholder>", "<begin_of_image>", "<｜▁pad▁｜>", "<end_of_image>"))
        value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != gone]
        value["model"]["vocab"].pop(gone, None)
    elif action == "ids":
        pick(rng, value["added_tokens"])["id"] = pick(rng, (-1, 2**32 - 1, 2**40, "a", None, 10**6))
        expected = (REFUSED, OK)
    elif action == "field":
        section = pick(rng, (value, value["model"]))
        section[pick(rng, sorted(section))] = pick(rng, STRANGE)
        expected = (REFUSED, OK)
    elif action == "vocab":
        value["model"]["vocab"] = pick(rng, ({}, [], None, {"a": -1}, {"a": 10**6}))
        expected = (REFUSED, OK)
    elif action == "merges":
        value["model"]["merges"] = pick(rng, (["a"], [["a", "b", "c"]], [5], None, [["zz", "qq"]]))
        expected = (REFUSED, OK)
    elif action == "split special":
        gone = pick(rng, ("<image_placeholder>", "<begin_of_image>" if folder.family == "janus" else "<image_placeholder>"))
        tokens = {token["content"]: token["id"] for token in value["added_tokens"]}
        value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != gone]
        value["model"]["vocab"][gone] = tokens[gone]
    text = json.dumps(value)
    if action == "flip":
        text = flip(rng, text.encode()).decode("utf-8", "replace")
        expected = (REFUSED, OK)
    elif action == "cut":
        text = text[: rng.randrange(len(text))]
    elif action == "deep":
        text = "[" * 100000
    file.write_text(text, encoding="utf-8")
    return action, folder.write(pick(rng, LAYOUTS), rng), expected


def metadata(folder: Folder, rng):
    """A single file whose texts are damaged."""
    texts = metadata_of(tiny(folder.family))
    key = pick(rng, ("config", "tokenizer", "tokenizer_config", "processor_config"))
    texts[key] = pick(rng, ("", "[", "[]", "5", "null", '"x"', "[" * 100000, '{"a": ' + "1" * 5000 + "}", "{" + "\0"))
    file = folder.path / "one.safetensors"
    as_tensors = rng.random() < 0.4
    if as_tensors:  # as ComfyUI's Model Save writes them
        tensors = {f"model.diffusion_model.{n}": t for n, t in folder.tensors.items()}
        for name in ("config", "tokenizer", "tokenizer_config", "processor_config"):
            data = torch.tensor(list(texts[name].encode()) or [0], dtype=torch.uint8)
            strange = (data.float(), data.to(torch.int64) - 500, data[None], data[:0], torch.tensor(5.5))
            tensors[f"janus.{name}"] = pick(rng, strange) if name == key else data
        file.write_bytes(to_safetensors(tensors))
        return f"{key} as a tensor", file, (REFUSED, OK)
    file.write_bytes(to_safetensors(folder.tensors, texts))
    return f"{key} is {texts[key][:20]!r}", file, (REFUSED,)


KINDS = (tensor_values, tensor_values, whole_layers, quantised, raw_weights, raw_weights, raw_header, index, pickles,
         json_fields, json_fields, json_fields, json_text, tokenizers, metadata)  # fmt: skip
