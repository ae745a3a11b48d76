"""What stock nodes and files do to a stranger: messages that say what to do first, and nothing ignored in silence."""

import os

import pytest
import torch
from conftest import latent_of, pixels_of
from graphs import Graph, flow_graph, outputs_of, token_graph
from safetensors.torch import save_file
from test_errors import sentence

from janus_core.checkpoint import read_checkpoint, save_single_file

CHECKS = [
    "models_janus_is_created",
    "hooks_are_refused",
    "every_setting_without_effect_is_named",
    "unet_switches_change_nothing",
    "every_searched_folder_is_named",
]


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(inside, check):
    inside("inside_messages.py", check)


def test_a_replaced_checkpoint_is_loaded_again(server, golden):
    """The loader's output is cached, and a file of the same name with other weights takes its place."""
    checkpoint = read_checkpoint(golden("ar-a").folder)
    file = server.base / "models" / "janus" / "replaced.safetensors"
    graph, _ = token_graph(text="a cat", name=file.name)

    def run():
        return latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])

    save_single_file(checkpoint, file)
    first = run()
    head = "gen_head.vision_head.weight"
    checkpoint.tensors[head] = checkpoint.tensors[head].flip(0)
    save_single_file(checkpoint, server.base / "other.safetensors")
    os.replace(server.base / "other.safetensors", file)
    assert not torch.equal(run(), first)


def test_answers_have_no_blanks_around_them(server, golden):
    """Stock nodes write them into caption files as they are."""
    golden = golden("ar-a")
    assert golden.text["und.answer"].startswith(" "), "the model's own first token begins with a space"
    server.copy_input(golden.folder / "picture.png", "blank.png")
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="fp32")
    image = graph.add("LoadImage", image="blank.png")
    question = golden.text["und.question"]
    answer = graph.add("JanusDescribeImage", clip=[loader, 1], image=[image, 0], question=question, max_new_tokens=12,
                       temperature=0.0, top_p=0.95, seed=0)  # fmt: skip
    stock = graph.add("TextGenerate", clip=[loader, 1], image=[image, 0], prompt=question, max_length=12,
                      sampling_mode="off")  # fmt: skip
    shown = [graph.add("PreviewAny", source=[node, 0]) for node in (answer, stock)]
    outputs = server.run(graph)
    assert [outputs[node]["text"] for node in shown] == [[golden.text["und.answer"].strip()]] * 2


@pytest.mark.parametrize("path", ["ConditioningSetProperties", "SetClipHooks"])
def test_a_hook_lora_on_the_token_sampler(server, path):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    key = "diffusion_model.language_model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(4, 96), f"{key}.lora_B.weight": torch.ones(96, 4)},
        folder / "hook.safetensors",
    )
    graph, sampler = token_graph(text="a cat")
    links = graph[sampler]["inputs"]
    hook = graph.add("CreateHookLora", lora_name="hook.safetensors", strength_model=1.0, strength_clip=1.0)
    if path == "SetClipHooks":
        clip = graph.add("SetClipHooks", clip=["1", 1], apply_to_conds=True, schedule_clip=False, hooks=[hook, 0])
        graph[links["positive"][0]]["inputs"]["clip"] = [clip, 0]
    else:
        links["positive"] = [graph.add(path, cond_NEW=links["positive"], strength=1.0, set_cond_area="default",
                                       hooks=[hook, 0]), 0]  # fmt: skip
    message = sentence(server, graph)
    assert "hook" in message and "Load LoRA" in message


MODEL_NODES = {  # that set something on the MODEL: their inputs
    "RescaleCFG": dict(multiplier=0.7),
    "APG": dict(eta=1.0, norm_threshold=0.5, momentum=0.0),
    "CFGOverride": dict(cfg=1.0, start_percent=0.0, end_percent=1.0),
    "PerturbedAttentionGuidance": dict(scale=3.0),
    "EasyCache": dict(reuse_threshold=0.2, start_percent=0.1, end_percent=0.9, verbose=False),
    "DifferentialDiffusion": {},
}


