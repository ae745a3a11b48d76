"""Graphs that connect what does not fit together: each ends in one sentence, before any step is computed."""

import os
import struct
import zlib

import pytest
import torch
from conftest import latent_of
from graphs import Graph, flow_graph, outputs_of, token_graph
from PIL import Image
from test_captions import caption_graph
from test_errors import sentence

FLOW = {kind: lambda kind=kind, **inputs: flow_graph(kind, text="a", seed=0, steps=2, **inputs)
        for kind in ("KSampler", "JanusFlowSampler")}  # fmt: skip
TOKENS = {"JanusTokenSampler": lambda **inputs: token_graph(text="a", **inputs)}


def linked(graph, node, **values):
    """Gives inputs through links, where ComfyUI does not check their ranges."""
    for name, value in values.items():
        primitive = graph.add("PrimitiveInt" if isinstance(value, int) else "PrimitiveFloat", value=value)
        graph[node]["inputs"][name] = [primitive, 0]
    return graph


LATENTS = {  # of other kinds: class and inputs
    "3-D audio": ("EmptyLatentAudio", {"seconds": 1.0}),
    "4-D audio": ("EmptyAceStepLatentAudio", {"seconds": 1.0}),
    "video": ("EmptyHunyuanLatentVideo", {"width": 96, "height": 96, "length": 5}),
    "layers": ("EmptyQwenImageLayeredLatentImage", {"width": 96, "height": 96, "layers": 2}),
}


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("sampler", {**FLOW, **TOKENS})
def test_latents_that_are_no_images(server, sampler, kind):
    if (sampler, kind) == ("KSampler", "4-D audio"):
        pytest.skip("the type of a latent does not reach a model through KSampler")
    graph, node = {**FLOW, **TOKENS}[sampler]()
    class_type, inputs = LATENTS[kind]
    graph[node]["inputs"]["latent_image"] = [graph.add(class_type, batch_size=1, **inputs), 0]
    message = sentence(server, graph)
    assert "This latent" in message and "Empty Latent Image" in message


@pytest.mark.parametrize("sampler", FLOW)
def test_a_latent_of_video_and_audio(server, sampler):
    graph, node = FLOW[sampler]()
    parts = {"video_latent": graph.add("EmptyLTXVLatentVideo", width=96, height=96, length=9, batch_size=1),
             "audio_latent": graph.add("EmptyLatentAudio", seconds=1.0, batch_size=1)}  # fmt: skip
    both = graph.add("LTXVConcatAVLatent", **{name: [part, 0] for name, part in parts.items()})
    graph[node]["inputs"]["latent_image"] = [both, 0]
    assert "Empty Latent Image" in sentence(server, graph)


@pytest.mark.parametrize("sampler", {**FLOW, **TOKENS})
def test_an_image_that_is_too_large_is_told_by_its_size(server, sampler):
    graph, _ = {**FLOW, **TOKENS}[sampler](size=4096)
    message = sentence(server, graph)
    assert "4096x4096 is too large" in message and "enough for about" in message and "prompt" not in message


@pytest.mark.parametrize("sampler,setting,value", [
    ("JanusFlowSampler", "denoise", -1.0), ("JanusFlowSampler", "denoise", 1.5), ("JanusFlowSampler", "seed", -1),
    ("JanusFlowSampler", "steps", 0), ("JanusFlowSampler", "cfg", -1.0), ("JanusTokenSampler", "seed", -1),
    ("JanusTokenSampler", "temperature", 1e-300), ("JanusTokenSampler", "top_k", -1),
])  # fmt: skip
def test_settings_out_of_range_through_links(server, sampler, setting, value):
    graph, node = {**FLOW, **TOKENS}[sampler]()
    assert setting in sentence(server, linked(graph, node, **{setting: value}))


def test_the_scheduler_through_links(server):
    graph = Graph()
    scheduler = graph.add("JanusFlowScheduler", steps=4, denoise=1.0)
    graph.add("PreviewAny", source=[scheduler, 0])
    assert "denoise is -1" in sentence(server, linked(graph, scheduler, denoise=-1.0))


def custom_graph(sigmas=None, guider=None, **guider_inputs):
    """flow_graph with SamplerCustomAdvanced in the sampler's place."""
    graph, node = FLOW["KSampler"]()
    links = graph[node]["inputs"]
    made = {
        "noise": graph.add("RandomNoise", noise_seed=0),
        "sampler": graph.add("KSamplerSelect", sampler_name="euler"),
        "sigmas": graph.add("JanusFlowScheduler", steps=4, denoise=1.0),
    }
    if sigmas is not None:
        class_type, inputs = sigmas
        made["sigmas"] = graph.add(class_type, sigmas=[made["sigmas"], 0], **inputs)
    prompts = {name: links[name] for name in ("model", "positive", "negative")}
    made["guider"] = graph.add(guider or "CFGGuider", **{**prompts, "cfg": 2.0, **guider_inputs})
    inputs = {name: [made_node, 0] for name, made_node in made.items()}
    graph[node] = {"class_type": "SamplerCustomAdvanced", "inputs": {**inputs, "latent_image": links["latent_image"]}}
    return graph, made["guider"]


