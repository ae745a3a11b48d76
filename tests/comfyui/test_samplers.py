"""Both families through a real ComfyUI, against the golden answers."""

import numpy as np
import pytest
import torch
from conftest import latent_of, pixels_of
from graphs import Graph, flow_graph, outputs_of, token_graph
from safetensors.torch import load_file

import janus_core

SCALE = 0.13025
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def flow(golden):
    return golden("flow-a")


@pytest.fixture(scope="module")
def ar(golden):
    return golden("ar-a")


def run_flow(server, *args, **kwargs):
    graph, _ = flow_graph(*args, **kwargs)
    return latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0]) * SCALE


def run_tokens(server, **kwargs):
    graph, _ = token_graph(**kwargs)
    outputs = server.run(graph)
    latent = latent_of(server, outputs, outputs_of(graph, "SaveLatent")[0])
    return latent, pixels_of(server, outputs, outputs_of(graph, "SaveImage")[0])


def codebook_vectors(ar, tokens):
    weight = load_file(ar.folder / "model.safetensors")["gen_vision_model.quantize.embedding.weight"].float()
    return torch.nn.functional.normalize(weight, dim=-1)[tokens].transpose(1, 2).unflatten(2, (6, 6))


@pytest.mark.parametrize("sampler", ["KSampler", "JanusFlowSampler"])
@pytest.mark.parametrize("prompt_node", ["JanusPromptEncode", "CLIPTextEncode"])
def test_flow_gives_the_golden_latent(server, flow, sampler, prompt_node):
    latent = run_flow(server, sampler, prompt_node, text=flow.text["gen0.prompt"], seed=2100)
    assert (latent - flow.expected["gen0.steps30.cfg2.latent"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("k", range(1, 5))
def test_flow_sampler_on_every_golden_prompt(server, flow, k):
    latent = run_flow(server, "JanusFlowSampler", text=flow.text[f"gen{k}.prompt"], seed=2100 + k, steps=8)
    assert (latent - flow.expected[f"gen{k}.steps8.cfg2.latent"]).abs().max() < TOLERANCE


def test_custom_sampler_with_our_scheduler(server, flow):
    graph, sampler = flow_graph("JanusFlowSampler", text=flow.text["gen0.prompt"], seed=2100)
    links = graph[sampler]["inputs"]
    noise = graph.add("RandomNoise", noise_seed=2100)
    guider = graph.add("CFGGuider", **{k: links[k] for k in ("model", "positive", "negative")}, cfg=5.0)
    euler = graph.add("KSamplerSelect", sampler_name="euler")
    sigmas = graph.add("JanusFlowScheduler", steps=6, denoise=1.0)
    graph[sampler] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": [noise, 0], "guider": [guider, 0], "sampler": [euler, 0], "sigmas": [sigmas, 0],
                   "latent_image": links["latent_image"]},
    }  # fmt: skip
    latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0]) * SCALE
    assert (latent - flow.expected["gen0.steps6.cfg5.latent"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("k", range(5))
def test_the_default_dtype_gives_the_golden_tokens_up_to_rounding(server, ar, k):
    """In bfloat16 a greedy token may differ from float32's only where the golden logits nearly tie."""
    graph, _ = token_graph(text=ar.text[f"gen{k}.prompt"])
    graph["1"]["inputs"]["weight_dtype"] = "default"
    latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    golden, logits = (ar.expected[f"gen{k}.cfg5.{name}"] for name in ("greedy_tokens", "logits"))
    differs = (latent - codebook_vectors(ar, golden)).flatten(2).abs().amax(1)[0] > 1e-6
    if differs.any():
        position = int(differs.nonzero()[0])
        weight = load_file(ar.folder / "model.safetensors")["gen_vision_model.quantize.embedding.weight"].float()
        codebook = torch.nn.functional.normalize(weight, dim=-1)
        token = (codebook @ latent.flatten(2)[0, :, position]).argmax()
        row = logits[position].flatten().float()
        assert row.max() - row[token] < 0.05 * row.std()


@pytest.mark.parametrize("prompt_node", ["JanusPromptEncode", "CLIPTextEncode"])
@pytest.mark.parametrize("k", range(5))
def test_token_sampler_gives_the_golden_image(server, ar, k, prompt_node):
    latent, pixels = run_tokens(server, prompt_node=prompt_node, text=ar.text[f"gen{k}.prompt"])
    assert torch.allclose(latent, codebook_vectors(ar, ar.expected[f"gen{k}.cfg5.greedy_tokens"]), atol=1e-6)
    expected = ((ar.expected[f"gen{k}.cfg5.image"][0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(float) - expected).max() <= 2


def test_image_k_does_not_depend_on_the_batch(server, ar):
    text = ar.text["gen0.prompt"]
    four, _ = run_tokens(server, text=text, temperature=1.0, seed=7, batch=4)
    one, _ = run_tokens(server, text=text, temperature=1.0, seed=9)
    assert torch.equal(four[2:3], one)
    assert not torch.equal(four[0], four[1])


def test_the_last_seeds_wrap_around(server, ar):
    two, _ = run_tokens(server, text="a", temperature=1.0, seed=2**64 - 1, batch=2)
    zero, _ = run_tokens(server, text="a", temperature=1.0, seed=0)
    assert torch.equal(two[1:], zero)


def test_batch_index_selects_the_image(server, ar):
    graph, sampler = token_graph(text="a", temperature=1.0, seed=3, batch=4)
    picked = graph.add("LatentFromBatch", samples=graph[sampler]["inputs"]["latent_image"], batch_index=2, length=1)
    whole, _ = run_tokens(server, text="a", temperature=1.0, seed=3, batch=4)
    graph[sampler]["inputs"]["latent_image"] = [picked, 0]
    third = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert torch.equal(third, whole[2:3])


def test_a_noise_mask_resamples_only_its_tokens(server, ar):
    """VAE Encode, mask, token sampler: outside the mask the latent is still the encoder's."""
    server.copy_input(ar.folder / "picture.png")
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="fp32")
    image = graph.add("LoadImage", image="picture.png")
    scaled = graph.add("ImageScale", image=[image, 0], upscale_method="area", width=96, height=96, crop="center")
    encoded = graph.add("VAEEncode", pixels=[scaled, 0], vae=[loader, 2])
    mask = graph.add("SolidMask", value=0.0, width=96, height=96)
    top = graph.add("SolidMask", value=1.0, width=96, height=48)
    mask = graph.add("MaskComposite", destination=[mask, 0], source=[top, 0], x=0, y=0, operation="add")
    masked = graph.add("SetLatentNoiseMask", samples=[encoded, 0], mask=[mask, 0])
    prompt = graph.add("JanusPromptEncode", clip=[loader, 1], text="a cat", negative_text="")
    sampler = graph.add("JanusTokenSampler", model=[loader, 0], positive=[prompt, 0], negative=[prompt, 1],
                        latent_image=[masked, 0], seed=1, cfg=5.0, temperature=1.0, top_k=0, top_p=1.0)  # fmt: skip
    before = graph.add("SaveLatent", samples=[encoded, 0], filename_prefix="before")
    after = graph.add("SaveLatent", samples=[sampler, 0], filename_prefix="after")
    outputs = server.run(graph)
    before, after = latent_of(server, outputs, before), latent_of(server, outputs, after)
    assert torch.allclose(before[:, :, 3:], after[:, :, 3:], atol=1e-6)
    assert not torch.allclose(before[:, :, :3], after[:, :, :3], atol=1e-2)


def test_an_image_is_continued_below_given_rows(server, ar):
    """From the upper half of its own image, a seed samples the same lower half, and another seed another one."""
    whole, _ = run_tokens(server, text="a cat", temperature=1.0, seed=5)
    for seed in (5, 6):
        graph, sampler = token_graph(text="a cat", temperature=1.0, seed=5)
        upper = graph.add("LatentCut", samples=[sampler, 0], dim="y", index=0, amount=3)
        blank = graph.add("VAEEncode", pixels=[graph.add("EmptyImage", width=96, height=96, batch_size=1, color=0), 0],
                          vae=["1", 2])  # fmt: skip
        given = graph.add("LatentComposite", samples_to=[blank, 0], samples_from=[upper, 0], x=0, y=0, feather=0)
        mask = graph.add("SolidMask", value=0.0, width=96, height=96)
        lower = graph.add("SolidMask", value=1.0, width=96, height=48)
        mask = graph.add("MaskComposite", destination=[mask, 0], source=[lower, 0], x=0, y=48, operation="add")
        masked = graph.add("SetLatentNoiseMask", samples=[given, 0], mask=[mask, 0])
        settings = {**graph[sampler]["inputs"], "latent_image": [masked, 0], "seed": seed}
        second = graph.add("JanusTokenSampler", **settings)
        saved = graph.add("SaveLatent", samples=[second, 0], filename_prefix="continued")
        continued = latent_of(server, server.run(graph), saved)
        assert torch.allclose(continued[:, :, :3], whole[:, :, :3], atol=1e-6)
        assert torch.allclose(continued[:, :, 3:], whole[:, :, 3:], atol=1e-6) == (seed == 5)


def test_saved_token_latents_load_and_decode(server, ar):
    graph, sampler = token_graph(text="a cat")
    outputs = server.run(graph)
    saved = server.file(outputs[outputs_of(graph, "SaveLatent")[0]]["latents"][0])
    pixels = pixels_of(server, outputs, outputs_of(graph, "SaveImage")[0])
    server.copy_input(saved, "saved.latent")
    loading = Graph()
    loader = loading.add("JanusProLoader", model_name="ar-a", weight_dtype="fp32")
    latent = loading.add("LoadLatent", latent="saved.latent")
    decoded = loading.add("VAEDecode", samples=[latent, 0], vae=[loader, 2])
    node = loading.add("SaveImage", images=[decoded, 0], filename_prefix="loaded")
    assert np.array_equal(pixels_of(server, server.run(loading), node), pixels)


def test_describe_gives_the_golden_answer(server, ar, flow):
    for loader_class, name, golden in (("JanusProLoader", "ar-a", ar), ("JanusFlowLoader", "flow-a", flow)):
        server.copy_input(golden.folder / "picture.png", f"{name}.png")
        graph = Graph()
        loader = graph.add(loader_class, model_name=name, weight_dtype="fp32")
        image = graph.add("LoadImage", image=f"{name}.png")
        both = graph.add("ImageBatch", image1=[image, 0], image2=[image, 0])
        answer = graph.add("JanusDescribeImage", clip=[loader, 1], image=[both, 0], max_new_tokens=12, temperature=0.0,
                           question=golden.text["und.question"], top_p=0.95, seed=0)  # fmt: skip
        shown = graph.add("PreviewAny", source=[answer, 0])
        assert server.run(graph)[shown]["text"] == [golden.text["und.answer"].strip()] * 2


def test_sdxl_vae_decodes_a_flow_latent(server, flow):
    graph, sampler = flow_graph("JanusFlowSampler", text="a cat", seed=1, steps=2)
    vae = graph.add("VAELoader", vae_name="sdxl_vae.safetensors")
    decoded = graph.add("VAEDecode", samples=[sampler, 0], vae=[vae, 0])
    node = graph.add("SaveImage", images=[decoded, 0], filename_prefix="flow")
    assert pixels_of(server, server.run(graph), node).shape == (96, 96, 3)


def test_less_denoise_changes_an_image_less(server, flow):
    start = run_flow(server, "JanusFlowSampler", text="a cat", seed=1)

    def distance(denoise, sampler):
        graph, node = flow_graph(sampler, text="a dog", seed=2, steps=6, denoise=denoise)
        server.copy_input(saved, "start.latent")
        graph[node]["inputs"]["latent_image"] = [graph.add("LoadLatent", latent="start.latent"), 0]
        latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0]) * SCALE
        return (latent - start).square().mean().item()

    graph, _ = flow_graph("JanusFlowSampler", text="a cat", seed=1)
    saved = server.file(server.run(graph)[outputs_of(graph, "SaveLatent")[0]]["latents"][0])
    for sampler in ("KSampler", "JanusFlowSampler"):
        assert distance(0.2, sampler) < distance(0.8, sampler)


def test_flow_inpainting_changes_nothing_outside_the_mask(server, flow):
    graph, first = flow_graph("JanusFlowSampler", text="a cat", seed=1)
    mask = graph.add("SolidMask", value=0.0, width=96, height=96)
    left = graph.add("SolidMask", value=1.0, width=48, height=96)
    mask = graph.add("MaskComposite", destination=[mask, 0], source=[left, 0], x=0, y=0, operation="add")
    masked = graph.add("SetLatentNoiseMask", samples=[first, 0], mask=[mask, 0])
    inputs = {**graph[first]["inputs"], "latent_image": [masked, 0], "seed": 5}
    for sampler in ({}, {"sampler_name": "euler", "scheduler": "simple"}):
        second = graph.add("KSampler" if sampler else "JanusFlowSampler", **inputs, **sampler)
        graph.add("SaveLatent", samples=[second, 0], filename_prefix="inpainted")
    outputs = server.run(graph)
    before, *after = (latent_of(server, outputs, node) for node in outputs_of(graph, "SaveLatent"))
    for latent in after:
        assert torch.allclose(before[..., 6:], latent[..., 6:], atol=1e-4)
        assert not torch.allclose(before[..., :6], latent[..., :6], atol=1e-2)


@pytest.mark.parametrize("sampler", ["KSampler", "JanusFlowSampler"])
def test_flow_batches_and_odd_sizes(server, sampler):
    graph, node = flow_graph(sampler, text="a cat", seed=3, steps=3, batch=2)
    graph[graph[node]["inputs"]["latent_image"][0]]["inputs"].update(width=104, height=72)
    latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert latent.shape == (2, 4, 9, 13) and latent.isfinite().all()


def test_a_negative_prompt_of_another_length(server, ar, flow):
    plain = run_flow(server, text="a cat", seed=1, steps=3)
    with_negative = run_flow(server, text="a cat", seed=1, steps=3, negative="a photo of a big dog, blurry")
    assert not torch.allclose(plain, with_negative, atol=1e-3)
    plain, _ = run_tokens(server, text="a cat")
    with_negative, _ = run_tokens(server, text="a cat", negative="a photo of a big dog, blurry")
    assert not torch.equal(plain, with_negative)


def test_stock_conditioning_nodes_on_the_negative(server):
    """Changing the negative conditioning changes the latent: the model reads the conditioning tensor itself."""
    graph, node = flow_graph(text="a cat", seed=1, steps=3)
    plain = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    negative = graph[node]["inputs"]["negative"]
    for class_type, inputs in (
        ("ConditioningZeroOut", {"conditioning": negative}),
        ("ConditioningAverage", {"conditioning_to": negative, "conditioning_from": graph[node]["inputs"]["positive"],
                                 "conditioning_to_strength": 0.5}),
        ("ConditioningConcat", {"conditioning_to": negative, "conditioning_from": graph[node]["inputs"]["positive"]}),
    ):  # fmt: skip
        graph[node]["inputs"]["negative"] = [graph.add(class_type, **inputs), 0]
        changed = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
        assert changed.isfinite().all() and not torch.allclose(plain, changed, atol=1e-3), class_type


def test_cfg_one_is_unguided(server, ar):
    latent, _ = run_tokens(server, text=ar.text["gen0.prompt"], cfg=1.0)
    assert torch.allclose(latent, codebook_vectors(ar, ar.expected["gen0.cfg1.greedy_tokens"]), atol=1e-6)


def test_guidance_interval(server, ar):
    """The same as janus_core's; the default is the whole run, and an empty interval is cfg 1."""
    pipe = janus_core.load(ar.folder, device="cpu", dtype=torch.float32)
    latent, _ = run_tokens(server, text="a cat", cfg_start=0.2, cfg_end=0.6)
    assert torch.allclose(
        latent, pipe.generate_latents("a cat", temperature=0, guidance_interval=(0.2, 0.6)), atol=1e-6
    )
    plain = run_flow(server, "JanusFlowSampler", text="a cat", seed=1, steps=5)
    part = run_flow(server, "JanusFlowSampler", text="a cat", seed=1, steps=5, cfg_start=0.3, cfg_end=0.7)
    none = run_flow(server, "JanusFlowSampler", text="a cat", seed=1, steps=5, cfg_end=0.0)
    one = run_flow(server, "JanusFlowSampler", text="a cat", seed=1, steps=5, cfg=1.0)
    assert torch.allclose(none, one, atol=1e-5)
    assert not torch.allclose(part, plain, atol=1e-3) and not torch.allclose(part, one, atol=1e-3)


def test_speculative_decoding_gives_the_same_tokens(server, ar):
    plain, _ = run_tokens(server, text="a cat", temperature=1.0, seed=3, batch=2)
    speculative, _ = run_tokens(server, text="a cat", temperature=1.0, seed=3, batch=2, window=8)
    assert torch.equal(plain, speculative)
