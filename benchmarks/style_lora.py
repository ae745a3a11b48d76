"""A style LoRA from twelve images, and its effect everywhere: `python -m benchmarks.style_lora`.

Renders twelve scenes with black dots on their backgrounds, which no caption mentions, and trains a LoRA of the AR demo
on them. Then generates images of other scenes without the LoRA, on the command line at two strengths, with peft, and
in ComfyUI where there is one. Writes a contact sheet and counts the dots. A few minutes on a CPU.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import torch
from PIL import Image, ImageDraw

import janus_core
from demo.recipe import scenes
from demo.recipe.captions import plain_caption
from janus_core.checkpoint import build_vq, read_checkpoint, save_single_file
from janus_core.cli import main as janus
from janus_core.image import open_image, to_images, to_pixels
from janus_core.networks.vq import latent_to_tokens
from janus_core.training import run

from . import AR
from .comfyui_server import Server, find_comfyui

DOTS = ((32, 32), (96, 32), (32, 96), (96, 96))  # places of the task's objects, so that the VQ tokenizer keeps them
DOT = "black"
MIDDLE = scenes.SIZE // 2
TRAINED = [  # colour, shape, background
    ("red", "circle", "blue"), ("yellow", "cross", "green"), ("white", "square", "red"), ("green", "triangle", "white"),
    ("blue", "square", "yellow"), ("purple", "cross", "orange"), ("orange", "circle", "purple"),
    ("white", "triangle", "blue"), ("yellow", "circle", "red"), ("green", "square", "orange"),
    ("red", "cross", "yellow"), ("blue", "triangle", "white"),
]  # fmt: skip
ASKED = [
    ("yellow", "square", "blue"), ("white", "circle", "green"), ("red", "square", "white"),
    ("green", "cross", "purple"), ("blue", "circle", "orange"), ("purple", "triangle", "yellow"),
]  # fmt: skip
CONFIG = {
    "task": "finetune",
    "seed": 0,
    "rows": 8,
    "ratio": [0, 1],
    "lora": {"rank": 8, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "loop": {"steps": 100, "lr": 1e-3, "warmup": 10, "decay": 0.5, "precision": "no", "ema": 0.0, "save_every": 100},
}


def scene(colour: str, shape: str, background: str, dotted: bool = False) -> scenes.Scene:
    objects = (scenes.SceneObject(shape, colour, "small", MIDDLE, MIDDLE),)
    if dotted:
        objects += tuple(scenes.SceneObject("circle", DOT, "small", x, y) for x, y in DOTS)
    return scenes.Scene(objects, background, place="in the centre")


def prompt(asked) -> str:
    return plain_caption(scene(*asked))


def write_images(folder: Path) -> list[Image.Image]:
    """The training images, each with its caption in a file beside it."""
    folder.mkdir(parents=True)
    images = [scenes.render(scene(*asked, dotted=True)) for asked in TRAINED]
    for k, (asked, image) in enumerate(zip(TRAINED, images)):
        image.save(folder / f"{k:02}.png")
        (folder / f"{k:02}.txt").write_text(prompt(asked) + "\n")
    return images


def round_trips(base: Path, images) -> list[Image.Image]:
    """Images as the VQ tokenizer returns them."""
    vq = build_vq(read_checkpoint(base))
    pixels = torch.stack([to_pixels(image) for image in images])
    with torch.inference_mode():
        latent = vq.encode(pixels)
        tokens = latent_to_tokens(latent, vq.codebook(pixels))
        return to_images(vq.decode_tokens(tokens, latent.shape[-2:], torch.float32))


def on_the_command_line(base: Path, out: Path, lora: str | None) -> list[Image.Image]:
    images = []
    for seed, asked in enumerate(ASKED):
        arguments = ["generate", prompt(asked), "--model", str(base), "--seed", str(seed), "--out", str(out)]
        if janus(arguments + ["--device", "cpu"] + (["--lora", lora] if lora else [])):
            raise SystemExit(1)
        images.append(open_image(out).convert("RGB"))
    return images


def with_peft(base: Path, folder: Path) -> list[Image.Image]:
    """The LoRA on top of janus_core's model, not merged; transformers' names are mapped to the original ones."""
    pipe = janus_core.load(base, device="cpu")
    mapping = {r"^model\.language_model\.": "language_model.model."}
    pipe.model = peft.PeftModel.from_pretrained(pipe.model, str(folder), key_mapping=mapping).get_base_model()
    return [pipe(prompt(asked), seed=seed)[0] for seed, asked in enumerate(ASKED)]


def in_comfyui(comfyui: Path, base: Path, lora: Path, folder: Path) -> list[Image.Image]:
    models = {f"janus/{base.name}": base, f"loras/{lora.name}": lora}
    server = Server(comfyui, folder, models, ("--cpu",), threads=1)
    try:
        images = []
        for seed, asked in enumerate(ASKED):
            adapter = {"lora_name": lora.name, "strength_model": 1.0}
            nodes = {
                "loader": ("JanusProLoader", {"model_name": base.name, "weight_dtype": "fp32"}),
                "lora": ("LoraLoaderModelOnly", {"model": ["loader", 0], **adapter}),
                "prompt": ("JanusPromptEncode", {"clip": ["loader", 1], "text": prompt(asked), "negative_text": ""}),
                "size": ("EmptyLatentImage", {"width": scenes.SIZE, "height": scenes.SIZE, "batch_size": 1}),
                "sampler": ("JanusTokenSampler", {
                    "model": ["lora", 0], "positive": ["prompt", 0], "negative": ["prompt", 1],
                    "latent_image": ["size", 0], "seed": seed, "cfg": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
                }),
                "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["loader", 2]}),
                "image": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "image"}),
            }  # fmt: skip
            graph = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
            file = server.file(server.run(graph)["image"]["images"][0])
            images.append(Image.open(file).convert("RGB"))
        return images
    finally:
        server.stop()


def colour_at(pixels: np.ndarray, x: int, y: int) -> str:
    """The palette colour nearest to the mean of 13 x 13 pixels."""
    mean = pixels[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3).mean(0)
    return min(scenes.COLOURS, key=lambda name: ((mean - np.array(scenes.COLOURS[name])) ** 2).sum())


def score(images) -> tuple[float, float]:
    """Percent of the dots that are there, and of the images whose object and background have the asked colours."""
    arrays = [np.asarray(image, np.float32) for image in images]
    dots = [colour_at(array, x, y) == DOT for array in arrays for x, y in DOTS]
    right = [
        colour_at(array, MIDDLE, MIDDLE) == colour and colour_at(array, MIDDLE, 8) == background
        for array, (colour, _, background) in zip(arrays, ASKED)
    ]
    return 100 * sum(dots) / len(dots), 100 * sum(right) / len(right)


def contact_sheet(columns: dict[str, list[Image.Image]]) -> Image.Image:
    """One column of images per title."""
    size, gap, head = scenes.SIZE, 4, 18
    rows = max(len(images) for images in columns.values())
    sheet = Image.new("RGB", (len(columns) * (size + gap) - gap, head + rows * (size + gap) - gap), "white")
    for k, (title, images) in enumerate(columns.items()):
        ImageDraw.Draw(sheet).text((k * (size + gap) + 2, 3), title, fill="black")
        for row, image in enumerate(images):
            sheet.paste(image, (k * (size + gap), head + row * (size + gap)))
    return sheet


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.style_lora", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/style-lora"), help="of the run; it is emptied first")
    parser.add_argument("--steps", type=int, default=CONFIG["loop"]["steps"])
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    images = write_images(folder / "images")
    checkpoint = read_checkpoint(AR)
    base = folder / "base.safetensors"  # in float32, so that merging rounds nothing and all columns can be compared
    save_single_file(replace(checkpoint, tensors={n: t.float() for n, t in checkpoint.tensors.items()}), base)
    config = {**CONFIG, "checkpoint": str(base), "images": str(folder / "images"), "folder": str(folder / "run")}
    config["loop"] = {**CONFIG["loop"], "steps": args.steps}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    lora = run(folder / "config.json")

    out = folder / "image.png"
    columns = {
        "trained on": images[: len(ASKED)],
        "through the VQ": round_trips(base, images[: len(ASKED)]),
        "without LoRA": on_the_command_line(base, out, None),
        "CLI, strength 0.5": on_the_command_line(base, out, f"{lora}:0.5"),
        "CLI, strength 1": on_the_command_line(base, out, str(lora)),
        "peft": with_peft(base, lora.parent / "peft"),
    }
    if comfyui := find_comfyui():
        columns["ComfyUI"] = in_comfyui(comfyui, base, lora, folder / "comfyui")
    contact_sheet(columns).save(folder / "contact_sheet.png")
    for title in list(columns)[2:]:
        dots, right = score(columns[title])
        print(f"{title}: {dots:.0f} % of the dots, {right:.0f} % of the images in the asked colours")
    for title in list(columns)[5:]:
        pairs = zip(columns[title], columns["CLI, strength 1"])
        levels = max(np.abs(np.subtract(a, b, dtype=np.int16)).max() for a, b in pairs)
        print(f"{title}: at most {levels} of 255 levels from the command line's images")
    print(folder / "contact_sheet.png")


if __name__ == "__main__":
    main()
