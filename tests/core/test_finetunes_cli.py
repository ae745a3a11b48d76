"""edit, generate --think and --reflect on the command line."""

import json

import pytest
import torch
from PIL import Image

import janus_core
from janus_core.cli import main
from janus_core.image import open_image

PROMPT = "a white night above a lazy sky"


@pytest.fixture(scope="module")
def ar(golden):
    folder = golden("ar-a").folder
    pipe = janus_core.load(folder, device="cpu", dtype=torch.float32)
    pipe.arguments = ["--model", str(folder), "--device", "cpu", "--dtype", "fp32", "--seed", "5"]
    return pipe


def parameters(path) -> dict:
    return json.loads(Image.open(path).text["parameters"])


def test_edit(ar, golden, tmp_path):
    source, out = golden("ar-a").folder / "picture.png", tmp_path / "sub" / "x.png"
    options = ["--image-guidance", "3", "--cfg", "4", "--temperature", "0.7", "--negative", "a dog", "--count", "2"]
    assert main(["edit", str(source), "make it red", *ar.arguments, *options, "--out", str(out)]) == 0
    settings = dict(image_guidance=3.0, guidance=4.0, temperature=0.7, negative_prompt="a dog", num_images=2, seed=5)
    images = ar.edit(open_image(source), "make it red", **settings)
    for k, image in enumerate(images):
        assert Image.open(tmp_path / "sub" / f"x_00{k}.png").tobytes() == image.tobytes()
    assert parameters(tmp_path / "sub" / "x_001.png")["image_guidance"] == 3.0


def test_think(ar, tmp_path, capsys):
    options = ["--think", "t2i-r1", "--text-temperature", "0.8", "--max-new-tokens", "6", "--count", "2"]
    assert main(["generate", PROMPT, *ar.arguments, *options, "--out", str(tmp_path / "x.png")]) == 0
    thoughts = ar.think(PROMPT, "t2i-r1", num_thoughts=2, temperature=0.8, max_new_tokens=6, seed=5)
    images = ar([thought.prompt for thought in thoughts], seed=5)
    for k, (thought, image) in enumerate(zip(thoughts, images)):
        path = tmp_path / f"x_00{k}.png"
        assert Image.open(path).tobytes() == image.tobytes() and parameters(path)["thought"] == thought.thought


def test_reflect(ar, tmp_path, monkeypatch):
    """Every image is saved with its verdict and reason; the rounds end with the first match."""
    reflect = type(ar).reflect
    for rounds, matching, expected in ((2, None, 3), (2, 1, 2), (0, None, 1)):
        folder = tmp_path / f"{rounds}{matching}"
        seen = []

        def decided(self, *args, seen=seen, matching=matching, **kwargs):
            seen.append(args[0])
            return reflect(self, *args, **kwargs)._replace(matches=len(seen) - 1 == matching)

        monkeypatch.setattr(type(ar), "reflect", decided)
        options = ["--reflect", str(rounds), "--max-new-tokens", "4", "--out", str(folder / "x.png")]
        assert main(["generate", PROMPT, *ar.arguments, *options, "--text-temperature", "0"]) == 0
        saved = sorted(folder.glob("*.png"))
        assert [path.name for path in saved] == [f"x_00{k}.png" for k in range(expected)]
        for k, path in enumerate(saved):
            assert Image.open(path).tobytes() == seen[k].tobytes()
            verdict, reason = path.with_suffix(".txt").read_text(encoding="utf-8").split("\n", 1)
            assert (
                verdict == ("Yes" if k == matching else "No") == {True: "Yes", False: "No"}[parameters(path)["matches"]]
            )
            assert reason == parameters(path)["reason"] + "\n"
    assert len({path.read_bytes() for path in (tmp_path / "2None").glob("*.png")}) == 3
    first = Image.open(tmp_path / "2None" / "x_000.png")
    prompt = reflect(ar, first, PROMPT, temperature=0, max_new_tokens=4, seed=5).prompt
    second = Image.open(tmp_path / "2None" / "x_001.png")
    difference = torch.tensor(list(ar(prompt, seed=5)[0].tobytes())) - torch.tensor(list(second.tobytes()))
    assert difference.abs().max() <= 1, "the same image, but for rounding"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["edit", "nowhere.png", "a", "--model", "{ar}"], "nowhere.png"),
        (["edit", "{ar}/picture.png", "a", "--model", "{flow}"], "edit is not for JanusFlow"),
        (["edit", "{ar}/picture.png", "a", "--model", "{ar}", "--image-guidance", "-1"], "image_guidance"),
        (["generate", "a", "--model", "{flow}", "--think", "got-r1"], "--think is not for JanusFlow"),
        (["generate", "a", "--model", "{flow}", "--reflect", "1"], "--reflect is not for JanusFlow"),
        (["generate", "a", "--model", "{ar}", "--reflect", "1", "--count", "2"], "one image"),
        (["generate", "a", "--model", "{ar}", "--reflect", "-1"], "0 or more"),
        (["generate", "a", "--model", "{ar}", "--text-temperature", "1"], "--text-temperature is of the text"),
        (["generate", "a", "--model", "{ar}", "--max-new-tokens", "9"], "--max-new-tokens is of the text"),
        (["generate", "a", "--model", "{ar}", "--think", "got-r1", "--system-prompt", "b"], "has its own"),
    ],
)
def test_mistakes_are_one_line_and_status_1(golden, capsys, arguments, words):
    paths = {"ar": golden("ar-a").folder, "flow": golden("flow-a").folder}
    assert main([a.format(**paths) for a in arguments]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and words in error[0]
