"""Fuzz cases of config.json and its companions, of tokenizers, and of the texts in single files."""

import json
import os
import random
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from janus_core.checkpoint import metadata_of

from .case import OK, REFUSED, SAME, Case, flip, pick
from .folders import LAYOUTS, Folder, case_of
from .models import tiny

FREE = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "rope_theta", "max_position_embeddings", "head_dim")
FREE += ("num_attention_heads", "bos_token", "eos_token", "content", "add_bos_token", "sft_format", "num_hidden_layers")
STRANGE = (None, True, 0, -1, 0.5, 1e9, 1e300, float("nan"), float("inf"), 10**30, "x", "32", [], [1], {}, {"a": 1})


def make(rng: random.Random, work: Path) -> Case:
    return case_of(rng, work, KINDS)


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
    action = pick(
        rng, ("flip", "flip", "flip", "cut", "deep", "digits", "bom", "utf16", "list", "fifo", "folder", "big")
    )
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
        return f"{action} {name} in {layout}", path, (SAME,)
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
    action = pick(
        rng,
        ("regex", "regex", "regex", "added", "ids", "field", "flip", "cut", "deep", "vocab", "merges", "split special"),
    )
    expected = (REFUSED,)
    if action == "regex":
        pattern = pick(rng, ("(a|a)*$", "(a|aa)+$", "((a+)+)+\\d", "(.*)*\\d\\1", "(", "a{99999}"))
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        value["pre_tokenizer"] = split
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
        gone = pick(
            rng, ("<image_placeholder>", "<begin_of_image>" if folder.family == "janus" else "<image_placeholder>")
        )
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


KINDS = (json_fields, json_fields, json_text, tokenizers, metadata)
