"""The nodes for fine-tuned models in a real ComfyUI, against finetunes.safetensors; batches, stock nodes, bad input.

inside_finetunes.py compares embeddings and logits, which a server does not show.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import latent_of, pixels_of
from graphs import Graph, outputs_of
from PIL import Image
from safetensors.torch import load_file
from test_errors import Failed, sentence

import janus_core

RECIPES = {"reasongen": "reasongen-r1", "t2i_r1": "t2i-r1", "got_r1": "got-r1"}


@pytest.fixture(scope="module")
def ar(golden, server):
    golden = golden("ar-a")
    golden_texts = json.loads((golden.folder / "finetunes.json").read_text(encoding="utf-8"))
    tensors = load_file(golden.folder / "finetunes.safetensors")
    server.copy_input(golden.folder / "picture.png", "source.png")
    for case in ("p0", "p1"):
        Image.fromarray(tensors[f"pro_r1.{case}.picture"].byte().numpy()).save(server.base / "input" / f"{case}.png")
    return SimpleNamespace(
        texts=golden_texts["texts"],
        limit=golden_texts["settings"]["limit"],
        tensors=tensors,
        pipe=janus_core.load(golden.folder, device="cpu", dtype=torch.float32),
    )


@pytest.mark.parametrize(
    "check",
    [
        "prompts_of_fine_tuned_models_are_exact",
        "stock_nodes_change_both_conditional_rows",
        "planned_boxes_fit_stock_draw_bboxes",
    ],
)
def test_inside_comfyui(inside, check):
    inside("inside_finetunes.py", check)


def start(name="ar-a"):
    """A graph with a loader in float32, its CLIP and its VAE."""
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name=name, weight_dtype="fp32")
    return graph, [loader, 1], [loader, 2]


def edit(graph, clip, vae, text, image="source.png", **inputs):
    image = [graph.add("LoadImage", image=image), 0]
    return graph.add(
        "JanusImagePrompt", **{"clip": clip, "vae": vae, "image": image, "text": text, "image_guidance": 5.0, **inputs}
    )


def think(graph, clip, text, recipe, **inputs):
    settings = {"temperature": 0.0, "seed": 0, "max_new_tokens": 12, **inputs}
    return graph.add("JanusThink", clip=clip, text=text, recipe=recipe, **settings)


def reflect(graph, clip, vae, text, image, **inputs):
    settings = {"temperature": 0.0, "seed": 0, "max_new_tokens": 12, **inputs}
    image = [graph.add("LoadImage", image=image), 0] if isinstance(image, str) else image
    return graph.add("JanusReflect", clip=clip, vae=vae, image=image, text=text, **settings)


def sample(graph, positive, negative, batch=1, **inputs):
    """Adds the sampler, and nodes that save its latent."""
    latent = [graph.add("EmptyLatentImage", width=96, height=96, batch_size=batch), 0]
    settings = {"seed": 0, "cfg": 5.0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, **inputs}
    sampler = graph.add(
        "JanusTokenSampler", model=["1", 0], positive=positive, negative=negative, latent_image=latent, **settings
    )
    graph.add("SaveLatent", samples=[sampler, 0], filename_prefix="tokens")
    return sampler


def show(graph, node, output):
    return graph.add("PreviewAny", source=[node, output])


def tokens_of(ar, server, graph, outputs=None):
    """The tokens that a graph samples."""
    outputs = outputs or server.run(graph)
    return ar.pipe.tokens_of(latent_of(server, outputs, outputs_of(graph, "SaveLatent")[0]))


@pytest.mark.parametrize("case", ["p0", "p1"])
def test_edit(server, ar, case):
    name = f"janus4o.{case}"
    graph, clip, vae = start()
    prompt = edit(graph, clip, vae, ar.texts[name]["prompt"])
    sample(graph, [prompt, 0], [prompt, 1])
    assert torch.equal(tokens_of(ar, server, graph), ar.tensors[f"{name}.greedy_tokens"])


@pytest.mark.parametrize("case", ["p0", "p1"])
@pytest.mark.parametrize("model", RECIPES)
def test_think(server, ar, model, case):
    name = f"{model}.{case}"
    graph, clip, _ = start()
    prompt = think(graph, clip, ar.texts[name]["prompt"], RECIPES[model], max_new_tokens=ar.limit)
    sample(graph, [prompt, 0], [prompt, 1])
    thought, boxes = show(graph, prompt, 2), show(graph, prompt, 3)
    outputs = server.run(graph)
    assert torch.equal(tokens_of(ar, server, graph, outputs), ar.tensors[f"{name}.greedy_tokens"])
    assert outputs[thought]["text"] == [ar.texts[name]["text"]]
    assert json.loads(outputs[boxes]["text"][0]) == [[]]


@pytest.mark.parametrize("case", ["p0", "p1"])
def test_reflect(server, ar, case):
    name = f"pro_r1.{case}"
    text = ar.texts[name]
    graph, clip, vae = start()
    prompt = reflect(graph, clip, vae, text["prompt"], f"{case}.png", max_new_tokens=ar.limit)
    sample(graph, [prompt, 0], [prompt, 1])
    matches, reason = show(graph, prompt, 2), show(graph, prompt, 3)
    outputs = server.run(graph)
    assert torch.equal(tokens_of(ar, server, graph, outputs), ar.tensors[f"{name}.redraw.greedy_tokens"])
    assert outputs[matches]["text"] == [str(text["verdict"] == "Yes")]
    verdict = ar.pipe.prompts.decode(ar.tensors[f"{name}.text_ids"][:1])
    assert verdict + outputs[reason]["text"][0] == text["text"]


def test_the_first_image_and_its_check(server, ar):
    """The whole chain without files: Janus Prompt (CFG), the sampler, VAE Decode, Janus Reflect."""
    text = ar.texts["pro_r1.p0"]
    graph, clip, vae = start()
    first = graph.add("JanusPromptEncode", clip=clip, text=text["prompt"], negative_text="")
    sampler = sample(graph, [first, 0], [first, 1])
    decoded = graph.add("VAEDecode", samples=[sampler, 0], vae=vae)
    prompt = reflect(graph, clip, vae, text["prompt"], [decoded, 0], max_new_tokens=3)
    matches = show(graph, prompt, 2)
    outputs = server.run(graph)
    assert torch.equal(tokens_of(ar, server, graph, outputs), ar.tensors["pro_r1.p0.draw.greedy_tokens"])
    assert outputs[matches]["text"] == ["True"]


def test_a_switch_takes_the_first_image_if_it_matches(server, ar):
    """Stock If/Else Switch then leaves the second sampler out."""
    graph, clip, vae = start()
    first = [graph.add("LoadImage", image="p0.png"), 0]
    prompt = reflect(graph, clip, vae, ar.texts["pro_r1.p0"]["prompt"], first, max_new_tokens=2)
    again = sample(graph, [prompt, 0], [prompt, 1], seed=77)
    del graph[outputs_of(graph, "SaveLatent")[0]]
    second = [graph.add("VAEDecode", samples=[again, 0], vae=vae), 0]
    switch = graph.add("ComfySwitchNode", switch=[prompt, 2], on_true=first, on_false=second)
    saved = graph.add("SaveImage", images=[switch, 0], filename_prefix="switched")

    def executed():
        return [data.get("node") for kind, data in server.events(server.queue(graph)) if kind == "executing"]

    nodes = executed()
    assert prompt in nodes and again not in nodes
    expected = ar.tensors["pro_r1.p0.picture"].byte().numpy()
    assert (pixels_of(server, server.run(graph), saved) == expected).all()
    graph[switch]["inputs"].update(on_true=second, on_false=first)
    assert again in executed()


def test_a_batch_of_images_and_a_window(server, ar):
    """A batch of edits is each edit alone, also in the speculative window, with an interval and under a mask."""
    settings = dict(temperature=1.0, seed=4, cfg_end=0.5)
    graph, clip, vae = start()
    prompt = edit(graph, clip, vae, "make it red")
    sample(graph, [prompt, 0], [prompt, 1], 2, **settings)
    batch = tokens_of(ar, server, graph)
    source = Image.open(server.base / "input" / "source.png")
    for k in range(2):
        alone = ar.pipe.generate_tokens(
            ar.pipe.edit_prompt(source, "make it red"), seed=4 + k, guidance_interval=(0, 0.5)
        )
        assert torch.equal(alone, batch[k : k + 1])
    graph[outputs_of(graph, "JanusTokenSampler")[0]]["inputs"]["window"] = 6
    assert torch.equal(tokens_of(ar, server, graph), batch)

    graph, clip, vae = start()
    prompt = edit(graph, clip, vae, "make it red")
    sampler = sample(graph, [prompt, 0], [prompt, 1], **settings)
    encoded = [
        graph.add(
            "VAEEncode",
            pixels=[
                graph.add("ImageScale", image=["2", 0], upscale_method="bilinear", width=96, height=96, crop="center"),
                0,
            ],
            vae=vae,
        ),
        0,
    ]
    mask = [graph.add("SolidMask", value=1.0, width=96, height=48), 0]
    whole = [
        graph.add(
            "MaskComposite",
            destination=[graph.add("SolidMask", value=0.0, width=96, height=96), 0],
            source=mask,
            x=0,
            y=48,
            operation="add",
        ),
        0,
    ]
    graph[sampler]["inputs"]["latent_image"] = [graph.add("SetLatentNoiseMask", samples=encoded, mask=whole), 0]
    graph.add("SaveLatent", samples=encoded, filename_prefix="encoded")
    outputs = server.run(graph)
    sampled, before = (ar.pipe.tokens_of(latent_of(server, outputs, node)) for node in outputs_of(graph, "SaveLatent"))
    assert torch.equal(sampled[:, :18], before[:, :18]) and not torch.equal(sampled, before)


def test_thoughts_of_different_lengths_in_one_batch(server, ar):
    """Conditioning (Combine) of one prompt per image: each image is what it is alone."""
    prompts = [("a red square left of the quick photo left of 8 brown fox0", 0, 12), ("a tall cat", 1, 5)]
    graph, clip, _ = start()
    nodes = [
        think(graph, clip, text, "reasongen-r1", seed=seed, temperature=1.0, max_new_tokens=n)
        for text, seed, n in prompts
    ]
    positive, negative = (
        [graph.add("ConditioningCombine", conditioning_1=[nodes[0], k], conditioning_2=[nodes[1], k]), 0]
        for k in (0, 1)
    )
    sampler = sample(graph, positive, negative, 2, temperature=1.0, seed=9)
    batch = tokens_of(ar, server, graph)
    for k, (text, seed, n) in enumerate(prompts):
        thought = ar.pipe.think(text, "reasongen-r1", seed=seed, max_new_tokens=n)
        assert torch.equal(ar.pipe.generate_tokens(thought.prompt, seed=9 + k), batch[k : k + 1])
    graph[sampler]["inputs"]["negative"] = [nodes[1], 1]  # one empty negative serves both lengths
    assert torch.equal(tokens_of(ar, server, graph), batch)
    latent = next(node for node in graph.values() if node["class_type"] == "EmptyLatentImage")
    latent["inputs"]["batch_size"] = 3
    assert "one for each image" in sentence(server, graph)


def test_a_negative_from_elsewhere(server, ar):
    """An empty one from any node is the unconditional row; a text is a row of its own, beside both conditional rows."""
    source = Image.open(server.base / "input" / "source.png")
    expected = {"": {}, "a dog": {"negative_prompt": "a dog"}}
    for text, settings in expected.items():
        graph, clip, vae = start()
        prompt = edit(graph, clip, vae, "make it red")
        negative = graph.add("CLIPTextEncode", clip=clip, text=text)
        sample(graph, [prompt, 0], [negative, 0])
        alone = ar.pipe.generate_tokens(ar.pipe.edit_prompt(source, "make it red"), temperature=0, **settings)
        assert torch.equal(tokens_of(ar, server, graph), alone)


@pytest.mark.parametrize(
    "name", ["ConditioningZeroOut", "ConditioningAverage", "ConditioningConcat", "ConditioningSetTimestepRange"]
)
def test_stock_conditioning_nodes_on_an_image_prompt(server, ar, name):
    graph, clip, vae = start()
    prompt = edit(graph, clip, vae, "make it red")
    sampler = sample(graph, [prompt, 0], [prompt, 1])
    plain, positive = tokens_of(ar, server, graph), [prompt, 0]
    other = [graph.add("CLIPTextEncode", clip=clip, text="a dog"), 0]
    inputs = {
        "ConditioningZeroOut": dict(conditioning=positive),
        "ConditioningAverage": dict(conditioning_to=positive, conditioning_from=other, conditioning_to_strength=0.3),
        "ConditioningConcat": dict(conditioning_to=positive, conditioning_from=other),
        "ConditioningSetTimestepRange": dict(conditioning=positive, start=0.0, end=0.5),
    }[name]
    graph[sampler]["inputs"]["positive"] = [graph.add(name, **inputs), 0]
    changed = tokens_of(ar, server, graph)
    assert torch.equal(changed, plain) == (name == "ConditioningSetTimestepRange")
    if name == "ConditioningSetTimestepRange":
        assert "no effect on it: start_percent, end_percent." in server.log()


def test_boxes_are_drawn(server, ar):
    """Stock Draw BBoxes takes the output, whatever it holds."""
    graph, clip, vae = start()
    prompt = think(graph, clip, "a cat", "got-r1")
    image = graph.add("EmptyImage", width=96, height=96, batch_size=1, color=0)
    drawn = graph.add("DrawBBoxes", image=[image, 0], bboxes=[prompt, 3])
    node = graph.add("PreviewImage", images=[drawn, 0])
    assert not pixels_of(server, server.run(graph), node).any()


def test_roles_and_system_prompt(server, ar):
    """Of Janus Prompt (CFG) and Janus Describe Image, as in janus_core; by default as before."""
    graph, clip, _ = start()
    chat = dict(roles="User", system_prompt="Be brief.")
    prompt = graph.add("JanusPromptEncode", clip=clip, text="a cat", negative_text="a dog", **chat)
    sample(graph, [prompt, 0], [prompt, 1])
    image = [graph.add("LoadImage", image="source.png"), 0]
    question = dict(clip=clip, image=image, question="What?", max_new_tokens=6, temperature=0.0, top_p=1.0, seed=0)
    answers = [
        show(graph, graph.add("JanusDescribeImage", **question, **more), 0)
        for more in ({}, chat, {"system_prompt": ""})
    ]
    outputs = server.run(graph)
    pipe = ar.pipe
    expected = pipe.generate_tokens("a cat", negative_prompt="a dog", temperature=0, **chat)
    assert torch.equal(tokens_of(ar, server, graph, outputs), expected)
    source = Image.open(server.base / "input" / "source.png")
    for node, more in zip(answers, ({}, chat, {"system_prompt": ""})):
        expected = [answer.strip() for answer in pipe.describe(source, "What?", max_new_tokens=6, **more)]
        assert outputs[node]["text"] == expected


@pytest.mark.parametrize("width,height", [(1, 1), (3, 200), (700, 30)])
def test_images_with_alpha_and_of_any_size(server, ar, width, height):
    graph, clip, vae = start()
    image = [graph.add("EmptyImage", width=width, height=height, batch_size=1, color=255), 0]
    mask = [graph.add("SolidMask", value=0.5, width=width, height=height), 0]
    image = [graph.add("JoinImageWithAlpha", image=image, alpha=mask), 0]
    prompt = graph.add("JanusImagePrompt", clip=clip, vae=vae, image=image, text="", image_guidance=5.0)
    sample(graph, [prompt, 0], [prompt, 1])
    assert tokens_of(ar, server, graph).shape == (1, 36)
    reason = show(graph, reflect(graph, clip, vae, "", image, max_new_tokens=2), 3)
    assert len(server.run(graph)[reason]["text"]) == 1


def test_bad_input_is_one_sentence(server, ar):
    def flow_clip(graph):
        return [graph.add("JanusFlowLoader", model_name="flow-a", weight_dtype="fp32"), 1]

    graph, _, vae = start()
    show(graph, think(graph, flow_clip(graph), "a cat", "t2i-r1"), 2)
    assert "CLIP of Load Janus-Pro" in sentence(server, graph)
    for node in (edit, lambda *args: reflect(*args, "source.png")):
        graph, clip, vae = start()
        show(graph, node(graph, flow_clip(graph), vae, "a cat"), 0)
        assert "CLIP of Load Janus-Pro" in sentence(server, graph)
        graph, clip, vae = start()
        show(graph, node(graph, clip, [graph.add("VAELoader", vae_name="sdxl_vae.safetensors"), 0], "a cat"), 0)
        assert "VAE of the same Load Janus-Pro" in sentence(server, graph)
    graph, clip, vae = start()
    image = [graph.add("EmptyImage", width=96, height=96, batch_size=2, color=255), 0]
    show(graph, reflect(graph, clip, vae, "a cat", image), 2)
    assert "one image" in sentence(server, graph)
    graph, clip, vae = start()
    show(graph, think(graph, clip, "word " * 5000, "t2i-r1"), 2)
    assert "too long" in sentence(server, graph)
    graph, clip, vae = start()
    prompt = edit(graph, clip, vae, "word " * 5000)
    sample(graph, [prompt, 0], [prompt, 1])
    assert "too long" in sentence(server, graph)
    for build in (
        lambda graph, clip, vae: think(graph, clip, "a", "cot-r1"),
        lambda graph, clip, vae: edit(graph, clip, vae, "a", image_guidance=-1.0),
        lambda graph, clip, vae: reflect(graph, clip, vae, "a", "source.png", max_new_tokens=0),
    ):
        graph, clip, vae = start()
        show(graph, build(graph, clip, vae), 0)
        with pytest.raises(Failed):
            server.run(graph)
