"""Fuzz cases of the Python API: settings, sizes, tensors, prompts and images of wrong types and values."""

import math
import random
from functools import cache
from pathlib import Path

import torch
from PIL import Image

import janus_core
from janus_core.schema import shown

from .case import NOT_NUMBERS, OK, REFUSED, Case, pick
from .models import FAMILIES, write_tiny

BAD_FRACTION = (*NOT_NUMBERS[:10], *NOT_NUMBERS[11:], -0.01, 1.01, 1e300)
BAD_WHOLE = (*NOT_NUMBERS, 0.5, -1, 10**30)
BAD_TEMPERATURE = (*NOT_NUMBERS, -1, 5.1, *(10.0**-k for k in range(7, 308, 20)))
BAD_PAIR = (*NOT_NUMBERS[:7], (0,), (0, 1, 2), (0, "1"), (0.5, 0.2), (math.nan, 1), (0, math.inf), (True, 1), 0.5)
BAD_SIZES = (
    "16x16",
    16,
    (16,),
    (16, 16, 16),
    (16.0, 16),
    ("16", 16),
    (True, 16),
    (0, 16),
    (-16, 16),
    (17, 16),
    [],
    "",
    (10**9, 16),
    (2**40, 2**40),
    (4096, 4096),
    (None, 16),
    {"a": 1},
)
BAD_TENSORS = (
    "x",
    5,
    [],
    [[1.0]],
    True,
    torch.zeros(3),
    torch.zeros(1, 3, 2, 2),
    torch.zeros(0, 4, 2, 2),
    torch.zeros(1, 4, 2, 2, dtype=torch.int64),
    torch.zeros(1, 4, 0, 2),
    torch.full((1, 4, 2, 2), math.nan),
    torch.zeros(1, 4, 3, 3),
    torch.zeros(5, 4, 2, 2),
    torch.zeros(1, 4, 2, 2, dtype=torch.complex64),
)
BAD_TEXTS = (None, 5, b"a", True, {}, "\ud800", "word " * 3000)
BAD_IMAGES = ("x.png", 5, [], [[]], [None], Image.new("RGB", (0, 5)), [[Image.new("RGB", (8, 8))], []], b"x")
COMMON = {
    "seed": ((0, 7, 2**64 - 1), BAD_WHOLE),
    "guidance": ((0, 1, 5.0, 100), (*NOT_NUMBERS, -1, 100.1, 1e300)),
    "guidance_interval": (((0, 1), [0.2, 0.5], (0.0, 0.0)), BAD_PAIR),
    "num_images": ((1, 2), (*BAD_WHOLE, 0, 10**9)),
    "size": (((16, 16), (32, 16), [16, 32], None), BAD_SIZES),
    "negative_prompt": (("", "a dog", "  "), BAD_TEXTS[:-1]),  # a long one matters only where guidance acts
}
TOKENS = {
    "temperature": ((0, 1e-6, 1.0, 5), BAD_TEMPERATURE),
    "top_k": ((0, 1, 5, 2**31), BAD_WHOLE),
    "top_p": ((0, 0.5, 1), BAD_FRACTION),
    "window": ((1, 2, 256), (*BAD_WHOLE, 0, 257)),
}
FLOW = {
    "steps": ((1, 3), (*BAD_WHOLE, 0, 10001)),
    "denoise": ((1, 1.0), (*BAD_FRACTION, 0, 1e-300)),
    "noise": ((None, torch.zeros(1, 4, 2, 2)), BAD_TENSORS),
    "latents": ((None, torch.zeros(1, 4, 2, 2)), BAD_TENSORS),
}
TEXT = {
    "max_new_tokens": ((1, 3), (*BAD_WHOLE, 0, 4097)),
    "temperature": ((0, 1.0), BAD_TEMPERATURE),
    "top_k": ((0, 5), BAD_WHOLE),
    "top_p": ((0.5, 1), BAD_FRACTION),
    "seed": ((0, 3), BAD_WHOLE),
    "question": (("What?", ""), BAD_TEXTS),
    "images": ((Image.new("RGB", (20, 9)), [Image.new("L", (8, 8))] * 2), BAD_IMAGES),
}
LOAD = {
    "device": (("cpu", torch.device("cpu")), ("cuda:99", "meta", "x", 5.5, [], "cpu:x", {})),
    "dtype": ((torch.float32, torch.bfloat16, None), ("fp32", torch.int8, 5, [], torch.bool, torch.float8_e4m3fn)),
    "weight_dtype": ((None, "int8", "fp8_e4m3fn"), ("int3", 5, [], "", True, {})),
}


