"""Checks that need ComfyUI's modules in the process.

test_inside.py runs this file with ComfyUI's Python and folder, and the name of one check.
"""

import gc
import importlib.util
import json
import os
import sys
import weakref
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

PACK = Path(__file__).resolve().parents[2]
CHECK = sys.argv[1]
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
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from janus_core.checkpoint import build_model, build_vq, read_checkpoint  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
from pack.janus_core.errors import PromptError  # noqa: E402
from pack.janus_core.finetunes import think  # noqa: E402
from pack.janus_core.sampling import cuda_graphs  # noqa: E402
from pack.janus_core.sampling.settings import TokenSamplerSettings  # noqa: E402
from pack.nodes import finetune_nodes, loader_nodes, residency, token_prompts, token_sampling  # noqa: E402
from pack.nodes.clip import make_clip  # noqa: E402

GOLDENS = PACK / "tests" / "data" / "goldens"
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def layers_without_weights_load_a_checkpoint():
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
    """Treats the CPU as a GPU, with replays of operations in place of CUDA graphs. Yields weak references to them."""
    replays = []

    def capture(function, device):
        replay = cpu_graph.capture(function)
        replays.append(weakref.WeakMethod(replay))
        return replay

    as_gpu = mock.patch.object(residency, "capture_for", lambda device: cuda_graphs.capture_for(GPU))
    with mock.patch.object(cuda_graphs, "cuda_graph", capture), as_gpu:
        yield replays


def model_and_sample(name: str):
    """A golden checkpoint's MODEL and a function that samples latents with it."""
    checkpoint = read_checkpoint(GOLDENS / name)
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


def pro_and_goldens():
    """What Load Janus-Pro gives for ar-a in float32, and finetunes.safetensors with its texts and an IMAGE."""
    folder = GOLDENS / "ar-a"
    checkpoint = read_checkpoint(folder)
    model = loader_nodes.make_patcher(checkpoint, "fp32")
    vae = model.model.vae = loader_nodes.JanusVAE(checkpoint)
    texts = json.loads((folder / "finetunes.json").read_text(encoding="utf-8"))["texts"]
    image = torch.from_numpy(np.array(Image.open(folder / "picture.png").convert("RGB"))) / 255
    return model, make_clip(model, checkpoint), vae, load_file(folder / "finetunes.safetensors"), texts, image[None]


def guided_logits(model, positive, negative):
    """The guided logits of the first six tokens that Janus Token Sampler samples."""
    logits, sample = [], token_sampling.sample_image_tokens

    def logged(*args, **kwargs):
        for step in sample(*args, **kwargs):
            logits.append(step.logits[0].clone())
            yield step

    with mock.patch.object(token_sampling, "sample_image_tokens", logged):
        token_sampling.sample(
            model, positive, negative, {"samples": torch.zeros(1, 8, 6, 6)}, TokenSamplerSettings(temperature=0)
        )
    return torch.stack(logits[:6])


def prompts_of_fine_tuned_models_are_exact():
    """Token ids, embeddings, masks and guided logits of the nodes' conditionings are the authors'."""
    model, clip, vae, expected, texts, source = pro_and_goldens()
    network = model.model.diffusion_model

    def compare(name, positive, negative, prefix=""):
        logits = guided_logits(model, positive, negative)
        assert (logits - expected[f"{name}.{prefix}logits"]).abs().max() < 1e-4, name
        ids = next(
            expected[f"{name}.{prefix}{k}"] for k in ("cond_ids", "full_ids") if f"{name}.{prefix}{k}" in expected
        )
        assert torch.equal(positive[0][1]["janus_ids"], ids)
        assert torch.equal(negative[0][1]["janus_ids"], expected[f"{name}.{prefix}uncond_ids"])
        if f"{name}.{prefix}embeds" in expected:
            prompts = token_prompts.read_prompts(positive, negative, 1, network)
            rows = [*prompts.cond, *(prompts.part or []), *prompts.uncond]
            embeds = torch.stack([row.embeds for row in rows])
            assert (embeds - expected[f"{name}.{prefix}embeds"]).abs().max() < 1e-4, name

    for case in ("p0", "p1"):
        name = f"janus4o.{case}"
        compare(name, *finetune_nodes.JanusImagePrompt.execute(clip, vae, source, texts[name]["prompt"]).result)
        for key, recipe in (("reasongen", "reasongen-r1"), ("t2i_r1", "t2i-r1"), ("got_r1", "got-r1")):
            name = f"{key}.{case}"
            result = finetune_nodes.JanusThink.execute(clip, texts[name]["prompt"], recipe, 0.0, 0, 12).result
            assert result[2] == texts[name]["text"]
            compare(name, *result[:2])
        name = f"pro_r1.{case}"
        image = expected[f"{name}.picture"][None].float() / 255
        result = finetune_nodes.JanusReflect.execute(clip, vae, image, texts[name]["prompt"], 0.0, 0, 12).result
        assert result[2] is (texts[name]["verdict"] == "Yes")
        compare(name, *result[:2], prefix="redraw.")
        mask = result[0][0][1]["attention_mask"][0]
        assert torch.equal(mask, expected[f"{name}.redraw.mask"])


