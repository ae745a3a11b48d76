"""Fine-tuning on a folder of captioned images: LoRA and full, from the command line."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from core.training_models import FAMILIES, tiny
from PIL import Image
from safetensors.torch import load_file

import janus_core
from demo.recipe import scenes
from demo.recipe.captions import plain_caption
from demo.recipe.train_autoencoders import taesd_tensors
from janus_core import cli, loading
from janus_core.checkpoint import save_folder
from janus_core.checkpoint.files import read_pickle
from janus_core.errors import ImageError, TrainingError
from janus_core.training import finetune, folder_data, identity, read_config, settings, trained_model

LOOP = {"steps": 6, "lr": 5e-3, "warmup": 1, "precision": "no", "log_every": 3, "save_every": 3}
LORA = {"rank": 4, "targets": ["q_proj", "down_proj"]}


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
    def finetune(family, dtype=torch.float32, **changes):
        _, _, checkpoint, vq = tiny(family)
        save_folder(checkpoint, tmp_path / "base", dtype)
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
        code = cli.main(["train", "--config", str(tmp_path / "config.json")])
        output = capsys.readouterr()
        return output.out.strip().splitlines()[-1] if code == 0 else output.err

    return finetune


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_writes_a_checkpoint(family, run, tmp_path):
    written = loading.load(run(family), device="cpu", dtype=torch.float32)
    base = loading.load(tmp_path / "base", device="cpu")
    new, old = (pipe.model.llama.layers[0].mlp.up_proj.weight for pipe in (written, base))
    assert not torch.equal(new, old)
    if family == "janus":
        for a, b in zip(written.vq.parameters(), base.vq.parameters()):
            torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)  # bfloat16 of the same


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_has_the_names_that_comfyui_reads(family, run, tmp_path):
    pytest.importorskip("peft")
    tensors = load_file(run(family, lora={"rank": 4, "targets": ["q_proj", "down_proj"]}))
    base = loading.load(tmp_path / "base", device="cpu").model.state_dict()
    names = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}
    assert len(names) == 2 * 4
    for name in names:
        weight = base[name.removeprefix("diffusion_model.") + ".weight"]
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert (up.shape[0], down.shape[1]) == weight.shape and down.shape[0] == up.shape[1] == 4
        assert tensors[f"{name}.alpha"].item() == 4
        assert up.abs().sum() > 0, "trained"
    early = load_file(tmp_path / "out" / "steps" / "000003" / "lora.safetensors")
    assert early.keys() == tensors.keys() and not all(torch.equal(early[name], tensors[name]) for name in tensors)
    assert [path.name for path in (tmp_path / "out" / "steps").iterdir()] == ["000003"], "the last is the result"


def test_an_image_without_caption_is_refused(images):
    assert [one.path.name for one in folder_data.read_folder(images)] == ["0.png", "1.png", "2.png"]
    (images / "1.txt").unlink()
    with pytest.raises(ImageError, match="1.png has no caption"):
        folder_data.read_folder(images)


def test_what_is_no_training_data_is_left_out(images):
    (images / "0_unused").mkdir()
    (images / "1.png").rename(images / "0_unused" / "1.png")  # without its caption
    (images / ".hidden").mkdir()
    (images / ".hidden" / "metadata.jsonl").write_text("not JSON")
    (images / "0.txt").write_bytes(b"\xef\xbb\xbfa red circle")
    line = json.dumps({"image": "2.png", "caption": "one\u2028two"}, ensure_ascii=False)
    (images / "metadata.jsonl").write_text(f"{line}\n", encoding="utf-8-sig")
    assert [(one.path.name, one.caption) for one in folder_data.read_folder(images)] == [
        ("0.png", "a red circle"),
        ("2.png", "one\u2028two"),
    ]


def test_an_image_that_cannot_be_used_is_named(run, images):
    Image.new("RGB", (3000, 1)).save(images / "1.png")
    assert "1.png: The image is 3000x1" in run("janus")


def test_the_rate_warms_up_over_a_twentieth_of_the_steps(tmp_path):
    config = {"loop": {"steps": 500}, "seed": 0}
    assert settings.loop_settings(config).warmup == 25
    assert settings.loop_settings({**config, "loop": {"steps": 500, "warmup": 3}}).warmup == 3
    assert settings.loop_settings({**config, "loop": {"steps": 10**6}}).warmup == 2000


def test_the_loops_defaults_belong_to_what_a_resumed_run_must_have():
    settings = identity._result_settings({"loop": {"steps": 500, "save_every": 7}, "lora": {"rank": 4}, "seed": 0})
    assert settings["loop.warmup"] == 25 and settings["loop.ema"] == 0 and settings["lora.rank"] == 4
    assert "loop.save_every" not in settings


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--memory", "24"], "belong to --estimate"),
        (["--gpus", "2"], "belong to --estimate"),
        (["--estimate", "--gpus", "8"], "FSDP is for all weights"),
        (
            ["--estimate", "--gpus", "8", "--set", "lora=null", "--set", "stage=3", "--set", "loop.ema_device=cpu"],
            "ema_device 'same'",
        ),
        (["--set", "lora={}"], "lora is empty: set rank, or lora to null"),
    ],
)
def test_options_of_train_without_effect_are_refused(changes, message, capsys):
    config = Path(janus_core.__file__).parent / "training" / "configs" / "janus_pro_1b_style_lora.json"
    assert cli.main(["train", "--config", str(config), *changes]) == 1
    assert message in capsys.readouterr().err


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


def test_a_lora_stores_what_is_trained_beside_a_frozen_base_of_its_own_dtype(run, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    models = []
    build = trained_model.train_parts
    monkeypatch.setattr(
        trained_model, "train_parts", lambda model, config: (build(model, config), models.append(model))
    )
    run("janus", dtype=torch.bfloat16, lora=LORA)
    dtypes = {(p.requires_grad, p.dtype) for p in models[0].parameters()}
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}
    state = read_pickle(tmp_path / "out" / "run" / "state.pt")
    assert state["weights"] and all(".lora_" in name for name in state["weights"])
    assert state["ema"] == {}


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_lora_over_a_quantised_base_learns(base, run, tmp_path):
    pytest.importorskip("peft")
    loop = {**LOOP, "steps": 30, "log_every": 10}
    trained = load_file(run("janus", dtype=torch.bfloat16, lora={**LORA, "base": base}, loop=loop, ratio=[0, 1]))
    log = [json.loads(line) for line in (tmp_path / "out" / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["generation"] < log[0]["generation"]
    plain = load_file(run("janus", dtype=torch.bfloat16, lora=LORA, ratio=[0, 1], folder=str(tmp_path / "plain")))
    assert {name: t.shape for name, t in trained.items()} == {name: t.shape for name, t in plain.items()}
    pipe = loading.load(tmp_path / "base", device="cpu", loras=[tmp_path / "out" / "lora.safetensors"])
    assert pipe.model.llama.layers[0].self_attn.q_proj.weight.isfinite().all()


def test_a_stopped_run_over_4_bits_resumes_to_the_same_lora(run, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    whole = load_file(run("janus", dtype=torch.bfloat16, lora={**LORA, "base": "nf4"}))
    monkeypatch.setattr(finetune, "train", partial(finetune.train, stop_at=3))
    changes = {"dtype": torch.bfloat16, "lora": {**LORA, "base": "nf4"}, "folder": str(tmp_path / "stopped")}
    stopped = load_file(run("janus", **changes))
    monkeypatch.undo()
    resumed = load_file(run("janus", **changes))
    assert any(not torch.equal(stopped[name], tensor) for name, tensor in whole.items())
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    error = run("janus", **{**changes, "lora": LORA})
    assert "lora.base was 'nf4' and is None" in error


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": {"rank": 8}}, "lora.rank was 4 and is 8"),
        ({"lora": {"rank": 4, "alpha": 8}}, "lora.alpha was None and is 8"),
        ({"loop": {**LOOP, "lr": 1e-3}}, "loop.lr was 0.005 and is 0.001"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"ratio": [50, 50]}, "ratio was [25, 75] and is [50, 50]"),
        ("caption", "images was '3 images"),
        ("image", "images was '3 images"),
        ("checkpoint", "checkpoint was"),
    ],
)
def test_another_run_in_a_used_folder_is_refused_by_name(changes, named, run, images, tmp_path):
    pytest.importorskip("peft")
    first = run("janus", lora={"rank": 4})
    if changes == "caption":
        (images / "1.txt").write_text("another caption")
    elif changes == "image":
        (images / "1.png").write_bytes((images / "2.png").read_bytes())
    dtype = torch.bfloat16 if changes == "checkpoint" else torch.float32
    error = run("janus", dtype=dtype, **{"lora": {"rank": 4}, **(changes if isinstance(changes, dict) else {})})
    assert "state.pt is not the state of this run" in error and named in error
    assert load_file(first)


def test_settings_that_change_no_result_may_change(run, tmp_path):
    pytest.importorskip("peft")
    run("janus", lora={"rank": 4})
    loop = {**LOOP, "log_every": 2, "workers": 0}
    assert run("janus", lora={"rank": 4}, loop=loop, gradient_checkpointing=True).endswith("lora.safetensors")


def test_a_base_says_how_it_was_trained(run, tmp_path):
    own = {"training": {"time_mean": -0.8, "repa": 0.5}}
    config = {"loop": LOOP, "stage": 3}
    assert trained_model.objective_settings(config, {}) == trained_model.OBJECTIVE
    expected = {"repa": 0.5, "time_mean": -0.8, "unconditional_smoothing": 0.0}
    assert trained_model.objective_settings(config, own) == expected
    assert trained_model.objective_settings({**config, "time_mean": 0.3}, own)["time_mean"] == 0.3
    assert trained_model.objective_settings({**config, "lora": {"rank": 4}}, own)["repa"] == 0
    with pytest.raises(TrainingError, match="config.json: training: repa"):
        trained_model.objective_settings(config, {"training": {"repa": "x"}})
    written = run("janusflow", time_mean=-0.5)
    assert json.loads((Path(written) / "config.json").read_text())["training"]["time_mean"] == -0.5


def test_a_lora_with_the_alignment_loss(run, tmp_path):
    pytest.importorskip("peft")
    written = run("janusflow", lora=LORA, repa=0.5)
    assert not any("repa" in name for name in load_file(written))
    log = (tmp_path / "out" / "run" / "log.jsonl").read_text()
    assert '"alignment"' in log and "repa_head.0.weight" in read_pickle(tmp_path / "out/run/state.pt")["weights"]


@pytest.mark.parametrize("weighting", ["examples", "tasks"])
def test_loss_weighting(weighting):
    objective, batch_at, *_ = tiny("janusflow")
    objective.loss_weighting = weighting
    losses = {
        name: torch.tensor(value) for name, value in zip(("understanding", "text", "generation"), (1.0, 2.0, 4.0))
    }
    losses["alignment"] = torch.tensor(8.0)
    objective.repa = 2.0
    total = objective.total(losses, batch_at(0))  # 6, 2 and 8 rows
    expected = 23 if weighting == "tasks" else (6 * 1 + 2 * 2 + 8 * (4 + 2 * 8)) / 16
    assert total.item() == pytest.approx(expected)


def test_nested_settings_on_the_command_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"task": "finetune", "loop": {"steps": 5}, "lora": None}))
    config = read_config(path, {"loop.lr": 0.1, "loop.steps": 7})
    assert config["loop"] == {"steps": 7, "lr": 0.1}
    with pytest.raises(TrainingError, match="no section 'lora'"):
        read_config(path, {"lora.rank": 4})
    known = read_config(
        path, {"lora.rank": 4, "validation.prompts": ["a"], "repa": 0.5}, ("lora", "validation", "repa")
    )
    assert known["lora"] == {"rank": 4} and known["validation"] == {"prompts": ["a"]} and known["repa"] == 0.5
    with pytest.raises(TrainingError, match="no section 'steps'"):
        read_config(path, {"loop.steps.x": 4})


def test_prior_images_questions_and_sub_folders(run, images, tmp_path):
    pytest.importorskip("peft")
    (images / "2_more").mkdir()
    (images / "0.png").rename(images / "2_more" / "0.png")
    (images / "0.txt").unlink()
    entry = {"image": "2_more/0.png", "question": "What is it?", "answer": "a circle"}
    (images / "metadata.jsonl").write_text(json.dumps(entry))
    prior = shutil.copytree(images, tmp_path / "prior")
    written = run("janus", lora=LORA, prior={"images": str(prior), "share": 0.5}, caption_dropout=0.3, caption_tokens=5)
    assert load_file(written)


def test_a_folder_inside_the_images_is_refused(run, images, tmp_path):
    """Its images would be trained on as well."""
    assert f"folder ({images / 'out'}) is in images, {images}" in run("janus", folder=str(images / "out"))
    assert not (images / "out").exists()
    prior = {"images": str(images / "prior")}
    assert f"prior.images ({images / 'prior'}) is in images, {images}" in run("janus", prior=prior)
    outside = {"folder": str(tmp_path.parent / "outside")}
    assert f"images ({images}) is in prior.images" in run("janus", prior={"images": str(tmp_path)}, **outside)
    prior = {"images": str(tmp_path / "prior")}
    assert "is in prior.images" in run("janus", prior=prior, folder=str(tmp_path / "prior" / "run"))


def test_a_folder_beside_the_images_is_not_in_them(run, images, monkeypatch):
    monkeypatch.chdir(images)
    assert "is in images" not in run("janus", images=".", folder="../elsewhere")
    assert "is in images" in run("janus", folder=f"../{images.name}/here")