@cache
def pipeline(family: str, folder: Path):
    return janus_core.load(write_tiny(family, folder / f"api-{family}"), device="cpu", dtype=torch.float32)


def chosen(rng: random.Random, table: dict) -> tuple[dict, str | None]:
    """Good values of some settings and, mostly, one bad one: (settings, the bad one's name)."""
    values = {name: pick(rng, table[name][0]) for name in table if rng.random() < 0.4}
    if rng.random() < 0.15:
        return values, None
    bad = pick(rng, sorted(table))
    values[bad] = pick(rng, table[bad][1])
    return values, bad


def make(rng: random.Random, work: Path) -> Case:
    family = pick(rng, FAMILIES)
    pipe = pipeline(family, work.parent)
    kind = pick(rng, (generation, generation, description, loading, tensors, names))
    call, values, bad = kind(rng, pipe, family, work)
    given = ", ".join(f"{name}={shown(value)[:40]}" for name, value in values.items())
    return Case(f"{kind.__name__} {family}: {bad}; {given}", call, (OK,) if bad is None else (REFUSED,))


def generation(rng, pipe, family, work):
    table = {**COMMON, **(TOKENS if family == "janus" else FLOW)}
    values, bad = chosen(rng, table)
    if values.get("latents") is not None and bad != "denoise":
        values["denoise"] = 0.5
    if bad is None and (values.get("latents") is not None or values.get("noise") is not None):
        values |= {"num_images": 1, "size": (16, 16)}

    def call():
        made = pipe.generate_latents("a cat", **values)
        assert made.isfinite().all() and made.dim() == 4 and len(made) == values.get("num_images", 1)

    return call, values, bad


def description(rng, pipe, family, work):
    values, bad = chosen(rng, TEXT)
    images = values.pop("images", Image.new("RGB", (8, 8)))
    question = values.pop("question", "What?")
    values.setdefault("max_new_tokens", 2)

    def call():
        answers = pipe.describe(images, question, **values)
        assert all(isinstance(answer, str) for answer in answers)

    return call, {**values, "images": images, "question": question}, bad


def loading(rng, pipe, family, work):
    values, bad = chosen(rng, LOAD)
    folder = work.parent / f"api-{family}"
    return lambda: janus_core.load(folder, **{"device": "cpu", **values}), values, bad


def tensors(rng, pipe, family, work):
    """Methods that take tensors and images."""
    channels = 8 if family == "janus" else 4
    names = ["decode", "encode"] + (["tokens_of", "decode_tokens", "decode_pixels"] if family == "janus" else [])
    name = pick(rng, names)
    bad = pick(rng, BAD_TENSORS[:10]) if name != "encode" else pick(rng, (None, "x", 5, Image.new("RGB", (1, 1))))
    if name == "decode_tokens":
        bad = pick(
            rng, (*BAD_TENSORS, torch.zeros(1, 5, dtype=torch.int64), torch.full((1, 4), 10**6), torch.full((1, 4), -1))
        )
    if isinstance(bad, torch.Tensor) and name == "decode" and family == "janus":
        bad = pick(rng, (bad, torch.full((1, channels, 2, 2), math.inf)))
    return lambda: getattr(pipe, name)(bad), {name: bad}, name


def names(rng, pipe, family, work):
    """Unknown settings, and prompts that are no text."""
    if rng.random() < 0.5:
        name = pick(rng, ("cfg", "temprature", "steps" if family == "janus" else "top_k", "", "prompts"))
        return lambda: pipe.generate_latents("a", **{name: 1}), {name: 1}, name
    prompt = pick(rng, BAD_TEXTS)
    return lambda: pipe.generate_latents(prompt), {"prompt": prompt}, "prompt"
