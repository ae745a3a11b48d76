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


@pytest.fixture
def larger_tiles(monkeypatch):
    """Eight times the columns per program of the GEMV kernels, whose number Triton's interpreter takes its time for.

    For tests of what is around the kernels: test_kernels_compute_what_the_network_does has the tiles of a GPU.
    """
    kernels = pytest.importorskip("janus_core.triton_decoder.kernels", reason="needs Triton")
    launch_config = kernels._launch_config

    def larger(x, layers):
        pointers, config = launch_config(x, layers)
        return pointers, {**config, "BN": config["BN"] * (8 if config["BM"] <= kernels.MAX_GEMV_ROWS else 1)}

    if not torch.cuda.is_available():
        monkeypatch.setattr(kernels, "_launch_config", larger)