@pytest.mark.parametrize("sigmas", [("FlipSigmas", {}), ("SplitSigmas", {"step": 0})], ids=lambda sigmas: sigmas[0])
def test_a_run_that_ends_at_sigma_1(server, sigmas):
    graph, _ = custom_graph(sigmas)
    message = sentence(server, graph)
    assert "ends at sigma 1" in message and "not finite" not in message


def test_a_janus_pro_model_in_guiders(server):
    graph, guider = custom_graph(guider="DualModelGuider")
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    graph[guider]["inputs"]["model_negative"] = [loader, 0]
    assert "Janus Token Sampler" in sentence(server, graph)
    graph[guider]["inputs"].update(model=[loader, 0], model_negative=[loader, 0])
    assert "Janus Token Sampler" in sentence(server, graph)


def test_a_guider_without_a_negative_prompt(server):
    graph, guider = custom_graph(guider="DualModelGuider")
    del graph[guider]["inputs"]["negative"]
    assert "has no prompt" in sentence(server, graph)


def test_renorm_cfg(server):
    """It asks the network for its channels."""
    graph, node = FLOW["KSampler"]()
    links = graph[node]["inputs"]
    links["model"] = [graph.add("RenormCFG", model=links["model"], cfg_trunc=100.0, renorm_cfg=1.0), 0]
    assert latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0]).isfinite().all()


SIZES = {name: 96 for name in ("width", "height", "crop_w", "crop_h", "target_width", "target_height")}
ENCODERS = {
    "CLIPTextEncodeSDXL": {**SIZES, "text_g": "a", "text_l": "a"},
    "CLIPTextEncodeFlux": {"clip_l": "a", "t5xxl": "a", "guidance": 3.5},
    "CLIPTextEncodeSD3": {"clip_l": "a", "clip_g": "a", "t5xxl": "a", "empty_padding": "none"},
    "CLIPTextEncodeHiDream": {"clip_l": "a", "clip_g": "a", "t5xxl": "a", "llama": "a"},
    "CLIPTextEncodeHunyuanDiT": {"bert": "a", "mt5xl": "a"},
    "CLIPTextEncodeKandinsky5": {"clip_l": "a", "qwen25_7b": "a"},
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_text_encode_nodes_of_other_models(server, encoder):
    graph, node = TOKENS["JanusTokenSampler"]()
    graph[node]["inputs"]["positive"] = [graph.add(encoder, clip=["1", 1], **ENCODERS[encoder]), 0]
    assert graph["1"]["class_type"] == "JanusProLoader"
    assert "another kind of model" in sentence(server, graph)


def test_errors_are_shown_under_a_short_name(server):
    graph, _ = token_graph(text="word " * 5000)
    *_, (kind, data) = server.events(server.queue(graph))
    assert kind == "execution_error" and data["exception_type"] == "JanusError"


def test_hostile_model_folders_leave_the_loaders_usable(server):
    """The rest is in tests/core/test_hostile_nodes.py."""
    models = server.base / "models" / "janus"
    (models / "deep").mkdir(exist_ok=True)
    (models / "deep" / "config.json").write_text("[" * 100000)
    if not (models / "pipe.safetensors").exists():
        os.mkfifo(models / "pipe.safetensors")
    for _ in range(2):
        info = server.get("/object_info/JanusProLoader")["JanusProLoader"]
        names = info["input"]["required"]["model_name"][1]["options"]
        assert "ar-a" in names and not {"deep", "pipe.safetensors"} & set(names)
    assert server.log().count("deep/config.json") == 1 and server.log().count("pipe.safetensors") == 1
    graph, _ = token_graph(text="a", name="deep")
    assert "JSON" in sentence(server, graph)


def text_bomb() -> bytes:
    """A zTXt chunk that expands to 64 MB."""
    data = b"zTXt" + b"key\0\0" + zlib.compress(bytes(2**26))
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def test_hostile_folders_of_images(server):
    folder = server.base / "input" / "dataset"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name in ("a.png", "bomb.png", "both.png", "both.jpg", "done.png", "empty.png", "link.png", ".hidden.png"):
        Image.new("RGB", (40, 40), "red").save(folder / name)
    data = (folder / "bomb.png").read_bytes()
    (folder / "bomb.png").write_bytes(data[:33] + text_bomb() + data[33:])
    os.mkfifo(folder / "pipe.png")
    (folder / "done.txt").write_text("done")
    (folder / "empty.txt").write_text(" \n")
    outside = server.base / "input" / "outside.txt"
    (folder / "link.txt").symlink_to(outside)
    graph, node = caption_graph()
    (report,) = server.run(graph)[node]["text"]
    first, *failed = report.splitlines()
    assert first == "3 written, 1 skipped, 4 failed"
    assert len(failed) == 3 and "both.jpg and both.png" in failed[0] and "bomb.png" in report and "pipe.png" in report
    assert not outside.exists() and not (folder / "link.txt").is_symlink()
    assert all((folder / f"{name}.txt").read_text().startswith("style, ") for name in ("a", "empty", "link"))
    assert (folder / "done.txt").read_text() == "done" and not (folder / "both.txt").exists()
    (report,) = server.run(graph)[node]["text"]
    assert report.startswith("0 written, 4 skipped, 4 failed")


def test_a_run_of_no_steps_changes_nothing(server):
    """A denoise of 0, as in stock schedulers."""
    graph, node = FLOW["JanusFlowSampler"]()
    graph[node]["inputs"]["denoise"] = 0.0
    latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert torch.count_nonzero(latent) == 0
