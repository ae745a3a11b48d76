"""python -m janus_core, as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sdxl_layout import write_sdxl_vae

from janus_core.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_generate_saves_pictures_with_their_settings(golden, tmp_path, capsys):
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
    assert main(["generate", *common, "--out", str(out), "--steps", "2", "--image", str(out), "--denoise", "0.5"]) == 0


def test_describe(golden, capsys):
    golden = golden("ar-a")
    arguments = ["--model", str(golden.folder), "--dtype", "fp32", "--max-new-tokens", "12"]
    picture = str(golden.folder / "picture.png")
    assert main(["describe", picture, golden.text["und.question"], *arguments]) == 0
    assert capsys.readouterr().out.strip() == golden.text["und.answer"].strip()
    assert main(["describe", picture, picture, "What?", *arguments]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(picture)]) == 2


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
        (["generate", "a", "--model", "{ar}", "--cfg", "-1"], "cfg"),
        (["generate", "a", "--model", "{ar}", "--size", "30x30"], "multiple of 16"),
        (["describe", "nowhere.png", "?", "--model", "{ar}"], "no picture"),
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
