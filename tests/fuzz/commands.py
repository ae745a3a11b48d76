"""Fuzz cases of the command line: strange paths and values, and files that must survive a refusal."""

import io
import os
import random
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

from PIL import Image

from janus_core.cli import main
from janus_core.errors import JanusError

from .case import OK, REFUSED, Case, pick
from .models import write_tiny

MISSING = (
    "",
    "nowhere",
    "~nosuchuser/x",
    "/",
    ".",
    "..",
    "/dev/null",
    "/dev/zero",
    "x" * 300,
    "x" * 5000,
    "nowhere/x",
    "a\0b",
    "\udcff",
    "file/x",
    "fifo",
    "loop",
    "dangling",
    "file",
    "new\nline",
    "~",
    "empty",
)
OUTPUTS = (
    "/",
    ".",
    "..",
    "",
    "/dev/null",
    "/dev/full",
    "/proc/x.png",
    "file/x.png",
    "x" * 300 + ".png",
    "fifo",
    "a\0b",
    "~nosuchuser/x.png",
    "folder",
    "folder/",
    "\udcff.png",
    "loop/x.png",
    "/dev/null/x.png",
)
NAMES = ("\udcff.png",)  # strange, but a file can have it
NUMBERS = ("nan", "inf", "-1", "1e400", "x", "", "101", "1" * 300)


@cache
def base(folder: Path) -> Path:
    return write_tiny("janus", folder / "cli-base")


def command(arguments: list[str]):
    """Runs the command line; an error that it reports is raised again, as a JanusError of that line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as error:  # of argparse
            status = error.code
    lines = [line for line in err.getvalue().splitlines() if "error: " in line]
    if status and len(lines) == 1 and status in (1, 2):
        raise JanusError(lines[0].partition("error: ")[2] + ("." if status == 2 else ""))
    assert status == 0, (status, err.getvalue()[-500:])


def make(rng: random.Random, work: Path) -> Case:
    model = base(work.parent)
    work.mkdir(exist_ok=True)
    os.chdir(work)
    Path("file").write_text("x")
    Path("folder").mkdir()
    Path("empty").mkdir()
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("gone")
    Image.new("RGB", (9, 9), (5, 5, 5)).save("old.png")
    old = Path("old.png").read_bytes()
    files = {path.name for path in work.iterdir()}
    kind = pick(rng, (model_path, output, output, value, described, converted, downloaded, trained, edited, tuned))
    arguments, expected = kind(rng, str(model))

    def run():
        try:
            command(arguments)
        except JanusError:
            left = {path.name for path in work.iterdir()} - files
            assert Path("old.png").read_bytes() == old and not left, f"left behind: {left}"
            raise
        assert not list(work.rglob("*.tmp"))

    shown = " ".join(argument[:50] for argument in arguments)
    return Case(f"{kind.__name__}: {shown!a}", run, expected)


def model_path(rng, model):
    return ["generate", "a", "--model", pick(rng, MISSING), "--out", "old.png"], (REFUSED,)


def output(rng, model):
    out = pick(rng, OUTPUTS)
    return ["generate", "a", "--model", model, "--device", "cpu", "--out", out], (OK if out in NAMES else REFUSED,)


def value(rng, model):
    arguments = ["generate", "a", "--model", model, "--out", "old.png", "--device", "cpu"]
    name = pick(
        rng,
        (
            "--cfg",
            "--temperature",
            "--top-k",
            "--top-p",
            "--seed",
            "--count",
            "--size",
            "--steps",
            "--vae",
            "--device",
            "--dtype",
            "--weights",
            "--image",
            "--denoise",
        ),
    )
    return [*arguments, f"{name}={pick(rng, (*NUMBERS, '0x0', '16', 'ax16', '1x1', '160000x160000'))}"], (
        (REFUSED, OK) if name in ("--seed", "--top-k", "--temperature", "--top-p", "--cfg", "--count") else (REFUSED,)
    )


def described(rng, model):
    return ["describe", pick(rng, MISSING), "What?", "--model", model, "--max-new-tokens", "2"], (REFUSED,)


def converted(rng, model):
    if rng.random() < 0.4:
        return ["convert", pick(rng, MISSING), "new.safetensors"], (REFUSED,)
    if rng.random() < 0.5:
        return ["convert", model, pick(rng, OUTPUTS)], (REFUSED,)
    out = pick(rng, (".safetensors/", "folder/.safetensors", "file/x.safetensors", "/dev/null/x.safetensors", *NAMES))
    fine = out in NAMES or out.startswith("f") and "file" not in out
    return ["convert", model, out if "saf" in out else out + ".safetensors"], (REFUSED, OK) if fine else (REFUSED,)


def edited(rng, model):
    """An image that is none, a bad value, or an output that cannot be written."""
    arguments = {"image": "old.png", "--out": "new.png"}
    name = pick(rng, ("image", "--out", "--image-guidance", "--roles", "--cfg"))
    arguments[name] = pick(rng, {"image": MISSING, "--out": OUTPUTS[:-1]}.get(name, NUMBERS[:5]))
    if arguments["--out"] in NAMES:
        return edited(rng, model)
    image, *options = arguments.pop("image"), *(f"{name}={value}" for name, value in arguments.items())
    return ["edit", image, "red", "--model", model, "--device", "cpu", *options], (REFUSED,)


def tuned(rng, model):
    """Settings of fine-tuned models."""
    options = pick(
        rng,
        (
            ["--think", "x"],
            ["--think", "reasongen-r1", "--max-new-tokens", "5000"],
            ["--think", "t2i-r1", "--text-temperature", pick(rng, NUMBERS)],
            ["--reflect", pick(rng, ("-1", "x", "1.5", "1" * 300))],
            ["--reflect", "1", "--count", "2"],
            ["--reflect", "0", "--max-new-tokens", pick(rng, ("0", "-1", "4097"))],
            ["--think", "got-r1", "--steps", "5"],
        ),
    )
    return ["generate", "a", "--model", model, "--device", "cpu", "--out", "old.png", *options], (REFUSED,)


def downloaded(rng, model):
    return ["download", *pick(rng, ([], ["x"], ["janus-pro-1b", "--to", "file"], ["--vae", "--to", "a\0b"]))], (
        REFUSED,
    )


def trained(rng, model):
    path = pick(rng, MISSING)
    extra = pick(rng, ([], ["--set", "x"], ["--set", "a=" + "[" * 100000], ["--set", "rows=5"], ["--folder", "a\0b"]))
    return ["train", "--config", path, *extra], (REFUSED,)
