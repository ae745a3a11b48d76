"""The shipped demos: layout, size, the VAE in both programs' names, and a fast version of the quality benchmark."""

import json

import pytest
import torch
from safetensors import safe_open

import janus_core
from benchmarks import demo_quality
from janus_core import image
from janus_core.training import scenes
from janus_core.vae import load_vae

FOLDERS = {"janus": demo_quality.AR, "janusflow": demo_quality.FLOW}
COUNT = 24  # prompts and questions


@pytest.fixture(scope="module")
def pipes():
    load = {"device": "cpu", "dtype": torch.float32}
    return {
        "janus": janus_core.load(demo_quality.AR, **load),
        "janusflow": janus_core.load(demo_quality.FLOW, vae=demo_quality.VAE, **load),
    }


def test_the_demos_are_small_enough_to_clone():
    weights = [path for path in demo_quality.DEMO.rglob("*.safetensors")]
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 30e6


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_is_a_published_folder_in_bfloat16(family):
    folder = FOLDERS[family]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "multi_modality"
    for name in ("tokenizer", "tokenizer_config", "processor_config", "preprocessor_config", "special_tokens_map"):
        assert (folder / f"{name}.json").is_file()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert all(file.get_slice(name).get_dtype() == "BF16" for name in file.keys())
        assert not any("repa" in name for name in file.keys()), "that head is for training only"


def test_the_vae_restores_drawings():
    vae = load_vae(demo_quality.VAE)
    pixels = torch.stack([image.to_pixels(scenes.draw(scene)) for scene, _ in demo_quality.prompts(8)])
    with torch.no_grad():
        z = vae.encode(pixels)
        restored = vae.decode(z)
    assert z.shape == (8, 4, 16, 16) and 0.5 < z.std() < 2, "about as wide as the noise"
    assert (restored - pixels).abs().mean() < 0.05


def test_the_vae_file_has_taesds_names():
    with safe_open(demo_quality.VAE, framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("vae_scale").item() == pytest.approx(0.13025)
        assert file.get_tensor("vae_shift").item() == 0
    assert {"taesd_decoder.1.weight", "taesd_encoder.0.weight"} <= names
    assert all(name.startswith(("taesd_", "vae_")) for name in names)


# What the shipped checkpoints reach (demo/README.md), less a margin for so few prompts.
LEAST = {
    "janus": {"background": 95, "colour": 90, "shape": 90, "both and relation": 83},
    "janusflow": {"background": 95, "colour": 92, "shape": 95, "both and relation": 90},
}
LEAST_ANSWERS = {"janus": 97, "janusflow": 95}


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_draws_what_it_is_told(family, pipes):
    asked = demo_quality.prompts(COUNT)
    scores = demo_quality.scores(demo_quality.draw(pipes[family], asked), asked)
    for name, least in LEAST[family].items():
        assert scores[name] >= least, scores


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_answers_questions(family, pipes):
    right, _ = demo_quality.understanding(pipes[family], 2 * COUNT)
    assert right >= LEAST_ANSWERS[family]
