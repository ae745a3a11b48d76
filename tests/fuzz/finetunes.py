"""Fuzz cases of what fine-tuned models do: edits, plans, reflection, and the boxes of a plan."""

import random
from pathlib import Path

import torch
from PIL import Image

from janus_core.finetunes.boxes import BOX_TOKENS, boxes_of
from janus_core.finetunes.generation_prompt import GenerationPrompt
from janus_core.finetunes.reflect import Reflection
from janus_core.finetunes.think import RECIPES, Thought
from janus_core.schema import shown

from .case import OK, REFUSED, Case, pick
from .settings import BAD_TEMPERATURE, BAD_TEXTS, BAD_WHOLE, COMMON, NOT_NUMBERS, chosen, pipeline

IMAGES = (Image.new("RGB", (20, 9)), Image.new("L", (16, 16)), Image.new("RGBA", (3, 40)))
BAD_IMAGES = (None, "x.png", 5, [], b"x", Image.new("RGB", (0, 5)), torch.zeros(3, 8, 8))
PROMPTS = ("a cat", "", "{} <image_placeholder>", "<｜▁pad▁｜><begin_of_image>", "é\0\n" * 5)
BAD_PROMPTS = BAD_TEXTS[:-1]
ROLES = (("auto", "User"), (None, 5, "x", [], {}, True))
TEXT = {
    "temperature": ((0, 1.0), BAD_TEMPERATURE),
    "top_k": ((0, 5), BAD_WHOLE),
    "top_p": ((0.5, 1), (*NOT_NUMBERS[:10], -0.01, 1.01)),
    "seed": ((0, 2**64 - 1), BAD_WHOLE),
    "roles": ROLES,
    "prompt": (PROMPTS, BAD_PROMPTS),
}
EDIT = {
    "image": (IMAGES, BAD_IMAGES),
    "prompt": (PROMPTS, BAD_PROMPTS),
    "image_guidance": ((0, 5.0, 100), (*NOT_NUMBERS, -1, 100.1)),
    "roles": ROLES,
}
GENERATE = {"negative_prompt": COMMON["negative_prompt"], "num_images": COMMON["num_images"]}
THINK = {
    **TEXT,
    "recipe": (tuple(RECIPES), (None, "x", "", 5, [], {}, ["t2i-r1"])),
    "num_thoughts": ((None, 1, 2), (*(v for v in BAD_WHOLE if v is not None), 0, 5000)),
    "max_new_tokens": ((0, 2), (*BAD_WHOLE, 4097)),
}
REFLECT = {
    **TEXT,
    "image": (IMAGES, (*BAD_IMAGES, Image.new("RGB", (1, 4000)))),
    "max_new_tokens": ((1, 3), (*BAD_WHOLE, 0, 4097)),
}
ROUNDS = {
    "rounds": ((0, 1), (*BAD_WHOLE, 1001)),
    "first": ((None, "a dog"), (5, b"a", "\ud800", {}, [])),
    "text": (({}, None, {"max_new_tokens": 1}), ({"x": 1}, {"temperature": 9}, {"roles": "x"}, {"max_new_tokens": 0})),
}


def make(rng: random.Random, work: Path) -> Case:
    pipe = pipeline("janus", work.parent)
    kind = pick(rng, (edit, think, think, reflect, until_match, boxes))
    call, values, bad = kind(rng, pipe)
    given = ", ".join(f"{name}={shown(value)[:40]}" for name, value in values.items())
    return Case(f"{kind.__name__}: {bad}; {given}", call, (OK, REFUSED) if bad is None else (REFUSED,))


def edit(rng, pipe):
    values, bad = chosen(rng, {**EDIT, **GENERATE})
    given = {"image": IMAGES[0], "prompt": "make it red", **values}

    def call():
        made = pipe.edit(**given)
        assert [image.size for image in made] == [(16, 16)] * given.get("num_images", 1)

    return call, given, bad


def think(rng, pipe):
    values, bad = chosen(rng, THINK)
    given = {"prompt": "a cat", "recipe": "reasongen-r1", "max_new_tokens": 2, **values}

    def call():
        made = pipe.think(**given)
        made = [made] if given.get("num_thoughts") is None else made
        assert len(made) == (given.get("num_thoughts") or 1)
        assert all(isinstance(one, Thought) and one.prompt.embeds.isfinite().all() for one in made)

    return call, given, bad


def reflect(rng, pipe):
    values, bad = chosen(rng, REFLECT)
    given = {"image": IMAGES[0], "prompt": "a cat", "max_new_tokens": 2, **values}

    def call():
        made = pipe.reflect(**given)
        assert isinstance(made, Reflection) and isinstance(made.prompt, GenerationPrompt)

    return call, given, bad


def until_match(rng, pipe):
    values, bad = chosen(rng, ROUNDS)
    given = {"prompt": "a cat", "rounds": 1, **values}
    if isinstance(given.get("text"), dict):
        given["text"] = {"max_new_tokens": 2, **given["text"]}

    def call():
        made = list(pipe.generate_until_match(**given))
        assert 1 <= len(made) <= given["rounds"] + 1

    return call, given, bad


def boxes(rng, pipe):
    """A plan of random tokens, digits and brackets is read without an error, and its boxes are inside the image."""
    parts = (*BOX_TOKENS, "(", ")", ",", "1", "500", "9" * 5000, "٣", "-3", "1e9", "\n", "a cat", "(1,2),(3,4)")
    text = "".join(pick(rng, parts) for _ in range(rng.randrange(60)))

    def call():
        for box in boxes_of(text, 384):
            assert 0 <= box["x"] <= 384 and 0 <= box["y"] <= 384 and box["x"] + box["width"] <= 384 + 1e-9

    return call, {"thought": text}, None
