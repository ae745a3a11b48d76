import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU
torch.set_num_threads(1)  # the models are tiny; more threads only wait for each other

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden():
    """A function from "ar-a" or "flow-a" to its folder, texts and expected tensors."""

    def load(name):
        folder = DATA / "goldens" / name
        text = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["text"]
        return SimpleNamespace(folder=folder, text=text, expected=load_file(folder / "expected.safetensors"))

    return load
