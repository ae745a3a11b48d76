"""Fuzz cases of fine-tuning: configs, folders of images and captions, and saved states."""

import io
import json
import os
import random
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from janus_core import training
from janus_core.checkpoint import quantized
from janus_core.checkpoint.write import save_tensors

from .case import NOT_NUMBERS, OK, REFUSED, Case, flip, pick
from .models import tiny, write_tiny

BAD_WHOLE = (*NOT_NUMBERS[:7], "nan", "inf", 0.5, -1, 10**30)
BAD_NUMBER = (*NOT_NUMBERS[:7], -1, 1e300)
BAD_TEXT = (5, True, [], {}, 0.5)
TOP = {
    "task": ("dance", None, 5, []),
    "checkpoint": (*BAD_TEXT, None, "", "nowhere", "~nosuchuser/x", "a\0b", "."),
    "images": (*BAD_TEXT, None, "", "nowhere", "/dev/null", "~nosuchuser/x", "config.json"),
    "folder": (*BAD_TEXT, "a\0b", "config.json", "/dev/null/x"),
    "seed": (*BAD_WHOLE, None),
    "stage": (*BAD_WHOLE, None, 0, 4, 9),
    "rows": (*BAD_WHOLE, None, 0, 1),
    "ratio": ("x", 5, [], [1], [1, 2, 3], ["a", 1], [-1, 2], [0, 0], [1e300, 1], [None, 1], {}),
    "lora": (
        "x",
        5,
        [1],
        {"rnak": 4},
        {"rank": 0},
        {"rank": 1.5},
        {"rank": "4"},
        {"rank": 10**9},
        {"targets": []},
        {"targets": ["x"]},
        {"targets": "q_proj"},
        {"targets": [5]},
        {"alpha": 0},
        {"alpha": "x"},
        {"alpha": True},
        {"base": "int4"},
    ),
    "loop": ("x", 5, [], {}, None, {"steps": None}),
    "cache": BAD_TEXT,
    "loss_weighting": ("rows", 5, True, [], ""),
    "caption_dropout": (*BAD_NUMBER, 2),
    "caption_tokens": (*BAD_WHOLE, 0),
    "prior": ("x", 5, [1], {"images": 5}, {"share": 0.5}, {"images": "x", "share": 2}, {"imges": "x"}),
    "repa": BAD_NUMBER,
    "time_mean": (*NOT_NUMBERS[:7], 1e300),
    "unconditional_smoothing": (*BAD_NUMBER, 1.5),
    "gradient_checkpointing": (1, "x", [], 0.5),
    "validation": ("x", 5, {"prompts": "x"}, {"questions": [5]}, {"questions": [{"image": "x"}]}, {"seed": -1}),
    "stgae": (3,),
}
LOOP = {
    "steps": (*BAD_WHOLE, 0),
    "lr": (*BAD_NUMBER, 0, 11),
    "warmup": BAD_WHOLE,
    "decay": (*BAD_NUMBER, 1.5),
    "betas": ("x", 5, [0.9], [0.9, 1], [-1, 0.9], ["a", 0.9], [0.9, 0.9, 0.9]),
    "weight_decay": BAD_NUMBER,
    "clip": (*BAD_NUMBER, 0),
    "ema": (*BAD_NUMBER, 1, 2),
    "accumulate": (*BAD_WHOLE, 0),
    "optimizer": ("sgd", 5, True, "", []),
    "step_in_backward": (1, "x", [], 0.5),
    "ema_warmup": (1, "x", [], 0.5),
    "ema_device": ("cuda", 5, True, "", []),
    "workers": (*BAD_WHOLE, 1000),
    "tensorboard": (1, "x", [], 0.5),
    "precision": ("fp8", 5, True, "", [], "fp32"),
    "log_every": (*BAD_WHOLE, 0),
    "save_every": (*BAD_WHOLE, 0),
    "sample_every": BAD_WHOLE,
    "setps": (5,),
    "seed": (5,),
}


@cache
def base(folder: Path) -> Path:
    return write_tiny("janus", folder / "train-base")


def config_of(work: Path) -> dict:
    images = work / "images"
    images.mkdir(parents=True)
    for k in range(2):
        Image.new("RGB", (20, 16), (90 * k, 50, 50)).save(images / f"{k}.png")
        (images / f"{k}.txt").write_text(f"caption {k}")
    loop = {"steps": 1, "lr": 1e-3, "warmup": 1, "precision": "no", "log_every": 1, "save_every": 1}
    common = {"checkpoint": str(base(work.parent)), "images": str(images), "folder": str(work / "out")}
    return {"task": "finetune", **common, "seed": 0, "stage": 1, "rows": 2, "ratio": [1, 1], "loop": loop}


def run(path: Path, changes: dict | None = None):
    with redirect_stdout(io.StringIO()):
        out = training.run(path, changes=changes)
    assert out.exists()


