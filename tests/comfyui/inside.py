"""Checks that need ComfyUI's modules in the process.

test_inside.py runs this file with ComfyUI's Python and folder, and the name of one check.
"""

import gc
import os
import sys
import weakref
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

from load_pack import PACK  # isort: split

import comfy.cli_args
import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import cpu_graph
import torch
from mappings import file_of
from pack.janus_core.sampling import cuda_graphs
from pack.janus_core.sampling.settings import TokenSamplerSettings
from pack.nodes import loader_nodes, residency, token_sampling
from pack.nodes.clip import make_clip

from janus_core.checkpoint import build_model, build_vq, read_checkpoint

CHECK = sys.argv[1]
GOLDENS = PACK / "tests" / "data" / "goldens"
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def layers_without_weights_load_a_checkpoint():
    """With dynamic VRAM, ComfyUI's Linear has no weight before its state dict is loaded."""
    with mock.patch.object(comfy.memory_management, "aimdo_enabled", True):
        for name in ("ar-a", "flow-a"):
            checkpoint = read_checkpoint(GOLDENS / name)
            reference = build_model(checkpoint, dtype=torch.float32)
            ids = torch.arange(10)[None]
            expected = reference.llama(reference.embed_text(ids, torch.float32))
            for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast):
                model = build_model(checkpoint, operations=operations, dtype=torch.float32)
                assert torch.allclose(model.llama(model.embed_text(ids, torch.float32)), expected, atol=1e-5)
        build_vq(read_checkpoint(GOLDENS / "ar-a"), operations=comfy.ops.disable_weight_init)


@contextmanager
def cuda_graphs_on(switch: str | None):
    """An environment with JANUS_CUDA_GRAPHS at `switch`, and a torch that is built for CUDA."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.version, "cuda", "12.8"))
        stack.enter_context(mock.patch.dict(os.environ))
        os.environ.pop(cuda_graphs.SWITCH, None)
        if switch is not None:
            os.environ[cuda_graphs.SWITCH] = switch
        yield


@contextmanager
def captures_on_cpu():
    """Treats the CPU as a GPU: ComfyUI's own layers, and replays of operations in place of CUDA graphs.

    Yields weak references to the replays.
    """
    replays = []

    def capture(function, device):
        replay = cpu_graph.capture(function)
        replays.append(weakref.WeakMethod(replay))
        return replay

    as_gpu = mock.patch.object(residency, "capture_for", lambda device: cuda_graphs.capture_for(GPU))
    with mock.patch.object(cuda_graphs, "cuda_graph", capture), as_gpu:
        yield replays


no_packed_layers = mock.patch("pack.nodes.operations.available", lambda dtype: False)


def model_and_sample(name: str):
    """A golden checkpoint's MODEL and a function that samples latents with it."""
    checkpoint = read_checkpoint(GOLDENS / name)
    with no_packed_layers:
        model = loader_nodes.make_patcher(checkpoint, "fp32")
    clip = make_clip(model, checkpoint)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", "a blurry photo"))

    def sample():
        if name == "ar-a":
            latent = {"samples": torch.zeros(2, 8, 6, 6)}
            return token_sampling.sample(model, positive, negative, latent, TokenSamplerSettings(seed=3))["samples"]
        latent = torch.zeros(2, 4, 12, 12)
        noise = comfy.sample.prepare_noise(latent, 5)
        return comfy.sample.sample(model, noise, 10, 2.0, "heun", "simple", positive, negative, latent, seed=5)

    return model, sample


def captured_steps_give_the_same_latents():
    """On both MODELs; nothing is captured where a layer is cast, patched, replaced or on another device."""
    for name, graphs in (("ar-a", 1), ("flow-a", 2)):  # JanusFlow's prompts are of two lengths
        model, sample = model_and_sample(name)
        expected = sample()
        with cuda_graphs_on("1"), captures_on_cpu() as replays:
            captures = partial(captures_of, sample, expected, replays)
            gc.disable()
            assert captures() == graphs
            assert all(replay() is None for replay in replays), "a run frees its graphs without garbage collection"
            gc.enable()
            check_modified_layers(model, captures)
            with mock.patch.object(comfy.cli_args.args, "disable_cuda_graphs", True):
                assert captures() == 0
            assert captures() == graphs
            if name == "flow-a":
                options = model.model_options["transformer_options"]
                options["optimized_attention_override"] = lambda attention, *args, **kwargs: attention(*args, **kwargs)
                assert captures() == 0
                del options["optimized_attention_override"]
                options["multigpu_thread_device"] = GPU  # as ComfyUI sets it in the thread of each GPU's clone
                assert captures() == 0
                del options["multigpu_thread_device"]
                with mock.patch("torch.compiler.is_compiling", lambda: True):
                    assert captures() == 0


def captures_of(sample, expected, replays) -> int:
    """How often a run captures; its latents have to be as expected."""
    before = len(replays)
    assert torch.allclose(sample(), expected, atol=1e-4)
    return len(replays) - before


def check_modified_layers(model, captures):
    network = model.model.diffusion_model
    layer = network.llama.layers[1].mlp.up_proj
    for change in (
        {"comfy_cast_weights": True},
        {"weight_function": [lambda w: w]},
        {"forward": partial(type(layer).forward, layer)},
        {"_forward_pre_hooks": {0: lambda *args: None}},
    ):
        with mock.patch.multiple(layer, **change):
            assert residency.capture_for_network(network, CPU, torch.float32) is None, change
            assert captures() == 0, change
    assert residency.capture_for_network(network, CPU, torch.float32)
    assert residency.capture_for_network(network, CPU, torch.float16) is None
    assert residency.capture_for_network(network, torch.device("meta"), torch.float32) is None


