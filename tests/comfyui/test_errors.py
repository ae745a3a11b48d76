"""Wrong connections and bad input end in one clear sentence, and the server keeps running."""

import json

import pytest
from converted import make_converted
from graphs import Graph, flow_graph, token_graph

from benchmarks import ROOT
from benchmarks.comfyui_server import Failed, python_of


def sentence(server, graph) -> str:
    with pytest.raises(Failed) as failure:
        server.run(graph)
    message = failure.value.message
    assert "\n" not in message and "Traceback" not in message, message
    return message


def cross(graph, sampler, loader_class, name, output, field):
    """Feeds a sampler's input from the other family's loader."""
    loader = graph.add(loader_class, model_name=name, weight_dtype="default")
    graph[sampler]["inputs"][field] = [loader, output]
    return graph


def test_janus_pro_model_in_a_diffusion_sampler(server):
    for kind in ("KSampler", "JanusFlowSampler"):
        graph, sampler = flow_graph(kind, text="a", seed=0)
        assert "Janus Token Sampler" in sentence(server, cross(graph, sampler, "JanusProLoader", "ar-a", 0, "model"))


def test_flow_model_in_the_token_sampler(server):
    graph, sampler = token_graph(text="a")
    message = sentence(server, cross(graph, sampler, "JanusFlowLoader", "flow-a", 0, "model"))
    assert "JanusFlow Sampler" in message and "Load Janus-Pro" in message


def test_conditioning_of_the_other_family(server):
    graph, sampler = token_graph(text="a")
    loader = graph.add("JanusFlowLoader", model_name="flow-a", weight_dtype="default")
    prompt = graph.add("JanusPromptEncode", clip=[loader, 1], text="a", negative_text="")
    graph[sampler]["inputs"]["positive"] = [prompt, 0]
    assert "Load Janus-Pro" in sentence(server, graph)
    for kind in ("KSampler", "JanusFlowSampler"):
        graph, sampler = flow_graph(kind, text="a", seed=0)
        loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
        prompt = graph.add("JanusPromptEncode", clip=[loader, 1], text="a", negative_text="")
        graph[sampler]["inputs"]["negative"] = [prompt, 1]
        assert "Load JanusFlow" in sentence(server, graph)


def test_latents_of_the_other_family(server):
    graph, sampler = token_graph(text="a")
    other, _ = flow_graph("JanusFlowSampler", text="a", seed=0, steps=1)
    offset = {node: f"9{node}" for node in other}
    for node, value in other.items():
        inputs = {k: [offset[v[0]], v[1]] if isinstance(v, list) else v for k, v in value["inputs"].items()}
        graph[offset[node]] = {**value, "inputs": inputs}
    flow_sampler = next(n for n, v in graph.items() if v["class_type"] == "JanusFlowSampler")
    graph[sampler]["inputs"]["latent_image"] = [flow_sampler, 0]
    assert "token latent" in sentence(server, graph)
    graph[sampler]["inputs"]["latent_image"] = ["2", 0]
    assert graph["2"]["class_type"] == "EmptyLatentImage"
    graph[flow_sampler]["inputs"]["latent_image"] = [sampler, 0]
    assert "SDXL" in sentence(server, graph)


def test_flow_latent_in_the_vq_vae(server):
    graph, sampler = flow_graph("JanusFlowSampler", text="a", seed=0, steps=1)
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    decoded = graph.add("VAEDecode", samples=[sampler, 0], vae=[loader, 2])
    graph.add("PreviewImage", images=[decoded, 0])
    assert "SDXL VAE" in sentence(server, graph)


def test_a_prompt_longer_than_the_context(server):
    graph, _ = token_graph(text="word " * 5000)
    assert "too long" in sentence(server, graph)
    for kind in ("KSampler", "JanusFlowSampler"):
        graph, _ = flow_graph(kind, text="word " * 5000, seed=0)
        assert "too long" in sentence(server, graph)


def test_two_prompts_for_the_token_sampler(server):
    graph, sampler = token_graph(text="a")
    links = graph[sampler]["inputs"]
    both = graph.add("ConditioningCombine", conditioning_1=links["positive"], conditioning_2=links["negative"])
    links["positive"] = [both, 0]
    assert "Concat" in sentence(server, graph)


def test_settings_out_of_range_are_refused_before_running(server):
    for field, value in (("cfg", -1.0), ("cfg", 101.0), ("temperature", -0.1), ("top_p", 1.1), ("seed", -1)):
        graph, sampler = token_graph(text="a")
        graph[sampler]["inputs"][field] = value
        with pytest.raises(Failed, match=field):
            server.run(graph)


def test_a_guidance_interval_out_of_order(server):
    for build in (token_graph, lambda **kw: flow_graph("JanusFlowSampler", seed=0, **kw)):
        graph, sampler = build(text="a")
        graph[sampler]["inputs"].update(cfg_start=0.6, cfg_end=0.3)
        message = sentence(server, graph)
        assert "cfg_start is 0.6" in message and "cfg_end" in message