def test_one_warning_names_everything_that_has_no_effect(server):
    """And the tokens are those of the same graph without these nodes."""
    graph, sampler = token_graph(text="a cat", seed=31)
    node = outputs_of(graph, "SaveLatent")[0]
    before = server.log().count("no effect on it")
    plain = latent_of(server, server.run(graph), node)
    assert server.log().count("no effect on it") == before
    links = graph[sampler]["inputs"]
    for name, inputs in MODEL_NODES.items():
        links["model"] = [graph.add(name, model=links["model"], **inputs), 0]
    links["positive"] = [
        graph.add("ConditioningSetAreaStrength", conditioning=links["positive"], strength=0.5), 0
    ]  # fmt: skip
    ranged = dict(conditioning=links["negative"], start=0.0, end=0.5)
    links["negative"] = [graph.add("ConditioningSetTimestepRange", **ranged), 0]
    assert torch.equal(latent_of(server, server.run(graph), node), plain)
    warnings = [line for line in server.log().splitlines() if "no effect on it" in line]
    assert len(warnings) == before + 1
    named = ["RescaleCFG", "APG", "CFGOverride", "PerturbedAttentionGuidance", "easycache", "DifferentialDiffusion"]
    assert all(name in warnings[-1] for name in (*named, "strength", "start_percent", "end_percent")), warnings[-1]
    assert "janus" not in warnings[-1].partition("effect on it")[2]


def test_stock_nodes_that_count_in_cells_of_8_pixels(server):
    """Half the pixels give the size that is meant, as the help says; Upscale Latent By needs no conversion."""
    graph, sampler = token_graph(text="a cat", size=256)
    latent = [sampler, 0]
    crop = graph.add("LatentCrop", samples=latent, width=64, height=64, x=64, y=0)
    sized = graph.add("LatentUpscale", samples=latent, upscale_method="nearest-exact", width=256, height=256,
                      crop="disabled")  # fmt: skip
    by = graph.add("LatentUpscaleBy", samples=latent, upscale_method="nearest-exact", scale_by=1.5)
    pasted = graph.add("LatentComposite", samples_to=latent, samples_from=[crop, 0], x=0, y=64, feather=0)
    saved = {name: graph.add("SaveLatent", samples=[node, 0], filename_prefix=name)
             for name, node in dict(all=sampler, crop=crop, sized=sized, by=by, pasted=pasted).items()}  # fmt: skip
    outputs = server.run(graph)
    whole, crop, sized, by, pasted = (latent_of(server, outputs, node) for node in saved.values())
    assert torch.equal(crop, whole[..., :8, 8:]), "64 is 8 cells, which are 128 pixels"
    assert sized.shape[-2:] == (32, 32), "256 is 32 cells, which are 512 pixels"
    assert by.shape[-2:] == (24, 24)
    assert torch.equal(pasted[..., 8:, :8], whole[..., :8, 8:])


@pytest.mark.parametrize("build", [token_graph, lambda **kw: flow_graph(seed=1, steps=3, **kw)], ids=["janus", "flow"])
def test_a_file_of_clip_save_can_be_loaded(server, build):
    """It holds the whole checkpoint, since the CLIP is the model."""
    graph, _ = build(text="a cat")
    kind = graph["1"]["class_type"]
    before = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    graph.add("CLIPSave", clip=["1", 1], filename_prefix=f"saved/clip-{kind}")
    server.run(graph)
    (file,) = (server.base / "output" / "saved").glob(f"clip-{kind}*.safetensors")
    file.rename(server.base / "models" / "janus" / f"clip-{kind}.safetensors")
    loaded, _ = build(text="a cat", name=f"clip-{kind}.safetensors")
    outputs = server.run(loaded)
    assert torch.allclose(latent_of(server, outputs, outputs_of(loaded, "SaveLatent")[0]), before, atol=1e-5)
    for node in outputs_of(loaded, "SaveImage"):
        assert pixels_of(server, outputs, node).std() > 0


def test_vae_save_is_refused(server):
    graph, _ = token_graph(text="a cat")
    graph.add("VAESave", vae=["1", 2], filename_prefix="saved/vq")
    message = sentence(server, graph)
    assert "ModelSave" in message and "janus_core convert" in message
    assert not list((server.base / "output").rglob("vq*.safetensors"))
