"""Uses a MODEL, its CLIP and its VAE twice and fails if the second time casts, packs or unpacks a weight.

test_no_casts.py runs this file with ComfyUI's Python and folder, and a weight_dtype.
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

from load_pack import PACK  # isort: split

import comfy.model_management
import comfy.ops
import comfy.sample
import torch
from pack.janus_core.checkpoint import build_model, read_checkpoint
from pack.janus_core.sampling.settings import TextSamplerSettings, TokenSamplerSettings
from pack.nodes import describe_node, loader_nodes, operations, token_sampling
from pack.nodes.clip import make_clip
from pack.nodes.vae import JanusVAE
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = ("Linear", "Conv2d")  # names, since ComfyUI's quantised layers are no torch.nn.Linear
PRODUCTS = ("mm", "addmm", "bmm", "linear", "conv2d", "convolution")  # what weights are for


class WeightCopies(TorchDispatchMode):
    """Counts operations that read a weight and return another tensor of the weight's shape, in `counts` by name."""

    def __init__(self, weights):
        super().__init__()
        self.shapes = {weight.data_ptr(): weight.shape for weight in weights}
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.__name__.partition(".")[0]
        if isinstance(result, torch.Tensor) and name not in PRODUCTS:
            shapes = [self.shapes.get(address(value)) for value in args]
            is_copy = any(shape in (result.shape, result.shape[::-1]) for shape in shapes if shape is not None)
            if is_copy and address(result) not in self.shapes:
                self.counts[name] += 1
        return result


def address(value) -> int | None:
    """Where a tensor's values begin; None for other values and for oneDNN's tensors, which do not tell."""
    is_plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return value.data_ptr() if is_plain else None


@contextmanager
def counted(*modules: torch.nn.Module):
    """Yields a Counter of what is done to the modules' weights.

    By operation the copies of a linear or convolutional layer's weight, and by class of the layer ComfyUI's casts.
    """
    layers = [layer for module in modules for layer in module.modules() if type(layer).__name__ in LAYERS]
    with WeightCopies(getattr(layer.weight, "_qdata", layer.weight) for layer in layers) as copies:
        with counted_casts(copies.counts):
            yield copies.counts


@contextmanager
def counted_casts(counts: Counter | None = None):
    """Yields a Counter of ComfyUI's casts of weights, by class of the layer."""
    counts, original = Counter() if counts is None else counts, comfy.ops.cast_bias_weight

    def cast(layer, *args, **kwargs):
        counts[f"cast of {type(layer).__name__}"] += 1
        return original(layer, *args, **kwargs)

    with mock.patch.object(comfy.ops, "cast_bias_weight", cast):
        yield counts


def casts_of_second_use(name: str, weight_dtype: str) -> Counter:
    """Generates an image, decodes it if its VAE is ours, and describes one; counts the second time."""
    checkpoint = read_checkpoint(PACK / "tests" / "data" / "goldens" / name)
    model = loader_nodes.make_patcher(checkpoint, weight_dtype)
    clip, vae = make_clip(model, checkpoint), JanusVAE(checkpoint) if name == "ar-a" else None
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", "a photo"))
    image = torch.rand(1, 96, 96, 3)

    def use():
        if vae is not None:
            empty = {"samples": torch.zeros(1, 8, 6, 6)}
            vae.decode(token_sampling.sample(model, positive, negative, empty, TokenSamplerSettings())["samples"])
        else:
            latent = torch.zeros(1, 4, 12, 12)
            noise = comfy.sample.prepare_noise(latent, 0)
            comfy.sample.sample(model, noise, 3, 2.0, "euler", "simple", positive, negative, latent)
        describe_node.describe(clip, image, "What is this?", TextSamplerSettings(max_new_tokens=3))

    use()
    with counted(model.model.diffusion_model, *([vae.first_stage_model] if vae else [])) as counts:
        use()
    return counts


def casts_on_gpu(device: str, has_bf16: bool) -> Counter:
    """Builds the network for a device that computes in bfloat16 or not, and counts ComfyUI's casts of a pass.

    Its weights and inputs are on the meta device: only the choice of layers is the device's.
    """
    checkpoint = read_checkpoint(PACK / "tests" / "data" / "goldens" / "ar-a")
    support = {"should_use_bf16": has_bf16, "should_use_fp16": True, "supports_fp8_compute": False}
    with ExitStack() as stack:
        for function, answer in support.items():
            answers = mock.Mock(return_value=answer)
            stack.enter_context(mock.patch.object(comfy.model_management, function, answers))
        layers = operations.choose_layers(checkpoint, "default", torch.device(device), torch.device("cpu"))
    model = build_model(checkpoint, operations=layers.operations, dtype=layers.stored, device="meta")
    dtype = layers.compute or layers.stored
    with counted_casts() as counts:
        model.llama(torch.zeros(2, 5, model.params.llama.hidden_size, dtype=dtype, device="meta"))
    return counts


with torch.inference_mode():
    for device in ("cuda:0", "mps"):
        assert not casts_on_gpu(device, has_bf16=True), "the file's own dtype needs no cast"
        assert casts_on_gpu(device, has_bf16=False), "the control"
    for name in ("ar-a", "flow-a"):
        counts = casts_of_second_use(name, sys.argv[1])
        assert not counts, f"{name}: {dict(counts)}"
    with mock.patch.object(operations, "available", lambda dtype: False):  # the control: ComfyUI's own layers
        counts = casts_of_second_use("ar-a", "default")
        assert counts["cast of Linear"] and counts["to"] + counts["_to_copy"], counts
