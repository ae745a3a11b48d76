"""Fuzz cases of weights in every layout: damaged files, and tensors that do not fit."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from .case import OK, REFUSED, SAME, Case, flip, pick
from .folders import LAYOUTS, Folder, case_of

LLM = "language_model.model."
DTYPES = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)


def make(rng: random.Random, work: Path) -> Case:
    return case_of(rng, work, KINDS)


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
        config = folder.json()  # the official ones do not always say how many layers there are
        del config["language_config"]["num_hidden_layers"]
        folder.write_json(config)
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
        tensors[f"{layer}.comfy_quant"] = note(
            pick(rng, ('{"format": 5}', "[]", '{"format": ["a"]}', '{"format": "x"}'))
        )
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
    file = (
        path if path.is_file() else pick(rng, sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin")))
    )
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
            rng,
            ("../outside.safetensors", str(outside), "x.bin", "config.json", "/dev/zero", "..", "", "a\0b.safetensors"),
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
    action = pick(
        rng,
        (
            "keys",
            "values",
            "top",
            "code",
            "sparse",
            "expanded",
            "meta",
            "nested",
            "deflated",
            "marks",
            "old marks",
            "parameter",
            "plain pickle",
            "bytes",
        ),
    )
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
        value = {
            **tensors,
            name: torch.zeros(1).expand(pick(rng, ([2**40], [2**20, 2**20], list(tensors[name].shape)))),
        }
    elif action == "meta":
        value, old = {**tensors, name: torch.empty(2**40, device="meta")}, False
    elif action == "nested":
        for _ in range(150):
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


KINDS = (tensor_values, tensor_values, whole_layers, quantised, raw_weights, raw_weights, raw_header, index, pickles)
