"""The recipe's seven commands, one after another, on its own configs with everything made small."""

import json
from pathlib import Path

import pytest
import torch
from core.training_models import SIZES
from safetensors.torch import load_file

import janus_core
from demo import recipe
from demo.recipe import bars

CONFIGS = Path(recipe.__file__).parent / "configs"
STEPS = {"steps": 1, "save_every": 1, "sample_every": 0, "warmup": 1, "decay": 0.0, "precision": "no"}
SMALL = {
    "encoder": {"siglip": SIZES["siglip"], "rows": 2},
    "vq": {
        "model": {"codebook_dim": 32, "z_channels": 32, "channels": [32] * 5, "res_blocks": 1},
        "codebook": {"seed": 1, "scenes": 30, "textures": 3, "texture_codes": 40, "rounds": 1},
    },
    "vae": {},
    "language": {"sizes": SIZES, "compile": False},
    "janusflow": {"sizes": SIZES, "scenes": 8, "compile": False},
    "janus_pro": {"sizes": SIZES, "scenes": 8, "compile": False},
    "tasks": {"rows": 4, "rank": 2, "compile": False},
}


def small(name: str, folder: Path) -> Path:
    """The config `name` with small sizes and one step per phase, in a folder of its own; and where it is."""
    config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) | SMALL[name]
    config["loop"] |= STEPS
    for part in config.get("phases", []) + config.get("stages", []):
        part |= {"steps": 1}
        part |= {"batch": 2} if "batch" in part else {"rows": 4}
    if name in ("vq", "vae"):
        del config["start"]  # of the first version's size
    for key in ("autoencoder", "encoder", "start"):
        if key in config:
            config[key] = str(folder / Path(config[key]).relative_to("out"))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("out")
    folders = {"janus_pro": "janus-pro-demo", "janusflow": "janusflow-demo"}
    return {name: recipe.run(small(name, folder), folder / folders.get(name, name)) for name in SMALL}


def test_every_command_runs_after_the_one_before(results):
    assert {name: path.name for name, path in results.items()} == {
        "encoder": "encoder.safetensors",
        "vq": "vq.safetensors",
        "vae": "vae.safetensors",
        "language": "checkpoint",
        "janus_pro": "checkpoint",
        "janusflow": "checkpoint",
        "tasks": "lora.safetensors",
    }


def test_the_results_generate_edit_plan_and_check(results):
    ar = janus_core.load(results["janus_pro"], device="cpu", dtype=torch.float32, loras=results["tasks"])
    flow = janus_core.load(results["janusflow"], vae=results["vae"], device="cpu", dtype=torch.float32)
    layers = [name for name in load_file(results["tasks"]) if name.endswith(".lora_B.weight")]
    assert len(layers) == 7 * SIZES["llama"]["layers"]
    (image,) = ar("a red circle")
    assert ar.edit(image, "make it blue")[0].size == image.size == flow("a red circle", steps=1)[0].size
    assert ar.reflect(image, "a red circle", max_new_tokens=2).prompt.embeds.shape[0] > 64
    assert ar.think("a red circle", "got-r1", max_new_tokens=3).thought is not None
    for name, autoencoder in (("VQ", ar.vq), ("VAE", flow.vae)):
        assert all(one.measured < 20 for one in bars.textures(name, autoencoder, 1)), "untrained"
