import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from sdxl_layout import write_sdxl_vae  # noqa: E402

from benchmarks import ROOT  # noqa: E402
from benchmarks.comfyui_server import Server, find_comfyui, python_of  # noqa: E402

GOLDENS = ROOT / "tests" / "data" / "goldens"


def pytest_report_header():
    found = find_comfyui()
    return f"ComfyUI: {found}" if found else "ComfyUI: none found ($COMFYUI_PATH), tests/comfyui skip"


@pytest.fixture(scope="session")
def comfyui():
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI ($COMFYUI_PATH, the one around the pack, ~/ComfyUI, ~/comfy/ComfyUI)")
    return found


@pytest.fixture(scope="session")
def inside(comfyui):
    """Runs one check of a script in this folder, in a process that has ComfyUI's modules; the check must succeed."""

    def run(script: str, check: str):
        command = [python_of(comfyui), str(Path(__file__).with_name(script)), check]
        result = subprocess.run(command, cwd=comfyui, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]

    return run


@pytest.fixture(scope="session")
def start(comfyui, tmp_path_factory):
    """Starts servers with the golden checkpoints; they are stopped at the end of the session."""
    running = []

    def start(*arguments, models=()):
        base = tmp_path_factory.mktemp("comfyui")
        links = {f"janus/{name}": GOLDENS / name for name in ("ar-a", "flow-a")}
        running.append(Server(comfyui, base, {**links, **dict(models)}, ("--cpu", *arguments), threads=1))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def server(start, sdxl_vae):
    """The server that most tests share."""
    return start(models={"vae/sdxl_vae.safetensors": sdxl_vae})


@pytest.fixture(scope="session")
def sdxl_vae(tmp_path_factory):
    """A VAE with random weights in the layout of the SDXL VAE's file."""
    path = tmp_path_factory.mktemp("vae") / "sdxl_vae.safetensors"
    write_sdxl_vae(path)
    return path


def latent_of(server, outputs, node):
    """The tensor that a Save Latent node wrote."""
    return load_file(server.file(outputs[node]["latents"][0]))["latent_tensor"]


def pixels_of(server, outputs, node, k=0):
    """A saved image as uint8 [H, W, 3]."""
    return np.array(Image.open(server.file(outputs[node]["images"][k])).convert("RGB"))
