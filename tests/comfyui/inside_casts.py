"""Uses a MODEL, its CLIP and its VAE twice and fails if the second time casts, packs or unpacks a weight.

test_no_casts.py runs this file with ComfyUI's Python and folder, and a weight_dtype.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from unittest import mock

from load_pack import PACK  # isort: split

import comfy.ops
import comfy.sample
import torch
from pack.janus_core.checkpoint import read_checkpoint
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
    original = comfy.ops.cast_bias_weight
    with WeightCopies(getattr(layer.weight, "_qdata", layer.weight) for layer in layers) as copies:

        def cast(layer, *args, **kwargs):
            copies.counts[f"cast of {type(layer).__name__}"] += 1
            return original(layer, *args, **kwargs)

        with mock.patch.object(comfy.ops, "cast_bias_weight", cast):
            yield copies.counts


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


with torch.inference_mode():
    for name in ("ar-a", "flow-a"):
        counts = casts_of_second_use(name, sys.argv[1])
        assert not counts, f"{name}: {dict(counts)}"
    with mock.patch.object(operations, "available", lambda dtype: False):  # the control: ComfyUI's own layers
        counts = casts_of_second_use("ar-a", "default")
        assert counts["cast of Linear"] and counts["to"] + counts["_to_copy"], counts
