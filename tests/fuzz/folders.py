"""Checkpoint folders to mutate."""

import json
import random
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from .case import Case, pick
from .models import FAMILIES, digest, tiny, write_tiny


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


def case_of(rng: random.Random, work: Path, kinds) -> Case:
    """A case of one of the kinds, functions that mutate a folder and return (label, path, expected outcomes)."""
    family = pick(rng, FAMILIES)
    folder = Folder(family, work / "checkpoint")
    kind = pick(rng, kinds)
    label, path, expected = kind(folder, rng)
    return Case(f"{kind.__name__}: {label}", lambda: digest(path), expected, baseline(family, work.parent))
