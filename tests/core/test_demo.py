"""The shipped demos: layout, size, the VAE's names, and a small version of the quality evaluation."""

import json

import pytest
import torch
from safetensors import safe_open

import janus_core
from demo.recipe import quality, scenes
from janus_core import image
from janus_core.vae import load_vae

FOLDERS = {"janus": quality.AR, "janusflow": quality.FLOW}
COUNT = 24  # prompts and questions


@pytest.fixture(scope="module")
def pipes():
    load = {"device": "cpu", "dtype": torch.float32}
    return {
        "janus": janus_core.load(quality.AR, **load),
        "janusflow": janus_core.load(quality.FLOW, vae=quality.VAE, **load),
    }


def test_the_demos_are_small_enough_to_clone():
    weights = [path for path in quality.DEMO.rglob("*.safetensors")]
    assert len(weights) == 4
    assert sum(path.stat().st_size for path in weights) <= 30e6


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_is_a_folder_in_the_original_layout_in_bfloat16(family):
    folder = FOLDERS[family]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "multi_modality"
    for name in ("tokenizer", "tokenizer_config", "processor_config", "preprocessor_config", "special_tokens_map"):
        assert (folder / f"{name}.json").is_file()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert all(file.get_slice(name).get_dtype() == "BF16" for name in file.keys())
        assert not any("repa" in name for name in file.keys()), "the REPA head is for training only"


def test_the_vae_reconstructs_scenes():
    vae = load_vae(quality.VAE)
    pixels = torch.stack([image.to_pixels(scenes.render(scene)) for scene, _ in quality.prompts(8)])
    with torch.no_grad():
        z = vae.encode(pixels)
        restored = vae.decode(z)
    assert z.shape == (8, 4, 16, 16) and 0.5 < z.std() < 2, "about as wide as the noise"
    assert (restored - pixels).abs().mean() < 0.05


def test_the_vae_file_has_taesd_names():
    with safe_open(quality.VAE, framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("vae_scale").item() == pytest.approx(0.13025)
        assert file.get_tensor("vae_shift").item() == 0
    assert {"taesd_decoder.1.weight", "taesd_encoder.0.weight"} <= names
    assert all(name.startswith(("taesd_", "vae_")) for name in names)


# The scores of demo/README.md, less a margin because of the small number of prompts.
MIN_SCORES = {
    "janus": {"background": 95, "colour": 90, "shape": 90, "both and relation": 83},
    "janusflow": {"background": 95, "colour": 92, "shape": 95, "both and relation": 90},
}
MIN_ANSWERS = {"janus": 97, "janusflow": 95}


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_follows_its_prompts(family, pipes):
    asked = quality.prompts(COUNT)
    scores = quality.scores(quality.generate(pipes[family], asked), asked)
    for name, minimum in MIN_SCORES[family].items():
        assert scores[name] >= minimum, scores


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_answers_questions(family, pipes):
    right, _ = quality.understanding(pipes[family], 2 * COUNT)
    assert right >= MIN_ANSWERS[family]