def make(rng: random.Random, work: Path) -> Case:
    config = config_of(work)
    os.chdir(work)
    path = work / "config.json"
    kind = pick(rng, (setting, setting, setting, loop_setting, loop_setting, loop_setting, data, state, text, weights))
    label, expected = kind(config, work, rng)
    if not os.path.lexists(path):
        path.write_text(json.dumps(config), encoding="utf-8")
    return Case(f"{kind.__name__}: {label}", lambda: run(path), expected)


def setting(config, work, rng):
    name = pick(rng, sorted(TOP))
    if rng.random() < 0.15 and name in ("checkpoint", "images", "folder", "seed", "stage", "rows", "loop", "task"):
        del config[name]
        return f"no {name}", (REFUSED,)
    config[name] = pick(rng, TOP[name])
    fine = name == "lora" and not config[name]
    return f"{name} is {str(config[name])[:40] if config[name] != 10**5000 else 'huge'}", (OK,) if fine else (REFUSED,)


def loop_setting(config, work, rng):
    name = pick(rng, sorted(LOOP))
    config["loop"][name] = pick(rng, LOOP[name])
    return f"{name} is {str(config['loop'][name])[:40]}", (REFUSED,)


def data(config, work, rng):
    """Images and captions that cannot be used."""
    images = Path(config["images"])
    action = pick(rng, ("utf16", "missing", "empty", "shared", "damaged", "fifo", "none", "folder", "link"))
    caption = images / "1.txt"
    if action == "utf16":
        caption.write_bytes("caption".encode("utf-16"))
    elif action == "missing":
        caption.unlink()
    elif action == "empty":
        caption.write_text(" \n")
    elif action == "shared":
        Image.new("RGB", (8, 8)).save(images / "1.jpg")
    elif action == "damaged":
        (images / "1.png").write_bytes(flip(rng, (images / "1.png").read_bytes(), 0, 8, most=8)[:20])
    elif action == "none":
        for file in images.iterdir():
            file.unlink()
    else:
        file = pick(rng, (caption, images / "1.png"))
        file.unlink()
        if action == "fifo":
            os.mkfifo(file)
        elif action == "folder":
            file.mkdir()
        else:
            file.symlink_to(work / "nowhere")
    return action, (REFUSED,)


def state(config, work, rng):
    """A saved state that is damaged, of another run, or no state at all."""
    folder = work / "out" / "run"
    folder.mkdir(parents=True)
    value = pick(
        rng,
        (
            {},
            [],
            None,
            5,
            {"step": 1},
            {"step": -1, "log": [], "ema": {}, "weights": {}, "optimizer": {}},
            {"step": "1", "log": [], "ema": {}, "weights": {}, "optimizer": {}},
            {"step": 1, "log": [], "ema": {"a": torch.zeros(3)}, "weights": {}, "optimizer": {}},
        ),
    )
    file = folder / "state.pt"
    torch.save(value, file)
    action = pick(rng, ("value", "value", "cut", "flip", "html", "folder"))
    if action == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif action == "flip":
        file.write_bytes(flip(rng, file.read_bytes()))
    elif action == "html":
        file.write_bytes(b"<html>")
    elif action == "folder":
        file.unlink()
        file.mkdir()
    return f"{action} {str(value)[:40]}", (REFUSED,)


def text(config, work, rng):
    """A config that is not the text it should be."""
    path, good = work / "config.json", json.dumps(config)
    action = pick(rng, ("missing", "cut", "deep", "list", "utf16", "nan", "empty"))
    if action == "missing":
        path.symlink_to(work / "nowhere")
    elif action == "nan":
        path.write_text(good.replace('"lr": 0.001', f'"lr": {pick(rng, ("NaN", "Infinity", "1e999", "-Infinity"))}'))
    elif action == "utf16":
        path.write_text(good, encoding="utf-16")
    else:
        texts = {"cut": good[: rng.randrange(len(good))], "deep": '{"a": ' + "[" * 100000, "list": "[1]", "empty": ""}
        path.write_text(texts[action])
    return action, (REFUSED,)


def weights(config, work, rng):
    """Weights that cannot be trained: 8 bits, or not finite."""
    folder = write_tiny("janus", work / "base")
    checkpoint = tiny("janus")
    config["checkpoint"] = str(folder)
    if rng.random() < 0.4:
        tensors = {name: tensor.clone() for name, tensor in quantized(checkpoint, "int8").tensors.items()}
        save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
        return "8 bits", (REFUSED,)
    name = pick(rng, ("aligner.layers.0.weight", "gen_head.vision_head.bias", "language_model.model.norm.weight"))
    tensors = {n: t.clone() for n, t in checkpoint.tensors.items()}
    tensors[name].view(-1)[0] = pick(rng, (float("nan"), float("inf")))
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    config["loop"]["steps"] = pick(rng, (1, 3))
    return f"not finite: {name}", (REFUSED,)