def stock_nodes_change_both_conditional_rows():
    """Both rows are made from the changed tensor; they differ where the first has VQ tokens and the second pads."""
    import nodes as stock

    model, clip, vae, _, _, source = pro_and_goldens()
    network = model.model.diffusion_model
    positive, negative = finetune_nodes.JanusImagePrompt.execute(clip, vae, source, "make it red", 2.0).result
    part = positive[0][1]["janus_part"]
    other = clip.encode_from_tokens_scheduled(clip.tokenize("a dog"))
    changes = {
        "average": stock.ConditioningAverage().addWeighted(positive, other, 0.3)[0],
        "concat": stock.ConditioningConcat().concat(positive, other)[0],
        "zero": stock.ConditioningZeroOut().zero_out(positive)[0],
        "range": stock.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.5)[0],
    }
    for name, changed in changes.items():
        prompts = token_prompts.read_prompts(changed, negative, 1, network)
        (cond,), (second,), (uncond,) = prompts.cond, prompts.part, prompts.uncond
        assert prompts.part_weight == 2.0 and len(cond.embeds) == len(second.embeds) == len(uncond.embeds), name
        assert torch.equal(cond.embeds, changed[0][0][0]), name
        differs = (cond.embeds != second.embeds).any(-1).nonzero().flatten().tolist()
        assert differs == list(range(part.start, part.end)), name
        assert torch.equal(second.embeds[part.start], part.pad.float()), name
    assert len(changes["concat"][0][0][0]) > len(positive[0][0][0])
    combined = stock.ConditioningCombine().combine(positive, changes["average"])[0]
    prompts = token_prompts.read_prompts(combined, negative, 2, network)
    assert len(prompts.cond) == len(prompts.part) == 2 and len(prompts.uncond) == 1
    prompts = token_prompts.read_prompts(other, positive, 1, network)
    assert prompts.part is None, "a negative's second row is not used"
    for conds in (combined + positive, stock.ConditioningCombine().combine(positive, other)[0]):
        try:
            token_prompts.read_prompts(conds, negative, 2, network)
        except PromptError as error:
            assert "\n" not in str(error)
        else:
            raise AssertionError("three prompts for two images, and an image in one of two, must be refused")


def planned_boxes_fit_stock_draw_bboxes():
    """GoT-R1's boxes are in pixels; Draw BBoxes prints a label only if it is a name of COCO."""
    from comfy_extras.nodes_rtdetr import DrawBBoxes

    _, clip, _, _, _, _ = pro_and_goldens()

    def planned(label, recipe="got-r1"):
        plan = f"<|obj_start|>{label}<|obj_end|> <|box_start|>(250,250),(750,500)<|box_end|><begin_of_image>"
        thought = think.Thought(
            plan, clip.cond_stage_model.embedder.prompt(clip.cond_stage_model.prompts.conditional("a"))
        )
        with mock.patch.object(finetune_nodes, "think", lambda *args, **kwargs: [thought]):
            return finetune_nodes.JanusThink.execute(clip, "a", recipe).result[3]

    box = {"x": 24.0, "y": 24.0, "width": 48.0, "height": 24.0, "label": "cat", "score": 1.0}
    clip.cond_stage_model.set_clip_options({"execution_device": CPU})
    assert planned("cat") == [[box]] and planned("cat", "t2i-r1") == [[]]
    named, other = (
        DrawBBoxes.execute(planned(label), torch.zeros(1, 96, 96, 3)).result[0][0] for label in ("cat", "cube")
    )
    for image in (named, other):
        assert image[24, 24:72].any() and not image[:20].any() and not image[80:].any()
    assert named[28:44, 28:68].any() and not other[28:44, 28:68].any()


with torch.inference_mode():
    globals()[CHECK]()
