"""Cancelling, freeing memory, caches, previews, LoRAs, saving, weight dtypes and model folders."""

import struct
import time

import pytest
import torch
from conftest import latent_of, pixels_of
from converted import make_converted
from graphs import Graph, flow_graph, outputs_of, token_graph
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import janus_core
from benchmarks.comfyui_server import Failed
from janus_core.checkpoint import read_checkpoint, save_single_file
from janus_core.operations import multiplies_bf16

SLOW_TOKENS = dict(text="a cat", size=768, temperature=1.0)  # 2304 tokens
SLOW_FLOW = dict(text="a cat", seed=1, steps=3000)


@pytest.mark.parametrize("build", [lambda: token_graph(**SLOW_TOKENS), lambda: flow_graph(**SLOW_FLOW)])
def test_cancel_ends_within_a_second_and_the_next_run_works(server, build):
    graph, sampler = build()
    prompt_id = server.queue(graph)
    cancelled = ended = None
    for kind, data in server.events(prompt_id):
        now = time.perf_counter()
        if kind == "progress" and data["node"] == sampler and data["value"] >= 5 and cancelled is None:
            server.post("/interrupt", {})
            cancelled = now
        if kind == "execution_interrupted":
            ended = now
        assert kind != "execution_success"
    assert ended - cancelled < 1
    graph, _ = token_graph(text="a cat")
    assert outputs_of(graph, "SaveImage")[0] in server.run(graph)


def test_free_then_run_gives_the_same_image(server):
    graph, _ = token_graph(text="a cat", seed=11, temperature=1.0)
    node = outputs_of(graph, "SaveLatent")[0]
    before = latent_of(server, server.run(graph), node)
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)
    assert torch.equal(latent_of(server, server.run(graph), node), before)


def test_two_runs_load_the_weights_once(start):
    server = start("--verbose", "DEBUG")
    for build in (lambda seed: token_graph(text="a cat", seed=seed), lambda seed: flow_graph(text="a cat", seed=seed)):
        for seed in (1, 2):
            server.run(build(seed)[0])
    log = server.log()
    for module in ("diffusion_model.gen_head.vision_head ", "diffusion_model.vision_gen_enc_aligner ", "quant_conv "):
        assert log.count(f"loaded module regularly {module}") == 1, module
    assert "No VAE weights detected" not in log and "Missing VAE keys" not in log


@pytest.mark.parametrize("arguments", [("--cache-none",), ("--cache-lru", "1")])
def test_other_caches(start, golden, arguments):
    server = start(*arguments)
    flow = golden("flow-a")
    for _ in range(2):
        graph, _ = token_graph(text="a cat")
        assert pixels_of(server, server.run(graph), outputs_of(graph, "SaveImage")[0]).shape == (96, 96, 3)
        graph, _ = flow_graph(text=flow.text["gen0.prompt"], seed=2100)
        latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0]) * 0.13025
        assert (latent - flow.expected["gen0.steps30.cfg2.latent"]).abs().max() < 1e-4


def test_previews_during_sampling(server):
    """Both samplers send images while they run if previews are on, and none if they are off."""
    for build in (lambda: token_graph(**{**SLOW_TOKENS, "size": 256}), lambda: flow_graph(text="a", seed=1, steps=20)):
        for method in ("auto", "none"):
            graph, sampler = build()
            graph[sampler]["inputs"]["seed"] += method == "none"
            prompt_id = server.queue(graph, preview_method=method)
            previews = [data for kind, data in server.events(prompt_id) if kind == "preview"]
            images = [p for p in previews if struct.unpack(">I", p[:4])[0] in (1, 4)]
            assert bool(images) == (method == "auto")


@pytest.fixture(scope="module")
def lora(server, golden, tmp_path_factory):
    """A LoRA of the first query and value projections, with the keys of ComfyUI's own LoRA files."""
    torch.manual_seed(0)
    tensors = {}
    for name in ("q_proj", "v_proj"):
        key = f"diffusion_model.language_model.model.layers.0.self_attn.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(4, 96)
        tensors[f"{key}.lora_B.weight"] = torch.randn(96, 4)
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "test.safetensors")
    return "test.safetensors"


@pytest.mark.parametrize("build", [token_graph, lambda **kw: flow_graph(seed=4, steps=4, **kw)])
def test_lora_changes_the_latent_and_is_removed_without_trace(server, lora, build):
    graph, sampler = build(text="a cat")
    node = outputs_of(graph, "SaveLatent")[0]
    plain = latent_of(server, server.run(graph), node)
    patched, sampler = build(text="a cat")
    links = patched[sampler]["inputs"]
    loader = patched.add("LoraLoaderModelOnly", model=links["model"], lora_name=lora, strength_model=1.0)
    links["model"] = [loader, 0]
    changed = latent_of(server, server.run(patched), node)
    assert changed.isfinite().all() and not torch.allclose(plain, changed, atol=1e-3)
    unpatched, sampler = build(text="a cat", negative=" ")  # another input, so that ComfyUI runs it
    assert torch.equal(latent_of(server, server.run(unpatched), node), plain)


