"""A LoRA trained by `python -m janus_core train` has the same effect in ComfyUI as in janus_core."""

import json

import pytest
import torch
from conftest import latent_of
from graphs import outputs_of, token_graph
from safetensors.torch import load_file

import janus_core
from demo.recipe import scenes
from demo.recipe.quality import AR
from janus_core.training import run

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def lora(server, tmp_path_factory):
    """The file of a LoRA trained for eight steps on a red circle with the caption "a blue circle"."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("lora")
    (folder / "images").mkdir()
    circle = scenes.SceneObject("circle", "red", "large", 64, 64)
    scenes.render(scenes.Scene((circle,), "white", place="in the centre")).save(folder / "images" / "1.png")
    (folder / "images" / "1.txt").write_text("a blue circle on a white background")
    config = {
        "task": "finetune",
        "checkpoint": str(AR),
        "images": str(folder / "images"),
        "folder": str(folder / "run"),
        "seed": 0,
        "rows": 2,
        "ratio": [0, 100],
        "lora": {"rank": 4, "targets": ["q_proj", "o_proj", "down_proj"]},
        "loop": {"steps": 8, "lr": 1e-2, "warmup": 1, "precision": "no", "ema": 0.0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    file = run(folder / "config.json")
    target = server.base / "models" / "loras" / "trained.safetensors"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(file.read_bytes())
    return file


def test_a_trained_lora_in_comfyui(server, lora):
    pipe = janus_core.load(AR, device="cpu", dtype=torch.float32)
    before = pipe.generate_latents(PROMPT, temperature=0.0)
    pipe = janus_core.load(AR, device="cpu", dtype=torch.float32)
    tensors = {name: tensor.float() for name, tensor in load_file(lora).items()}
    weights = dict(pipe.model.named_parameters())
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            delta = tensors[f"{layer}.lora_B.weight"] @ tensors[name] * tensors[f"{layer}.alpha"] / len(tensors[name])
            weights[layer.removeprefix("diffusion_model.") + ".weight"].data += delta
    expected = pipe.generate_latents(PROMPT, temperature=0.0)
    assert not torch.equal(before, expected)

    graph, sampler = token_graph(text=PROMPT, name="demo/janus-pro-demo", size=128, temperature=0.0)
    graph["1"]["inputs"]["weight_dtype"] = "fp32"
    inputs = graph[sampler]["inputs"]
    inputs["model"] = [
        graph.add("LoraLoaderModelOnly", model=inputs["model"], lora_name="trained.safetensors", strength_model=1.0), 0
    ]  # fmt: skip
    sampled = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert torch.allclose(sampled, expected, atol=1e-5)
