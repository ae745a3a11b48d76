"""Checks that need ComfyUI's modules in the process: run by test_inside.py with ComfyUI's Python and folder."""

import gc
import importlib.util
import sys
import weakref
from functools import partial
from pathlib import Path
from unittest import mock

PACK = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path.cwd()), str(PACK), str(PACK / "tests" / "core")]
sys.argv = ["inside", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.cli_args  # noqa: E402
import comfy.memory_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import cpu_graph  # noqa: E402
import torch  # noqa: E402

from janus_core.checkpoint import build_model, build_vq, read_checkpoint  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
from pack.janus_core.sampling.choice import Choice  # noqa: E402
from pack.nodes import loader_nodes, residency, token_sampling  # noqa: E402
from pack.nodes.clip import make_clip  # noqa: E402

GOLDENS = PACK / "tests" / "data" / "goldens"


def models_load_into_layers_that_are_empty_until_loaded():
    """With dynamic VRAM, ComfyUI's Linear has no weight before its state dict is loaded."""
    comfy.memory_management.aimdo_enabled = True
    for name in ("ar-a", "flow-a"):
        checkpoint = read_checkpoint(GOLDENS / name)
        reference = build_model(checkpoint, dtype=torch.float32)
        ids = torch.arange(10)[None]
        expected = reference.llama(reference.embed_text(ids, torch.float32))
        for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast):
            model = build_model(checkpoint, operations=operations, dtype=torch.float32)
            assert torch.allclose(model.llama(model.embed_text(ids, torch.float32)), expected, atol=1e-5)
    build_vq(read_checkpoint(GOLDENS / "ar-a"), operations=comfy.ops.disable_weight_init)


def pictures(name: str):
    """A golden checkpoint's MODEL, what it draws without recording, how to draw that again, and what was recorded.

    A recorder that works on a CPU stands in for CUDA graphs.
    """
    checkpoint = read_checkpoint(GOLDENS / name)
    model = loader_nodes.make_patcher(checkpoint, "fp32")
    clip = make_clip(model, checkpoint)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a cat", "a blurry photo"))
    made = []

    def counting(work):
        again = cpu_graph.record(work)
        made.append(weakref.WeakMethod(again))
        return again

    def draw():
        if name == "ar-a":
            latent = {"samples": torch.zeros(2, 8, 6, 6)}
            settings = dict(seed=3, cfg=5.0, cfg_interval=(0.0, 1.0), choice=Choice(), window=1)
            return token_sampling.sample(model, positive, negative, latent, **settings)["samples"]
        latent = torch.zeros(2, 4, 12, 12)
        noise = comfy.sample.prepare_noise(latent, 5)
        return comfy.sample.sample(model, noise, 10, 2.0, "heun", "simple", positive, negative, latent, seed=5)

    plain = draw()
    residency.recorder = lambda device: counting
    return model, plain, draw, made


def recorded_steps_draw_the_same():
    """On both MODELs, and not where a layer is cast, patched, replaced or elsewhere."""
    for name, recordings in (("ar-a", 1), ("flow-a", 2)):  # the flow's sides are of two lengths
        model, plain, draw, made = pictures(name)
        gc.disable()
        assert torch.allclose(draw(), plain, atol=1e-4) and len(made) == recordings
        assert all(recording() is None for recording in made)  # gone with the run, without garbage collection
        gc.enable()
        network = model.model.diffusion_model
        layer = network.llama.layers[1].mlp.up_proj
        replaced = partial(type(layer).forward, layer)
        changes = {"comfy_cast_weights": True}, {"weight_function": [lambda w: w]}, {"forward": replaced}
        for change in (*changes, {"_forward_pre_hooks": {0: print}}):
            with mock.patch.multiple(layer, **change):
                assert residency.recorder_for(network, torch.device("cpu"), torch.float32) is None, change
                if "_forward_pre_hooks" not in change:
                    assert torch.allclose(draw(), plain, atol=1e-4) and len(made) == recordings, change
        with mock.patch.object(comfy.cli_args.args, "disable_cuda_graphs", True):
            assert torch.allclose(draw(), plain, atol=1e-4) and len(made) == recordings
        where = [
            (torch.device("cpu"), torch.float32),
            (torch.device("cpu"), torch.float16),
            (torch.device("meta"), None),
        ]
        assert [residency.recorder_for(network, *place) is None for place in where] == [False, True, True]
        draw()
        assert len(made) == 2 * recordings
        if name == "flow-a":
            options = model.model_options["transformer_options"]
            options["optimized_attention_override"] = lambda attention, *args, **kwargs: attention(*args, **kwargs)
            assert torch.allclose(draw(), plain, atol=1e-4) and len(made) == 2 * recordings
            del options["optimized_attention_override"]
            with mock.patch("torch.compiler.is_compiling", lambda: True):
                assert torch.allclose(draw(), plain, atol=1e-4) and len(made) == 2 * recordings


def models_that_fit_are_loaded_as_a_whole():
    """With dynamic VRAM there are two kinds of patchers."""
    dynamic = type("Dynamic", (comfy.model_patcher.ModelPatcher,), {})
    plain, cast = (
        build_model(read_checkpoint(GOLDENS / "ar-a"), operations)
        for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    )

    def kind(model, device: str, memory: float):
        with mock.patch("comfy.model_management.get_total_memory", lambda device: memory):
            return residency.patcher_class(model, torch.device(device))

    with (
        mock.patch("comfy.model_patcher.CoreModelPatcher", dynamic),
        mock.patch.object(residency, "recorder", lambda device: True if device.type == "cuda" else None),
    ):
        assert kind(plain, "cuda:0", 8e9) is comfy.model_patcher.ModelPatcher
        assert kind(plain, "cuda:0", 1e9) is kind(cast, "cuda:0", 8e9) is kind(plain, "cpu", 8e9) is dynamic


with torch.inference_mode():
    recorded_steps_draw_the_same()
    models_that_fit_are_loaded_as_a_whole()
    models_load_into_layers_that_are_empty_until_loaded()
print("fine")