def test_a_damaged_file_is_listed_and_explained(server):
    (server.base / "models" / "janus" / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ab")
    (server.base / "models" / "janus" / "junk.safetensors").write_bytes(b"junk")
    graph, _ = flow_graph(text="a", seed=0, name="junk.safetensors")
    assert "damaged" in sentence(server, graph)
    graph, _ = token_graph(text="a", name="junk.safetensors")
    assert "damaged" in sentence(server, graph)


@pytest.mark.parametrize("width,height", [(1, 200), (200, 1), (1, 1)])
def test_images_one_pixel_wide_are_described(server, width, height):
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    image = graph.add("EmptyImage", width=width, height=height, batch_size=1, color=255)
    answer = graph.add("JanusDescribeImage", clip=[loader, 1], image=[image, 0], question="?", max_new_tokens=2,
                       temperature=0.0, top_p=1.0, seed=0)  # fmt: skip
    shown = graph.add("PreviewAny", source=[answer, 0])
    assert len(server.run(graph)[shown]["text"]) == 1


def test_an_image_with_alpha_is_described(server):
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    image = graph.add("EmptyImage", width=40, height=30, batch_size=1, color=255)
    mask = graph.add("SolidMask", value=0.5, width=40, height=30)
    joined = graph.add("JoinImageWithAlpha", image=[image, 0], alpha=[mask, 0])
    answer = graph.add("JanusDescribeImage", clip=[loader, 1], image=[joined, 0], question="?", max_new_tokens=2,
                       temperature=0.0, top_p=1.0, seed=0)  # fmt: skip
    shown = graph.add("PreviewAny", source=[answer, 0])
    assert len(server.run(graph)[shown]["text"]) == 1


def test_weights_that_are_not_finite(server):
    import torch
    from safetensors.torch import save_file

    key = "diffusion_model.language_model.model.layers.0.self_attn.v_proj"
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{key}.lora_A.weight": torch.full((4, 96), float("nan")), f"{key}.lora_B.weight": torch.ones(96, 4)},
        folder / "nan.safetensors",
    )
    for graph, sampler in (token_graph(text="a"), flow_graph("JanusFlowSampler", text="a", seed=0, steps=2)):
        links = graph[sampler]["inputs"]
        lora = graph.add("LoraLoaderModelOnly", model=links["model"], lora_name="nan.safetensors", strength_model=1.0)
        links["model"] = [lora, 0]
        assert "not finite" in sentence(server, graph)


def test_a_missing_checkpoint_is_explained_before_running(server, comfyui):
    for build, name, command, weights in (
        (token_graph, "Janus-Pro-1B", "janus-pro-1b", "pytorch_model.bin"),
        (flow_graph, "JanusFlow-1.3B.safetensors", "janusflow-1.3b", "model.safetensors"),
    ):
        graph, _ = build(text="a", seed=0, name=name)
        with pytest.raises(Failed) as failure:
            server.run(graph)
        (node,) = json.loads(failure.value.message)["node_errors"].values()
        (error,) = node["errors"]
        message = error["details"]
        assert error["extra_info"]["input_name"] == "model_name" and "\n" not in message
        assert f"There is no checkpoint {name}" in message and "Value not in list" not in message
        run = f"{python_of(comfyui)} {ROOT / 'janus_core'} download {command} --to {server.base / 'models'}"
        assert message.startswith(f"model_name - Run `{run}`"), "what to do comes first"
        assert "config.json" in message and weights in message
        assert str(server.base / "models" / "janus" / name.removesuffix(".safetensors")) in message


def test_a_missing_custom_checkpoint_is_explained(server):
    graph, _ = token_graph(text="a", name="custom")
    with pytest.raises(Failed, match="janus_core download NAME.* There is no checkpoint custom in "):
        server.run(graph)


def test_a_checkpoint_of_the_other_family_names_the_right_loader(server):
    graph, _ = token_graph(text="a", name="flow-a")
    assert "JanusFlow checkpoint: load it with Load JanusFlow" in sentence(server, graph)


def test_conditioning_of_another_checkpoint(server, golden):
    """Of the same family, but another width: an error that says what to do, not one about shapes."""
    folder = server.base / "models" / "janus" / "wider"
    if not folder.exists():
        folder.mkdir()
        make_converted(folder, golden("ar-a").folder)
    graph, sampler = token_graph(text="a")
    loader = graph.add("JanusProLoader", model_name="wider", weight_dtype="default")
    prompt = graph.add("JanusPromptEncode", clip=[loader, 1], text="a", negative_text="")
    graph[sampler]["inputs"]["positive"] = [prompt, 0]
    assert "same checkpoint" in sentence(server, graph)


@pytest.mark.parametrize("node", ["VAEEncode", "VAEEncodeTiled"])
def test_images_too_small_for_vae_encode(server, node):
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    image = graph.add("EmptyImage", width=1, height=64, batch_size=1, color=0)
    tiles = dict(tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8) if node == "VAEEncodeTiled" else {}
    encoded = graph.add(node, pixels=[image, 0], vae=[loader, 2], **tiles)
    graph.add("SaveLatent", samples=[encoded, 0], filename_prefix="tiny")
    assert "16 pixels" in sentence(server, graph)
