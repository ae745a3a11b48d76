import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # set before Triton is imported, to run kernels on the CPU
torch.set_num_threads(1)  # the models are too small for more threads to help

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden():
    """A function from "ar-a" or "flow-a" to the golden checkpoint's folder, texts and expected tensors."""

    def load(name):
        folder = DATA / "goldens" / name
        text = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["text"]
        return SimpleNamespace(folder=folder, text=text, expected=load_file(folder / "expected.safetensors"))

    return load
