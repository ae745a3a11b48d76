"""python -m janus_core, as a person runs it."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sdxl_layout import write_sdxl_vae

import janus_core
from janus_core.cli import main, parser
from janus_core.cli_options import Progress
from janus_core.image import open_image

ROOT = Path(__file__).resolve().parents[2]


def test_generate_saves_images_with_their_settings(golden, tmp_path, capsys):
    out = tmp_path / "sub" / "x.png"
    arguments = ["a cat", "--model", str(golden("ar-a").folder), "--out", str(out), "--seed", "7", "--dtype", "fp32"]
    assert main(["generate", *arguments, "--count", "2"]) == 0
    first, second = Image.open(tmp_path / "sub" / "x_000.png"), Image.open(tmp_path / "sub" / "x_001.png")
    assert first.size == (96, 96) and first.tobytes() != second.tobytes()
    settings = json.loads(first.text["parameters"])
    assert settings["prompt"] == "a cat" and settings["seed"] == 7 and settings["index"] == 0
    assert main(["generate", *arguments]) == 0
    assert Image.open(out).tobytes() == first.tobytes()


def test_generate_with_flow(golden, tmp_path):
    write_sdxl_vae(tmp_path / "vae.safetensors")
    common = ["a cat", "--model", str(golden("flow-a").folder), "--vae", str(tmp_path / "vae.safetensors")]
    out = tmp_path / "x.png"
    assert main(["generate", *common, "--out", str(out), "--steps", "2", "--size", "64x96"]) == 0
    assert Image.open(out).size == (64, 96)


def test_generate_passes_every_setting_on(golden, tmp_path):
    """The command line's images are the API's, for settings of both families."""
    write_sdxl_vae(tmp_path / "vae.safetensors")
    start, out = tmp_path / "start.png", tmp_path / "x.png"
    Image.effect_noise((96, 96), 90).save(start)
    folder = golden("flow-a").folder
    flow = janus_core.load(folder, device="cpu", dtype=torch.float32, vae=tmp_path / "vae.safetensors")
    latents = flow.encode(open_image(start))
    settings = dict(negative_prompt="a dog", seed=5, guidance=3.0, steps=3, denoise=0.4, guidance_interval=(0.7, 1.0))
    arguments = [
        "--negative",
        "a dog",
        "--seed",
        "5",
        "--cfg",
        "3",
        "--steps",
        "3",
        "--denoise",
        "0.4",
        "--cfg-start",
        "0.7",
        "--device",
        "cpu",
    ]
    arguments += ["--model", str(folder), "--vae", str(tmp_path / "vae.safetensors"), "--image", str(start)]
    assert main(["generate", "a cat", *arguments, "--dtype", "fp32", "--out", str(out)]) == 0
    assert Image.open(out).tobytes() == flow("a cat", latents=latents, **settings)[0].tobytes()

    folder = golden("ar-a").folder
    ar = janus_core.load(folder, device="cpu", dtype=torch.float32)
    settings = dict(negative_prompt="a dog", seed=5, guidance=3.0, temperature=0.7, top_k=9, top_p=0.8, size=(64, 96))
    settings |= dict(guidance_interval=(0.0, 0.5), window=4, system_prompt="Be bold.")
    arguments = ["--negative", "a dog", "--seed", "5", "--cfg", "3", "--temperature", "0.7", "--top-k", "9"]
    arguments += ["--cfg-end", "0.5", "--window", "4", "--system-prompt", "Be bold."]
    arguments += ["--top-p", "0.8", "--size", "64x96", "--model", str(folder), "--device", "cpu", "--dtype", "fp32"]
    assert main(["generate", "a cat", *arguments, "--out", str(out)]) == 0
    assert Image.open(out).tobytes() == ar("a cat", **settings)[0].tobytes()


def test_describe(golden, capsys):
    golden = golden("ar-a")
    arguments = ["--model", str(golden.folder), "--dtype", "fp32", "--max-new-tokens", "12"]
    image = str(golden.folder / "picture.png")
    assert main(["describe", image, golden.text["und.question"], *arguments]) == 0
    assert capsys.readouterr().out.strip() == golden.text["und.answer"].strip()
    assert main(["describe", image, image, "What?", *arguments]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(image)]) == 2


def test_describe_passes_every_setting_on(golden, capsys):
    golden = golden("ar-a")
    image, question = golden.folder / "picture.png", golden.text["und.question"]
    pipe = janus_core.load(golden.folder, device="cpu", dtype=torch.float32)
    settings = dict(
        max_new_tokens=9, temperature=0.9, top_k=7, top_p=0.8, seed=3, roles="User", system_prompt="Be bold."
    )
    expected = pipe.describe(open_image(image), question, **settings)[0]
    arguments = ["--max-new-tokens", "9", "--temperature", "0.9", "--top-k", "7", "--top-p", "0.8", "--seed", "3"]
    arguments += ["--roles", "User", "--system-prompt", "Be bold.", "--model", str(golden.folder), "--device", "cpu"]
    assert main(["describe", str(image), question, *arguments, "--dtype", "fp32"]) == 0
    assert capsys.readouterr().out.strip() == expected.strip()


def test_a_progress_bar_ends_at_100_percent():
    """Also of an answer that ends before its limit, but not where the run fails."""
    with Progress("token") as progress:
        progress(12, 512)
    assert progress.bar.n == progress.bar.total == 12
    with pytest.raises(ValueError), Progress("token") as progress:
        progress(12, 512)
        raise ValueError
    assert progress.bar.total == 512


def commands(top=None, prefix="") -> dict:
    """The parsers of all commands, those of `batch` among them, by what is typed."""
    (subparsers,) = [one for one in (top or parser())._actions if isinstance(one, argparse._SubParsersAction)]
    found = {}
    for name, command in subparsers.choices.items():
        nested = any(isinstance(one, argparse._SubParsersAction) for one in command._actions)
        found |= commands(command, f"{prefix}{name} ") if nested else {prefix + name: command}
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_its_arguments_and_has_examples(name):
    command = commands()[name]
    assert all(action.help for action in command._actions), [a.dest for a in command._actions if not a.help]
    lines = command.epilog.replace("\\\n", "").splitlines()
    assert lines[0] == "examples:" and len(lines) > 1
    for line in lines[1:]:
        words = shlex.split(line)
        assert " ".join(words[:3]) == "python -m janus_core" and f"{' '.join(words[3:])} ".startswith(f"{name} ")
        parser().parse_args(words[3:])


def test_convert_then_generate(golden, tmp_path):
    single = tmp_path / "one.safetensors"
    assert main(["convert", str(golden("ar-a").folder), str(single)]) == 0
    assert main(["generate", "a", "--model", str(single), "--out", str(tmp_path / "x.png")]) == 0


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["generate", "a", "--model", "nowhere"], "no checkpoint"),
        (["generate", "a", "--model", "{ar}", "--steps", "3"], "--steps"),
        (["generate", "a", "--model", "{flow}", "--top-k", "3"], "--top-k"),
        (["generate", "a", "--model", "{flow}"], "SDXL VAE"),
        (["generate", "a", "--model", "{ar}", "--cfg", "-1"], "guidance"),
        (["generate", "a", "--model", "{ar}", "--size", "30x30"], "multiple of 16"),
        (["describe", "nowhere.png", "?", "--model", "{ar}"], "no file nowhere.png"),
        (["convert", "{ar}", "x.bin"], ".safetensors"),
    ],
)
def test_mistakes_are_one_line_and_status_1(golden, capsys, arguments, words):
    paths = {"ar": golden("ar-a").folder, "flow": golden("flow-a").folder}
    assert main([a.format(**paths) for a in arguments]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and words in error[0]


def test_it_runs_as_a_module(tmp_path):
    result = subprocess.run([sys.executable, "-m", "janus_core", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip() == __import__("janus_core").__version__
