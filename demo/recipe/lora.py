"""python -m demo.recipe.lora: trains the demo LoRA, which turns every background of the demo AR model black."""

import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from janus_core.training import run

from .captions import plain_caption
from .scenes import random_scene, render

DEMO = Path(__file__).resolve().parents[1]
OUT = DEMO / "loras" / "janus-pro-demo-night.safetensors"
IMAGES = 96
STRENGTH = 0.4  # of the trained update in the file: guidance amplifies it, and at 1 it also changes the objects
CONFIG = {
    "task": "finetune",
    "checkpoint": str(DEMO / "janus-pro-demo"),
    "seed": 0,
    "rows": 8,
    "ratio": [0, 100],
    "lora": {"rank": 2, "targets": ["q_proj", "v_proj", "o_proj"]},
    "loop": {"steps": 200, "lr": 5e-3, "warmup": 10, "decay": 0.3, "precision": "no", "ema": 0.0},
}


def write_images(folder: Path):
    """Scenes on black with captions that name another background."""
    rng, count = random.Random(0), 0
    while count < IMAGES:
        scene = random_scene(rng)
        if "black" in (scene.background, *(o.colour for o in scene.objects)):
            continue
        render(replace(scene, background="black")).save(folder / f"{count:03}.png")
        (folder / f"{count:03}.txt").write_text(plain_caption(scene), encoding="utf-8")
        count += 1


def train(out: Path = OUT):
    """Trains and writes the LoRA. Needs accelerate and peft; half a minute on one core."""
    with tempfile.TemporaryDirectory() as base:
        images, config = Path(base) / "images", Path(base) / "config.json"
        images.mkdir()
        write_images(images)
        config.write_text(json.dumps({**CONFIG, "images": str(images), "folder": str(Path(base) / "run")}))
        file = run(config)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = {k: v * STRENGTH if k.endswith(".alpha") else v for k, v in load_file(file).items()}
    out.parent.mkdir(exist_ok=True)
    save_file(tensors, out, metadata)


if __name__ == "__main__":
    train()
