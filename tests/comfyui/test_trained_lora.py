"""A LoRA trained by `python -m janus_core train` has the same effect in ComfyUI, janus_core and peft."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import latent_of
from graphs import outputs_of, token_graph

import janus_core
from demo.recipe import scenes
from demo.recipe.quality import AR
from janus_core.checkpoint import read_checkpoint, save_single_file
from janus_core.cli import main
from janus_core.training import run

peft = pytest.importorskip("peft")
PROMPT = "a red circle on a blue background"
STRENGTH = 0.75


@pytest.fixture(scope="module")
def lora(server, tmp_path_factory):
    """The file of a LoRA trained for eight steps on a red circle with the caption "a blue circle"."""
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


@pytest.fixture(scope="module")
def base(server):
    """The demo checkpoint in float32, so that merging rounds nothing; ComfyUI lists it."""
    checkpoint = read_checkpoint(AR)
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    file = server.base / "models" / "janus" / "demo-fp32.safetensors"
    save_single_file(replace(checkpoint, tensors=tensors), file)
    return file


def through_comfyui(server, checkpoint, lora=False):
    """Latents of PROMPT, sampled in ComfyUI with a checkpoint in its folder and perhaps the LoRA."""
    graph, sampler = token_graph(text=PROMPT, name=checkpoint.name, size=128, temperature=0.0)
    if lora:
        inputs = graph[sampler]["inputs"]
        settings = {"lora_name": "trained.safetensors", "strength_model": STRENGTH}
        inputs["model"] = [graph.add("LoraLoaderModelOnly", model=inputs["model"], **settings), 0]
    return latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])


def test_a_trained_lora_is_the_same_everywhere(server, base, lora):
    """In ComfyUI, in janus_core from either layout, in a checkpoint that it was merged into, and in peft."""

    def latents(checkpoint=base, **settings):
        return janus_core.load(checkpoint, device="cpu", **settings).generate_latents(PROMPT, temperature=0.0)

    expected = through_comfyui(server, base, lora=True)
    assert not torch.allclose(through_comfyui(server, base), expected, atol=1e-5)
    merged = server.base / "models" / "janus" / "demo-merged.safetensors"
    assert main(["convert", str(base), str(merged), "--lora", f"{lora}:{STRENGTH}"]) == 0
    assert torch.allclose(through_comfyui(server, merged), expected, atol=1e-5)
    assert torch.allclose(latents(merged), expected, atol=1e-5)
    for path in (lora, lora.parent / "peft"):
        assert torch.allclose(latents(loras=[(path, STRENGTH)]), expected, atol=1e-5)
    assert torch.equal(latents(loras=[(lora, 0.0)]), latents())

    pipe = janus_core.load(base, device="cpu")
    mapping = {r"^model\.language_model\.": "language_model.model."}
    tuned = peft.PeftModel.from_pretrained(pipe.model, str(lora.parent / "peft"), key_mapping=mapping)
    for module in tuned.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(STRENGTH)
    pipe.model = tuned.get_base_model()
    assert torch.allclose(pipe.generate_latents(PROMPT, temperature=0.0), expected, atol=1e-5)
