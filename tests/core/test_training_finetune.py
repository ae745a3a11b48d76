"""Fine-tuning on a folder of captioned images: LoRA and full, from the command line."""

import json
import random

import pytest
import torch
from core.training_models import FAMILIES, tiny
from safetensors.torch import load_file

from demo.recipe import scenes
from demo.recipe.captions import plain_caption
from demo.recipe.train_autoencoders import taesd_tensors
from janus_core import cli, pipeline
from janus_core.checkpoint import save_folder
from janus_core.errors import ImageError
from janus_core.training import folder_data

LOOP = {"steps": 6, "lr": 5e-3, "warmup": 1, "precision": "no", "log_every": 3, "save_every": 3}


@pytest.fixture
def images(tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        scene = scenes.random_scene(rng)
        scenes.render(scene).resize((160, 128)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(plain_caption(scene) + "\n")
    return folder


@pytest.fixture
def run(images, tmp_path, capsys):
    def finetune(family, **changes):
        _, _, checkpoint, vq = tiny(family)
        save_folder(checkpoint, tmp_path / "base", torch.float32)
        config = {
            "task": "finetune",
            "checkpoint": str(tmp_path / "base"),
            "images": str(images),
            "folder": str(tmp_path / "out"),
            "seed": 0,
            "stage": 3,
            "rows": 4,
            "ratio": [25, 75],
            "loop": LOOP,
            **changes,
        }
        if family == "janusflow":
            from diffusers import AutoencoderTiny
            from safetensors.torch import save_file

            torch.manual_seed(0)
            save_file(taesd_tensors(AutoencoderTiny()), tmp_path / "vae.safetensors")
            config["vae"] = str(tmp_path / "vae.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert cli.main(["train", "--config", str(tmp_path / "config.json")]) == 0
        return capsys.readouterr().out.strip().splitlines()[-1]

    return finetune


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_writes_a_checkpoint(family, run, tmp_path):
    written = pipeline.load(run(family), device="cpu", dtype=torch.float32)
    base = pipeline.load(tmp_path / "base", device="cpu")
    new, old = (pipe.model.llama.layers[0].mlp.up_proj.weight for pipe in (written, base))
    assert not torch.equal(new, old)
    if family == "janus":
        for a, b in zip(written.vq.parameters(), base.vq.parameters()):
            torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)  # bfloat16 of the same


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_has_the_names_that_comfyui_reads(family, run, tmp_path):
    pytest.importorskip("peft")
    tensors = load_file(run(family, lora={"rank": 4, "targets": ["q_proj", "down_proj"]}))
    base = pipeline.load(tmp_path / "base", device="cpu").model.state_dict()
    names = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}
    assert len(names) == 2 * 4
    for name in names:
        weight = base[name.removeprefix("diffusion_model.") + ".weight"]
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert (up.shape[0], down.shape[1]) == weight.shape and down.shape[0] == up.shape[1] == 4
        assert tensors[f"{name}.alpha"].item() == 4
        assert up.abs().sum() > 0, "trained"


def test_an_image_without_caption_is_refused(images):
    assert [path.name for path, _ in folder_data.read_folder(images)] == ["0.png", "1.png", "2.png"]
    (images / "1.txt").unlink()
    with pytest.raises(ImageError, match="1.png has no caption"):
        folder_data.read_folder(images)


def test_settings_on_the_command_line_replace_the_configs(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"task": "dance", "folder": "out"}')
    arguments = ["train", "--config", str(tmp_path / "config.json"), "--folder", str(tmp_path)]
    assert cli.main([*arguments, "--set", 'task="waltz"']) == 1 and "waltz" in capsys.readouterr().err
    assert cli.main([*arguments, "--set", "task=finetune", "--set", "stgae=3"]) == 1
    assert "no setting 'stgae'" in capsys.readouterr().err
    assert cli.main([*arguments, "--set", "task=finetune"]) == 1
    assert "lacks the setting" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--set", "task"])


@pytest.mark.parametrize("task", ("model", None))
def test_a_config_of_another_task_is_one_sentence(task, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"task": task}))
    assert cli.main(["train", "--config", str(tmp_path / "config.json")]) == 1
    assert "not a fine-tuning config" in capsys.readouterr().err
