"""/v1/images/generations and /v1/images/edits: what a request asks for, and the answer to it."""

import base64
import io
import time

from ..errors import JanusError
from ..schema import Number, OneOf, Text, Whole
from .errors import RequestRefused
from .fields import check_names, field, required_text, sampler_of, seed_of, short_text, size_of
from .work import ImagesWanted, Model

KNOWN = (
    "model",
    "prompt",
    "n",
    "size",
    "response_format",
    "seed",
    "guidance_scale",
    "negative_prompt",
    "num_inference_steps",
    "temperature",
    "top_k",
    "top_p",
)
IGNORED = ("user", "quality", "style", "output_format", "background", "moderation", "output_compression")
NUMBERS = {"n": int, "seed": int, "num_inference_steps": int, "top_k": int}  # of a form, where all is text
NUMBERS |= {"guidance_scale": float, "temperature": float, "top_p": float, "image_guidance": float}


def images_wanted(values: dict, model: Model, most_images: int, source=None) -> ImagesWanted:
    """What a body asks for.

    Args:
        source: the image to edit, or None.

    Raises:
        RequestRefused.
    """
    check_names(values, (*KNOWN, *(["image_guidance"] if source is not None else [])), IGNORED, ("stream",))
    field(values, "response_format", OneOf(("b64_json",)))
    field(values, "output_format", OneOf(("png",)))
    count = field(values, "n", Whole(1, most_images), 1)
    seed = seed_of(values)
    settings = sampler_of(values, model.family)
    size = size_of(values)
    if size is not None and size != (model.pipe.image_size,) * 2:
        settings["size"] = list(size)
    if source is not None:
        settings["image_guidance"] = field(values, "image_guidance", Number(0, 100), 5.0)
    negative = short_text(field(values, "negative_prompt", Text(empty=True), ""), "negative_prompt")
    seeds = tuple((seed + k) % 2**64 for k in range(count))
    wanted = ImagesWanted(required_text(values, "prompt"), seeds, negative, source, settings)
    _check(wanted, size, model)
    return wanted


def _check(wanted: ImagesWanted, size, model: Model):
    """Refuses a prompt or size that cannot be computed, before it waits."""
    pipe = model.pipe
    try:
        rows, columns = pipe.grid(size)
    except JanusError as error:
        raise RequestRefused(str(error), param="size") from None
    try:
        prompts = pipe.prompts.guidance_rows(wanted.prompt, wanted.negative)
    except JanusError as error:
        raise RequestRefused(str(error), param="prompt") from None
    length = max(len(row.ids) for row in prompts) + rows * columns + 1
    if length > pipe.model.params.llama.max_positions:
        raise RequestRefused("The prompt is too long for the model.", param="prompt", code="context_length_exceeded")


def numbers_of(form: dict) -> dict:
    """The fields of a form, numbers as numbers. Raises RequestRefused."""
    found = {}
    for name, value in form.items():
        try:
            found[name] = NUMBERS[name](value) if name in NUMBERS else value
        except ValueError:
            raise RequestRefused(f"{name} must be a number.", param=name) from None
    return found


def images_body(images: list) -> dict:
    """The answer's body, with the images as PNG in base64."""
    return {"created": int(time.time()), "data": [{"b64_json": _base64(image)} for image in images]}


def _base64(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
