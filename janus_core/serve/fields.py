"""Reading the fields of a request."""

import base64
import binascii
import json
import re
import secrets

from ..errors import JanusError
from ..image import decode_image
from ..schema import Number, Text, Whole, shown
from .errors import RequestRefused

SEEDS = 2**63
MOST_CHARACTERS = 100_000  # of a text; contexts have up to 16384 tokens
MOST_PIXELS = 64 * 2**20  # of an image that a client sends
DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
NOTHING = frozenset({None, 0})  # values that ask for nothing


def parse_body(data: bytes) -> dict:
    """The JSON object of a body. Raises RequestRefused."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestRefused("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise RequestRefused("The body must be a JSON object.", code="invalid_json")
    return values


def check_names(values: dict, known, ignored=(), absent=()):
    """Refuses fields that nothing here reads.

    Args:
        ignored: fields without effect, which clients send.
        absent: fields that are accepted only with a value that asks for nothing.
    """
    for name, value in values.items():
        if name in known or name in ignored:
            continue
        if name in absent and isinstance(value, (int, float, bool, type(None))) and value in NOTHING:
            continue
        if name in absent and value in ({}, []):
            continue
        raise RequestRefused(f"The field {shown(name)} is not supported here.", param=str(name)[:80])


def field(values: dict, name: str, rule, default=None):
    """A field's value, or the default where it is absent or null. Raises RequestRefused where it is not by the rule."""
    value = values.get(name)
    if value is None:
        return default
    problem = rule.problem(value)
    if problem:
        raise RequestRefused(f"{name} is {shown(value)}, it must be {problem}.", param=name)
    return value


def required_text(values: dict, name: str) -> str:
    """A text that must be there. Raises RequestRefused."""
    value = field(values, name, Text())
    if value is None:
        raise RequestRefused(f"The field {name} is missing.", param=name)
    return short_text(value, name)


def short_text(text: str, name: str) -> str:
    """The text itself. Raises RequestRefused for one that no model has room for, before it is divided into tokens."""
    if len(text) > MOST_CHARACTERS:
        raise RequestRefused(f"{name} has over {MOST_CHARACTERS} characters.", 400, name, "context_length_exceeded")
    return text


def seed_of(values: dict) -> int:
    """The seed, or one at random."""
    found = field(values, "seed", Whole(-SEEDS, 2 * SEEDS - 1))
    return secrets.randbelow(SEEDS) if found is None else found % (2 * SEEDS)


def size_of(values: dict) -> tuple[int, int] | None:
    """(width, height) of size, None for "auto"."""
    text = field(values, "size", Text())
    if text in (None, "auto"):
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise RequestRefused(f"size is {shown(text)}, it must be WIDTHxHEIGHT, such as 384x384.", param="size")
    return int(found[1]), int(found[2])


def sampler_of(values: dict, family: str) -> dict:
    """The sampler's settings under this project's names."""
    names = {"guidance_scale": ("guidance", Number(0, 100))}
    if family == "janusflow":
        names |= {"num_inference_steps": ("steps", Whole(1, 1000))}
    else:
        names |= {
            "temperature": ("temperature", Number(0, 5)),
            "top_k": ("top_k", Whole(0, 2**31)),
            "top_p": ("top_p", Number(0, 1)),
        }
    for name in ("num_inference_steps", "temperature", "top_k", "top_p"):
        if name not in names and values.get(name) is not None:
            raise RequestRefused(f"{name} is not a setting of {family}.", param=name)
    found = {ours: field(values, name, rule) for name, (ours, rule) in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def image_of(data: bytes, name: str, most_bytes: int):
    """An image that a client sent. Raises RequestRefused."""
    if len(data) > most_bytes:
        raise RequestRefused(f"{name} has over {most_bytes >> 20} MB.", 413, code="image_too_large")
    try:
        return decode_image(data, name, MOST_PIXELS)
    except JanusError as error:
        raise RequestRefused(str(error), code="invalid_image") from None


def image_of_uri(uri, name: str, most_bytes: int):
    """The image of a data URI. Raises RequestRefused for any other address: this server fetches nothing."""
    found = DATA_URI.match(uri) if isinstance(uri, str) else None
    if not found:
        raise RequestRefused(
            f"{name} must be a data URI (data:image/png;base64,…): this server fetches no addresses.", param="image_url"
        )
    if (len(uri) - found.end()) * 3 // 4 > most_bytes + 3:
        raise RequestRefused(f"{name} has over {most_bytes >> 20} MB.", 413, code="image_too_large")
    try:
        data = base64.b64decode(uri[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestRefused(f"{name} is not valid base64.", param="image_url", code="invalid_image") from None
    return image_of(data, name, most_bytes)
