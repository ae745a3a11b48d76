"""The shipped demos: layout, size, the VAE's names, and a small version of the quality evaluation."""

import json

import pytest
import torch
from safetensors import safe_open

import janus_core
from demo.recipe import bars, quality, scenes
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
    weights = list(quality.DEMO.rglob("*.safetensors"))
    assert weights and sum(path.stat().st_size for path in weights) <= 48e6


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
MIN_ANSWERS = {"janus": 95, "janusflow": 95}


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_follows_its_prompts(family, pipes):
    asked = quality.prompts(COUNT)
    scores = quality.scores(bars.generate(pipes[family], [text for _, text in asked]), asked)
    for name, minimum in MIN_SCORES[family].items():
        assert scores[name] >= minimum, scores


@pytest.mark.parametrize("family", FOLDERS)
def test_a_demo_answers_questions(family, pipes):
    right, _ = quality.understanding(pipes[family], 2 * COUNT)
    assert right >= MIN_ANSWERS[family]


# What demo/recipe/bars.py and task_bars.py demand, with fewer prompts; the margin is about two standard deviations.
retrained = pytest.mark.skipif(not quality.TASKS.is_file(), reason="the demos are of the recipe before the toy tasks")
MARGIN = 12


def check(found):
    for one in found:
        assert one.measured >= one.bar - (MARGIN if one.bar > 20 else 0), one


@retrained
@pytest.mark.parametrize("family", FOLDERS)
@pytest.mark.parametrize("measure", (bars.phrasings, bars.negatives, bars.answers))
def test_a_demo_meets_its_bars_in_held_out_phrasings(family, measure, pipes):
    check(measure(family, pipes[family], COUNT))


@retrained
@pytest.mark.parametrize("family", FOLDERS)
def test_what_a_prompt_leaves_out_varies(family, pipes):
    check(bars.variety(family, pipes[family]))


@retrained
def test_the_flow_demo_follows_at_every_guidance_and_from_images(pipes):
    check(bars.flow_guidance(pipes["janusflow"], COUNT))
    check(bars.image_to_image(pipes["janusflow"], COUNT))


def test_textures_come_back_from_the_new_vae():
    """The result of the recipe's step 3, from which no demo has been trained yet."""
    vae = load_vae(quality.NEW_VAE)
    for one in bars.textures("VAE", vae, COUNT):
        assert one.passed, one
    pixels = torch.stack([image.to_pixels(scenes.render(scene)) for scene, _ in quality.prompts(8)])
    with torch.no_grad():
        z = vae.encode(pixels)
        assert 0.2 < z.std() < 0.8, "0.4 times as wide as the noise"
        assert (vae.decode(z) - pixels).abs().mean() < 0.05


@retrained
def test_textures_come_back_from_the_vq(pipes):
    for one in bars.textures("VQ", pipes["janus"].vq, COUNT):
        assert one.measured >= one.bar - 1, one


@retrained
def test_the_toy_tasks():
    pipe = janus_core.load(quality.AR, device="cpu", dtype=torch.float32, loras=quality.TASKS)
    for measure in quality.TASK_BARS:
        check(measure(pipe, COUNT))
