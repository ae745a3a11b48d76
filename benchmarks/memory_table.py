"""Memory of each model and weight format, counted on tensors without data: python -m benchmarks.memory_table."""

import torch

from janus_core.checkpoint import int4
from janus_core.checkpoint.quantize import DECODER_LAYERS
from janus_core.janus import Janus
from janus_core.janusflow import JanusFlow
from janus_core.networks.cache import KVCache

from . import baselines
from .synthetic import shapes_of

MODELS = {"Janus-Pro-1B": ("ar", "1b"), "Janus-Pro-7B": ("ar", "7b"), "JanusFlow-1.3B": ("flow", "1b")}
FORMATS = ("bf16", "int8", "int4")
PROMPT, IMAGE = 64, 576  # JanusFlow stores the keys and values of the prompt only
BATCHES = (1, 4)


def weight_tensors(name: str, shape, weights: str) -> list[torch.Tensor]:
    """What a format stores for a weight, on the meta device."""

    def empty(shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    if weights == "bf16" or len(shape) != 2 or not name.startswith(DECODER_LAYERS):
        return [empty(shape, torch.bfloat16)]
    if weights == "int4" and int4.can_hold(empty(shape, torch.bfloat16)):
        return [empty(*part) for part in int4.layout_of(*shape).values()]
    return [empty(shape, torch.int8), empty((shape[0], 1), torch.float32)]


def counted(family: str, size: str, weights: str) -> dict[str, int]:
    """Bytes of the file and, while images are generated, of weights on the GPU and of keys and values by batch."""
    unused = (Janus if family == "ar" else JanusFlow).unused_in_generation
    found = {"file": 0, "weights": 0}
    for name, shape in shapes_of(family, size)[1].items():
        size_of_it = sum(t.nbytes for t in weight_tensors(name, shape, weights))
        found["file"] += size_of_it
        if not name.startswith((*unused, "gen_vision_model.encoder.", "gen_vision_model.quant_conv.")):
            found["weights"] += size_of_it
    params, positions = baselines.llama_params(size), PROMPT + IMAGE if family == "ar" else PROMPT
    for batch in BATCHES:
        found[f"cache {batch}"] = KVCache.bytes(params, 2 * batch, positions, torch.bfloat16, "cuda")
    return found


def table() -> str:
    """Markdown, in GB of 1e9 bytes."""
    titles = ["model", "weights", "file", "weights on the GPU"]
    titles += [f"keys and values, batch {batch}" for batch in BATCHES]
    titles += [f"together, batch {batch}" for batch in BATCHES]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for model, (family, size) in MODELS.items():
        for weights in FORMATS:
            found = counted(family, size, weights)
            caches = [found[f"cache {batch}"] for batch in BATCHES]
            numbers = [found["file"], found["weights"], *caches, *(found["weights"] + cache for cache in caches)]
            cells = [model, weights, *(f"{number / 1e9:.2f}" for number in numbers)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
