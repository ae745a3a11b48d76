"""Which stock nodes work. tests/compatibility.py writes docs/stock-nodes.md from the cases, named after the nodes."""

import pytest
import torch
from conftest import latent_of
from graphs import flow_graph, outputs_of, token_graph
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def plain(server):
    """The latent that changed ones are compared with."""
    return run(server, *flow_graph(text="a cat", seed=1, steps=4))


def run(server, graph, _=None):
    latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert latent.isfinite().all()
    return latent


def with_model_node(name, inputs):
    graph, sampler = flow_graph(text="a cat", seed=1, steps=4)
    links = graph[sampler]["inputs"]
    links["model"] = [graph.add(name, model=links["model"], **inputs), 0]
    return graph, sampler


def test_a_compiled_model_gives_the_same_latent(server, plain):
    assert torch.allclose(
        run(server, *with_model_node("TorchCompileModel", dict(backend="inductor"))), plain, atol=1e-3
    )


@pytest.mark.parametrize(
    "name", ["ConditioningZeroOut", "ConditioningAverage", "ConditioningConcat", "ConditioningCombine",
             "ConditioningSetTimestepRange", "ConditioningSetMask", "ConditioningSetArea"]
)  # fmt: skip
def test_conditioning_node(server, plain, name):
    graph, sampler = flow_graph(text="a cat", seed=1, steps=4)
    links = graph[sampler]["inputs"]
    other = [graph.add("CLIPTextEncode", clip=["1", 1], text="a very different and much longer prompt"), 0]
    positive = links["positive"]
    mask = graph.add("SolidMask", value=1.0, width=48, height=96) if name == "ConditioningSetMask" else None
    nodes = {
        "ConditioningZeroOut": lambda: dict(conditioning=positive),
        "ConditioningAverage": lambda: dict(
            conditioning_to=positive, conditioning_from=other, conditioning_to_strength=0.5
        ),
        "ConditioningConcat": lambda: dict(conditioning_to=positive, conditioning_from=other),
        "ConditioningCombine": lambda: dict(conditioning_1=positive, conditioning_2=other),
        "ConditioningSetTimestepRange": lambda: dict(conditioning=other, start=0.0, end=0.5),
        "ConditioningSetMask": lambda: dict(conditioning=other, mask=[mask, 0], strength=1.0, set_cond_area="default"),
        "ConditioningSetArea": lambda: dict(conditioning=other, width=64, height=64, x=0, y=0, strength=1.0),
    }
    changed = [graph.add(name, **nodes[name]()), 0]
    if name in ("ConditioningSetTimestepRange", "ConditioningSetMask", "ConditioningSetArea"):
        changed = [graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=changed), 0]
    links["positive"] = changed
    assert not torch.allclose(run(server, graph), plain, atol=1e-4)


def lora_files(folder):
    """One LoRA of the first query projection in several key styles."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 96), torch.randn(96, 4)
    name = "language_model.model.layers.0.self_attn.q_proj"
    styles = {
        "comfyui": {f"diffusion_model.{name}.lora_A.weight": a, f"diffusion_model.{name}.lora_B.weight": b},
        "peft": {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b},
        "transformers": {
            "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight": a,
            "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight": b,
        },
        "diffusers": {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b},
        "kohya": {
            f"lora_unet_{name.replace('.', '_')}.lora_down.weight": a,
            f"lora_unet_{name.replace('.', '_')}.lora_up.weight": b,
            f"lora_unet_{name.replace('.', '_')}.alpha": torch.tensor(4.0),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for style, tensors in styles.items():
        save_file(tensors, folder / f"{style}.safetensors")


@pytest.mark.parametrize("style", ["comfyui", "peft", "transformers", "diffusers", "kohya"])
def test_lora_key_style(server, plain, style):
    lora_files(server.base / "models" / "loras")
    latents = {}
    for name in ("comfyui", style):
        graph, _ = with_model_node("LoraLoaderModelOnly", dict(lora_name=f"{name}.safetensors", strength_model=1.0))
        latents[name] = run(server, graph)
    assert not torch.allclose(latents[style], plain, atol=1e-4)
    assert torch.equal(latents[style], latents["comfyui"])


@pytest.mark.parametrize("build", [token_graph, lambda **kw: flow_graph(seed=1, steps=4, **kw)], ids=["janus", "flow"])
def test_lora_loader_on_model_and_clip(server, build):
    """The stock LoRA loader patches both outputs and leaves the loader's own MODEL and CLIP unchanged."""
    lora_files(server.base / "models" / "loras")
    graph, sampler = build(text="a cat")
    before = run(server, graph)
    patched, sampler = build(text="a cat")
    lora = patched.add("LoraLoader", model=["1", 0], clip=["1", 1], lora_name="comfyui.safetensors", strength_model=1.0,
                       strength_clip=1.0)  # fmt: skip
    patched[sampler]["inputs"]["model"] = [lora, 0]
    patched[patched[sampler]["inputs"]["positive"][0]]["inputs"]["clip"] = [lora, 1]
    changed = run(server, patched)
    assert not torch.allclose(changed, before, atol=1e-4)
    graph, _ = build(text="a cat", negative=" ")
    assert torch.equal(run(server, graph), before)