def test_weight_dtypes_on_a_cpu(server):
    """fp32 and fp16 compute in float32; default and bf16 in bfloat16 where the processor multiplies it natively."""

    def latent(weight_dtype):
        graph, _ = flow_graph(text="a cat", seed=1, steps=30)
        graph["1"]["inputs"]["weight_dtype"] = weight_dtype
        return latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])

    default, bf16, fp16, fp32 = (latent(weight_dtype) for weight_dtype in ("default", "bf16", "fp16", "fp32"))
    assert torch.equal(default, bf16) and torch.equal(fp16, fp32)
    assert (default - fp32).norm() < 0.05 * fp32.norm()
    assert torch.equal(default, fp32) == (not multiplies_bf16())


def test_a_single_file_gives_the_same_latent_as_its_folder(server, golden):
    ar = golden("ar-a")
    save_single_file(read_checkpoint(ar.folder), server.base / "models" / "janus" / "sub" / "one.safetensors")
    names = server.get("/object_info/JanusProLoader")["JanusProLoader"]["input"]["required"]["model_name"][1]["options"]
    assert {"ar-a", "sub/one.safetensors"} <= set(names) and "flow-a" not in names
    graph, _ = token_graph(text="a cat")
    folder = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    graph, _ = token_graph(text="a cat", name="sub/one.safetensors")
    single = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert torch.equal(folder, single)


def test_saved_latents_hold_float32(server):
    graph, _ = token_graph(text="a cat")
    outputs = server.run(graph)
    saved = load_file(server.file(outputs[outputs_of(graph, "SaveLatent")[0]]["latents"][0]))["latent_tensor"]
    assert saved.dtype == torch.float32 and saved.shape == (1, 8, 6, 6)


@pytest.mark.parametrize("build", [token_graph, lambda **kw: flow_graph(seed=1, steps=3, **kw)], ids=["janus", "flow"])
@pytest.mark.parametrize("node", ["ModelSave", "CheckpointSave"])
def test_a_saved_model_can_be_loaded(server, build, node):
    """Our loaders read what Model Save and Checkpoint Save write, tokenizer included, and the latent is the same."""
    graph, sampler = build(text="a cat")
    before = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    saving, _ = build(text="a cat")
    name = f"{graph['1']['class_type']}-{node}"
    extra = {}
    if node == "CheckpointSave":
        flow = graph["1"]["class_type"] == "JanusFlowLoader"
        vae = [saving.add("VAELoader", vae_name="sdxl_vae.safetensors"), 0] if flow else ["1", 2]
        extra = {"clip": ["1", 1], "vae": vae}
    saving.add(node, model=["1", 0], filename_prefix=f"saved/{name}", **extra)
    server.run(saving)
    file = next((server.base / "output" / "saved").glob(f"{name}*.safetensors"))
    file.rename(server.base / "models" / "janus" / f"{name}.safetensors")
    loaded, _ = build(text="a cat", name=f"{name}.safetensors")
    after = latent_of(server, server.run(loaded), outputs_of(loaded, "SaveLatent")[0])
    assert torch.allclose(before, after, atol=1e-5)


def test_a_file_of_several_dtypes(server, golden):
    """With projections in float16 and the rest in bf16 the latent is the same; fp8 without a scale is refused."""
    checkpoint = read_checkpoint(golden("flow-a").folder)
    tensors = dict(checkpoint.tensors)
    for name, dtype in (("mixed", torch.float16), ("fp8", torch.float8_e4m3fn)):
        checkpoint.tensors = {key: t.to(dtype) if "_proj.weight" in key else t for key, t in tensors.items()}
        save_single_file(checkpoint, server.base / "models" / "janus" / f"{name}.safetensors")
    graph, _ = flow_graph(text="a cat", seed=1, steps=3)
    before = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    graph, _ = flow_graph(text="a cat", seed=1, steps=3, name="mixed.safetensors")
    after = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    assert torch.allclose(before, after, atol=1e-4)
    graph, _ = flow_graph(text="a cat", seed=1, steps=3, name="fp8.safetensors")
    with pytest.raises(Failed, match="_proj.weight is torch.float8_e4m3fn"):
        server.run(graph)


