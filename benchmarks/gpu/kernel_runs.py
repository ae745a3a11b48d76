"""Each Triton kernel by itself: microseconds by graph replay, GB/s, and the error against float64.

On a GPU every repeat reads other weights, so that they come from memory and not from a cache. On a CPU the kernels run
in Triton's interpreter, in float32, for their errors only.
"""

from dataclasses import dataclass
from functools import partial

import torch

from janus_core.sampling.cuda_graphs import cuda_graph

from .. import baselines, speed
from .parts import Context, NotRun

ROWS = (1, 2, 8, 32)
POSITIONS = (20, 300, 590)
WEIGHTS = {"bf16": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
CACHE_BYTES = 4e8  # of weights per round, several times the cache of any GPU
PROMPT, CAPACITY = 4, 600


@dataclass
class Shapes:
    """One block's."""

    hidden: int
    inner: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


TINY = Shapes(64, 96, 2)


def cases(context: Context):
    sizes = {"tiny": TINY} if context.is_tiny else {size: shapes_of(size) for size in ("1b", "7b")}
    for size, shapes in sizes.items():
        for rows in ROWS[1:2] if context.is_tiny else ROWS:
            for weights in ("bf16", "int8") if context.is_tiny else WEIGHTS:
                for kernel in ("qkv", "gate_up", "down"):
                    yield (
                        f"{size}, {kernel}, {rows} rows, {weights}",
                        partial(matmul, context, shapes, kernel, rows, WEIGHTS[weights]),
                    )
            for position in POSITIONS[:1] if context.is_tiny else POSITIONS:
                yield (
                    f"{size}, attention, {rows} rows, position {position}",
                    partial(attention, context, shapes, rows, position),
                )


def shapes_of(size: str) -> Shapes:
    hidden, inner, _, heads = baselines.SIZES[size].values()
    return Shapes(hidden, inner, heads)


def kernels_module():
    try:
        from janus_core.triton_decoder import kernels
    except ImportError as error:
        raise NotRun(f"Triton cannot be imported: {error}") from error
    return kernels


def random_layer(outputs: int, inputs: int, storage, dtype, device):
    """(weight, scale or None) as the kernels take them."""
    weight = torch.randn(outputs, inputs, device=device) * inputs**-0.5
    if storage is None:
        return weight.to(dtype), None
    limit = 127 if storage == torch.int8 else 448
    scale = weight.abs().amax(1, keepdim=True) / limit
    scaled = weight / scale
    return (scaled.round() if storage == torch.int8 else scaled).to(storage), scale.flatten()


def wide(layer):
    weight, scale = layer
    return weight.double() if scale is None else weight.double() * scale.double()[:, None]


def normed(x, norm):
    gain, eps = norm
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain.double()


@torch.inference_mode()
def matmul(context: Context, shapes: Shapes, kernel: str, rows: int, storage) -> dict:
    kernels, device = kernels_module(), torch.device(context.device)
    if storage == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        raise NotRun("this GPU's Triton does not convert fp8")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    h, f = shapes.hidden, shapes.inner
    outputs = {"qkv": (h, h, h), "gate_up": (f, f), "down": (h,)}[kernel]
    inputs = f if kernel == "down" else h
    one = sum(outputs) * inputs * (1 if storage else dtype.itemsize)
    copies = 1 if device.type == "cpu" else max(2, int(CACHE_BYTES / one))
    sets = [[random_layer(n, inputs, storage, dtype, device) for n in outputs] for _ in range(copies)]
    x = torch.randn(rows, inputs, device=device).to(dtype)
    norm = (1 + 0.1 * torch.randn(inputs, device=device)).to(dtype), 1e-6
    out = torch.empty(rows, outputs[0], dtype=dtype, device=device)

    def found():
        return out

    if kernel == "qkv":
        launch, found, expected = qkv(kernels, shapes, x, norm, out, sets, device, dtype)
    elif kernel == "gate_up":
        launch = [partial(kernels.gate_up, x, norm, *layers, out) for layers in sets]
        gate, up = (normed(x, norm) @ wide(layer).T for layer in sets[0])
        expected = torch.nn.functional.silu(gate) * up
    else:
        residual = torch.randn(rows, h, device=device).to(dtype)
        launch = [partial(kernels.linear_residual, x, layers[0], residual, out) for layers in sets]
        expected = residual.double() + x.double() @ wide(sets[0][0]).T
    launch[0]()
    return {"error": speed.relative_error(found(), expected), **timing(launch, one, device)}


def qkv(kernels, shapes, x, norm, out, sets, device, dtype):
    """What launches the kernel for each set of weights; what a launch has computed, and what the first should compute:
    queries and the keys and values in their slots, [3, rows, heads * dim]."""
    rows, dim = len(x), shapes.head_dim
    keys, values = (torch.zeros(rows, shapes.heads, 32, dim, dtype=dtype, device=device) for _ in range(2))
    angles = torch.randn(32, dim // 2, device=device)
    rotary, starts = [angles.cos(), angles.sin()], torch.zeros(rows, dtype=torch.long, device=device)
    slot = torch.full((1,), PROMPT, device=device)
    launch = [
        partial(kernels.qkv_projection, x, norm, layers, rotary, starts, slot, keys, values, out) for layers in sets
    ]
    cos, sin = (table[PROMPT].double() for table in rotary)

    def rotated(projected):
        a, b = projected.view(rows, shapes.heads, 2, dim // 2).unbind(2)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=2).view(rows, -1)

    q, k, v = (normed(x, norm) @ wide(layer).T for layer in sets[0])
    slots = keys[:, :, PROMPT], values[:, :, PROMPT]
    return launch, lambda: torch.stack((out, *(s.flatten(1) for s in slots))), torch.stack((rotated(q), rotated(k), v))


@torch.inference_mode()
def attention(context: Context, shapes: Shapes, rows: int, position: int) -> dict:
    kernels, device = kernels_module(), torch.device(context.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    heads, dim, seen = shapes.heads, shapes.head_dim, position + 1
    one = 2 * rows * heads * seen * dim * dtype.itemsize
    copies = 1 if device.type == "cpu" else max(2, min(32, int(CACHE_BYTES / one)))
    caches = [
        [torch.randn(rows, heads, CAPACITY, dim, device=device).to(dtype) for _ in range(2)] for _ in range(copies)
    ]
    queries = torch.randn(rows, heads * dim, device=device).to(dtype)
    out, starts = torch.empty_like(queries), torch.zeros(rows, dtype=torch.long, device=device)
    slot = torch.full((1,), position, device=device)
    launch = [partial(kernels.attention, queries, *cache, starts, slot, out) for cache in caches]
    launch[0]()
    k, v = (cache[:, :, :seen].double() for cache in caches[0])
    scores = queries.double().view(rows, heads, 1, dim) @ k.transpose(-1, -2) * dim**-0.5
    expected = (scores.softmax(-1) @ v).view(rows, -1)
    error = ((out.double() - expected).norm() / expected.norm()).item()
    return {"error": error, **timing(launch, one, device)}


def timing(launch: list, size: int, device) -> dict:
    """Microseconds of one launch, and GB/s of what it reads; nothing on a CPU."""
    if device.type == "cpu":
        return {}

    def all_of_them():
        for one in launch:
            one()

    all_of_them()
    replay = cuda_graph(all_of_them, device)
    replay()
    seconds = min(speed.timed(replay, device) for _ in range(10)) / len(launch)
    return {"us": 1e6 * seconds, "GB_s": size / seconds / 1e9}