def test_hook_lora_with_a_schedule(server, plain):
    """A LoRA hooked to a prompt for a part of the run; cached keys and values must not outlive its weights."""
    lora_files(server.base / "models" / "loras")
    graph, sampler = flow_graph(text="a cat", seed=1, steps=4)
    hook = graph.add("CreateHookLoraModelOnly", lora_name="comfyui.safetensors", strength_model=1.0)
    frames = graph.add("CreateHookKeyframe", strength_mult=0.0, start_percent=0.0)
    frames = graph.add("CreateHookKeyframe", strength_mult=1.0, start_percent=0.5, prev_hook_kf=[frames, 0])
    hook = graph.add("SetHookKeyframes", hooks=[hook, 0], hook_kf=[frames, 0])
    links = graph[sampler]["inputs"]
    links["positive"] = [graph.add("ConditioningSetProperties", cond_NEW=links["positive"], strength=1.0,
                                   set_cond_area="default", hooks=[hook, 0]), 0]  # fmt: skip
    scheduled = run(server, graph)
    graph[frames]["inputs"]["strength_mult"] = 0.0
    assert torch.allclose(run(server, graph), plain, atol=1e-4)
    assert not torch.allclose(scheduled, plain, atol=1e-4)


def test_train_lora_then_load_it(server, plain):
    """Train LoRA on two latents, save it, and load it like any other."""
    graph, sampler = flow_graph(text="a cat", seed=5, steps=2, batch=2)
    links = graph[sampler]["inputs"]
    train = graph.add(
        "TrainLoraNode", model=links["model"], latents=[sampler, 0], positive=links["positive"], batch_size=1,
        grad_accumulation_steps=1, steps=3, learning_rate=0.05, rank=4, optimizer="AdamW", loss_function="MSE", seed=0,
        training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=False, checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False,
        bypass_mode=False,
    )  # fmt: skip
    graph.add("SaveLoRA", lora=[train, 0], prefix="loras/trained", steps=[train, 2])
    server.run(graph)
    saved = max((server.base / "output" / "loras").glob("trained*.safetensors"))
    assert load_file(saved)
    (server.base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    (server.base / "models" / "loras" / "trained.safetensors").write_bytes(saved.read_bytes())
    graph, _ = with_model_node("LoraLoaderModelOnly", dict(lora_name="trained.safetensors", strength_model=1.0))
    assert not torch.allclose(run(server, graph), plain, atol=1e-4)


@pytest.mark.parametrize("tiled", ["VAEDecodeTiled", "VAEEncodeTiled"])
def test_tiled_vq(server, tiled):
    graph, sampler = token_graph(text="a cat", size=160)
    tiles = dict(tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8)
    decoded = graph.add("VAEDecodeTiled", samples=[sampler, 0], vae=["1", 2], **tiles)
    node = graph.add("PreviewImage", images=[decoded, 0])
    if tiled == "VAEEncodeTiled":
        encoded = graph.add("VAEEncodeTiled", pixels=[decoded, 0], vae=["1", 2], **tiles)
        node = graph.add("SaveLatent", samples=[encoded, 0], filename_prefix="tiled")
    outputs = server.run(graph)
    if tiled == "VAEEncodeTiled":
        assert latent_of(server, outputs, node).shape == (1, 8, 10, 10)
    else:
        assert outputs[node]["images"]


def test_text_generate(server, golden):
    """Stock Generate Text answers a question about an image with either CLIP."""
    for loader_class, name in (("JanusProLoader", "ar-a"), ("JanusFlowLoader", "flow-a")):
        golden_ = golden(name)
        server.copy_input(golden_.folder / "picture.png", f"{name}.png")
        graph, _ = token_graph(text="a")
        graph.clear()
        loader = graph.add(loader_class, model_name=name, weight_dtype="fp32")
        image = graph.add("LoadImage", image=f"{name}.png")
        answer = graph.add("TextGenerate", clip=[loader, 1], image=[image, 0], prompt=golden_.text["und.question"],
                           max_length=12, sampling_mode="off")  # fmt: skip
        shown = graph.add("PreviewAny", source=[answer, 0])
        assert server.run(graph)[shown]["text"] == [golden_.text["und.answer"].strip()]


@pytest.mark.parametrize("name", ["LatentBatch", "RepeatLatentBatch", "LatentFromBatch", "LatentFlip", "LatentBlend"])
def test_token_latents_in_latent_nodes(server, name):
    graph, sampler = token_graph(text="a cat", batch=2)
    latent = [sampler, 0]
    inputs = {
        "LatentBatch": dict(samples1=latent, samples2=latent),
        "RepeatLatentBatch": dict(samples=latent, amount=2),
        "LatentFromBatch": dict(samples=latent, batch_index=1, length=1),
        "LatentFlip": dict(samples=latent, flip_method="y-axis: horizontally"),
        "LatentBlend": dict(samples1=latent, samples2=latent, blend_factor=0.5),
    }[name]
    changed = graph.add(name, **inputs)
    decoded = graph.add("VAEDecode", samples=[changed, 0], vae=["1", 2])
    node = graph.add("PreviewImage", images=[decoded, 0])
    count = {"LatentBatch": 4, "RepeatLatentBatch": 4, "LatentFromBatch": 1}.get(name, 2)
    assert len(server.run(graph)[node]["images"]) == count