@pytest.mark.parametrize("weight_dtype", ["int8", "fp8_e4m3fn"])
@pytest.mark.parametrize("build", [token_graph, flow_graph])
def test_weights_in_8_bits(server, build, weight_dtype):
    """ComfyUI's quantised layers give a latent similar to float32's, and Model Save stores the 8-bit weights."""
    text = "a red circle on a blue background"
    settings = {"seed": 1, "steps": 3} if build is flow_graph else {"name": "demo/janus-pro-demo", "size": 128}
    graph, _ = build(text=text, **settings)
    before = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    graph, _ = build(text=text, **settings)
    graph["1"]["inputs"]["weight_dtype"] = weight_dtype
    saved = graph.add("ModelSave", model=["1", 0], filename_prefix=f"saved/{graph['1']['class_type']}-{weight_dtype}")
    after = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    if build is flow_graph:
        assert not torch.equal(before, after) and (before - after).std() < 0.1 * before.std()
    else:
        assert (before == after).all(1).float().mean() > 0.9, "share of equal tokens"
    name = graph[saved]["inputs"]["filename_prefix"].removeprefix("saved/")
    file = next((server.base / "output" / "saved").glob(f"{name}*.safetensors"))
    with safe_open(file, framework="pt") as opened:
        stored = [opened.get_tensor(key).dtype for key in opened.keys() if key.endswith("gate_proj.weight")]
    assert set(stored) == {{"int8": torch.int8, "fp8_e4m3fn": torch.float8_e4m3fn}[weight_dtype]}
    file.rename(server.base / "models" / "janus" / f"{name}.safetensors")
    loaded, _ = build(text=text, **{**settings, "name": f"{name}.safetensors"})
    loaded["1"]["inputs"]["weight_dtype"] = "default"
    reloaded = latent_of(server, server.run(loaded), outputs_of(loaded, "SaveLatent")[0])
    assert torch.allclose(after, reloaded, atol=1e-5)


def test_a_size_that_the_model_was_not_trained_at_is_logged(server):
    for build in (token_graph, lambda **kw: flow_graph(seed=1, steps=1, **kw)):
        before = server.log().count("trained at 96x96")
        server.run(build(text="a dog", size=96)[0])
        assert server.log().count("trained at 96x96") == before
        server.run(build(text="a dog", size=64)[0])
        assert server.log().count("trained at 96x96") == before + 1


@pytest.mark.parametrize("vae", [None, "sdxl_vae.safetensors"])
def test_a_missing_vae_is_logged_when_the_model_is_loaded(start, sdxl_vae, vae):
    """Only where it is needed: not with a VAE installed, and not for the demo, which has its own."""
    server = start(models={f"vae/{vae or 'taesdxl.safetensors'}": sdxl_vae})
    for name in ("demo/janusflow-demo", "flow-a"):
        graph = Graph()
        loader = graph.add("JanusFlowLoader", model_name=name, weight_dtype="default")
        graph.add(
            "PreviewAny", source=[graph.add("JanusPromptEncode", clip=[loader, 1], text="a", negative_text=""), 0]
        )
        server.run(graph)
        assert ("put sdxl_vae.safetensors there" in server.log()) == (vae is None and name == "flow-a")


def test_other_folders_are_searched(start, golden, tmp_path_factory):
    """extra_model_paths.yaml's key `janus`, and an existing models/Janus-Pro."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "elsewhere").mkdir()
    (shared / "elsewhere" / "flow-b").symlink_to(golden("flow-a").folder, target_is_directory=True)
    config = shared / "paths.yaml"
    config.write_text(f"mine:\n  base_path: {shared}\n  janus: elsewhere\n")
    server = start("--extra-model-paths-config", str(config), models={"Janus-Pro/Janus-Pro-1B": golden("ar-a").folder})
    for loader, expected in (("JanusProLoader", {"ar-a", "Janus-Pro-1B"}), ("JanusFlowLoader", {"flow-a", "flow-b"})):
        listed = server.get(f"/object_info/{loader}")[loader]["input"]["required"]["model_name"][1]["options"]
        assert expected == {name for name in listed if not name.startswith("demo/")}
    assert server.run(token_graph(text="a", name="Janus-Pro-1B")[0])
    assert server.run(flow_graph(text="a", seed=0, steps=1, name="flow-b")[0])


def test_a_folder_in_the_transformers_layout(server, golden):
    """It is listed by its family's loader alone and gives the same latent as janus_core."""
    folder = server.base / "models" / "janus" / "converted"
    folder.mkdir()
    make_converted(folder, golden("ar-a").folder)
    options = {}
    for loader in ("JanusProLoader", "JanusFlowLoader"):
        info = server.get(f"/object_info/{loader}")[loader]
        options[loader] = info["input"]["required"]["model_name"][1]["options"]
    assert "converted" in options["JanusProLoader"] and "converted" not in options["JanusFlowLoader"]
    graph, _ = token_graph(text="a cat", name="converted", size=64)
    latent = latent_of(server, server.run(graph), outputs_of(graph, "SaveLatent")[0])
    pipe = janus_core.load(folder, device="cpu")
    assert torch.allclose(latent, pipe.generate_latents("a cat", temperature=0), atol=1e-6)


def test_links_to_one_folder_are_all_listed(server, golden):
    janus = server.base / "models" / "janus"
    (janus / "linked").symlink_to(golden("flow-a").folder, target_is_directory=True)
    (janus / "up").symlink_to(janus, target_is_directory=True)
    info = server.get("/object_info/JanusFlowLoader")["JanusFlowLoader"]
    assert {"flow-a", "linked"} <= set(info["input"]["required"]["model_name"][1]["options"])
