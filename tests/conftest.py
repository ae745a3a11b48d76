import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden():
    """A function from "ar-a" or "flow-a" to its folder, texts and expected tensors."""

    def load(name):
        folder = DATA / "goldens" / name
        text = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["text"]
        return SimpleNamespace(folder=folder, text=text, expected=load_file(folder / "expected.safetensors"))

    return load