def nothing_is_captured_unless_turned_on():
    """Without JANUS_CUDA_GRAPHS=1 no step is captured, and the patcher is the one that ComfyUI chose."""
    dynamic = type("Dynamic", (comfy.model_patcher.ModelPatcher,), {})
    for name in ("ar-a", "flow-a"):
        model, sample = model_and_sample(name)
        for switch in (None, "0", ""):
            with cuda_graphs_on(switch), captures_on_cpu() as replays:
                sample()
                assert replays == []
                with mock.patch("comfy.model_patcher.CoreModelPatcher", dynamic):
                    assert residency.patcher_class(model.model, GPU) is dynamic


def a_model_that_fits_is_loaded_as_a_whole():
    """With dynamic VRAM and CUDA graphs, a model gets the static patcher where its weights fit on the GPU unchanged."""
    dynamic = type("Dynamic", (comfy.model_patcher.ModelPatcher,), {})
    plain, cast = (
        build_model(read_checkpoint(GOLDENS / "ar-a"), operations)
        for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    )

    def patcher(model, device, memory: float):
        with mock.patch("comfy.model_management.get_total_memory", lambda device: memory):
            return residency.patcher_class(model, device)

    with mock.patch("comfy.model_patcher.CoreModelPatcher", dynamic), cuda_graphs_on("1"):
        assert patcher(plain, GPU, 8e9) is comfy.model_patcher.ModelPatcher
        assert patcher(plain, GPU, 1e9) is patcher(cast, GPU, 8e9) is patcher(plain, CPU, 8e9) is dynamic


def the_dynamic_loader_is_told_what_comes_first():
    """Every weight that generation does not use comes last, the decoder's blocks first, and no module twice."""
    for name in ("ar-a", "flow-a"):
        model, _ = model_and_sample(name)
        first, last = model.model.get_dynamic_vram__units()
        network, blocks = model.model.diffusion_model, list(model.model.diffusion_model.llama.layers)
        assert first[: len(blocks)] == blocks and len(first) > len(blocks)
        names = {module: name for name, module in network.named_modules()}
        assert not {m for unit in first for m in unit.modules()} & {m for unit in last for m in unit.modules()}
        unused = {n for n, _ in network.named_parameters() if n.startswith(network.unused_in_generation)}
        told = {f"{names[unit]}.{n}" for unit in last for n, _ in unit.named_parameters()}
        assert unused - told <= {"beg_of_und_embed"} and told <= unused and len(told) > 10
        weights = sum(p.numel() * p.itemsize for n, p in network.named_parameters() if n not in unused)
        assert 0 <= model.model.generation_bytes() - weights < 0.01 * weights


def a_model_that_does_not_fit_is_warned_of():
    model, _ = model_and_sample("ar-a")
    logged = []
    with (
        mock.patch.object(residency.logging, "warning", logged.append),
        mock.patch("comfy.model_management.minimum_inference_memory", lambda: 0),
        mock.patch("comfy.model_management.get_total_memory", lambda device: 8e9),
        mock.patch.object(model.model, "generation_bytes", lambda: 13.2e9),
    ):
        residency.warn_of_streaming(model, 1, 576, 1e9)
        assert logged == []  # on a CPU
        model.load_device = GPU
        for _ in range(2):
            residency.warn_of_streaming(model, 1, 576, 1e9)
    (message,) = logged
    assert "about 6.2 GB" in message and "about 5 min" in message and "int4" in message
    assert residency.streaming_message(6e9, 7e9, 1, 576) is None
    assert "about 1 min" in residency.streaming_message(13.2e9, 7e9, 8, 576)


def a_reloaded_model_has_its_vae():
    """ComfyUI makes another MODEL for other devices and classes of patchers: for previews, and to be saved."""
    model = loader_nodes.reload_patcher(GOLDENS / "ar-a", "default", disable_dynamic=True).model
    assert model.vae is not None
    assert any("gen_vision_model." in name for name in model.saved_beside())


def weights_quantised_on_a_cpu_are_memory_mapped():
    """Then only the packed copy is private memory. A LoRA's weight is not, and the mapped one comes back after it."""
    checkpoint = read_checkpoint(GOLDENS / "ar-a")
    for weight_dtype in ("int8", "fp8_e4m3fn"):
        model = loader_nodes.make_patcher(checkpoint, weight_dtype)
        layer = model.model.diffusion_model.llama.layers[0].mlp.up_proj
        values = layer.weight._qdata.clone()
        assert file_of(layer.weight._qdata) and not file_of(values)
        patched = model.clone()
        key = "diffusion_model.language_model.model.layers.0.mlp.up_proj.weight"
        patched.add_patches({key: (torch.ones(layer.weight.shape),)})
        patched.patch_model()
        assert not file_of(layer.weight._qdata) and not torch.equal(layer.weight._qdata.float(), values.float())
        patched.unpatch_model()
        assert file_of(layer.weight._qdata) and torch.equal(layer.weight._qdata.float(), values.float())


with torch.inference_mode():
    globals()[CHECK]()
