"""Settings, sizes and tensors of wrong types and values in the Python API, each refused by name."""

import math

import pytest
import torch

import janus_core
from janus_core.errors import PromptError, SamplingError
from janus_core.prompt import check_context
from janus_core.sampling.settings import FlowSamplerSettings, TextSamplerSettings, TokenSamplerSettings
from tests.fuzz import settings
from tests.fuzz.models import FAMILIES, write_tiny
from tests.refusals import one_sentence


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: settings.pipeline(family, folder) for family in FAMILIES}


def refused(*words, **call):
    """Asserts that `function(*arguments, **settings)` raises a JanusError of one sentence with these words."""
    with one_sentence(*words):
        call["function"](*call.get("arguments", ()), **call.get("settings", {}))


FIELDS = [
    (kind, name)
    for kind, table in (
        (TokenSamplerSettings, {**settings.COMMON, **settings.TOKENS}),
        (FlowSamplerSettings, {**settings.COMMON, **settings.FLOW}),
        (TextSamplerSettings, settings.TEXT),
    )
    for name in table
    if name in kind.__dataclass_fields__
]


@pytest.mark.parametrize("kind,name", FIELDS)
def test_a_sampler_setting(kind, name):
    table = {**settings.COMMON, **settings.FLOW, **(settings.TEXT if kind is TextSamplerSettings else settings.TOKENS)}
    good, bad = table[name]
    for value in good:
        kind(**{name: value})
    for value in bad:
        refused(name, function=kind, settings={name: value})


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-20, True, math.nan])
def test_temperatures_whose_division_overflows(temperature):
    with pytest.raises(SamplingError, match="temperature"):
        TokenSamplerSettings(temperature=temperature)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["size", "num_images", "negative_prompt"])
def test_other_arguments(pipes, family, name):
    for value in settings.COMMON[name][1]:
        refused(function=pipes[family].generate_latents, arguments=["a cat"], settings={name: value})


@pytest.mark.parametrize("name", ["noise", "latents"])
def test_noise_and_latents(pipes, name):
    generate = pipes["janusflow"].generate_latents
    for value in settings.BAD_TENSORS:
        refused(function=generate, arguments=["a cat"], settings={"steps": 1, name: value})
    sizes = {"latents": torch.zeros(1, 4, 4, 4), "noise": torch.zeros(1, 4, 2, 2)}
    refused("noise", function=generate, arguments=["a cat"], settings={"denoise": 0.5, **sizes})


def test_tensors_to_decode(pipes):
    for value in settings.BAD_TENSORS[:10]:
        for name in ("decode", "decode_tokens", "tokens_of"):
            refused(function=getattr(pipes["janus"], name), arguments=[value])
    refused("from 0 to 15", function=pipes["janus"].decode_tokens, arguments=[torch.full((1, 4), 10**6)])


@pytest.mark.parametrize("prompt", settings.BAD_TEXTS)
def test_prompts_and_questions(pipes, prompt):
    refused(function=pipes["janus"].generate_latents, arguments=[prompt])
    refused(function=pipes["janusflow"].describe, arguments=[settings.Image.new("RGB", (8, 8)), prompt])


def test_images_to_describe(pipes):
    for images in settings.BAD_IMAGES:
        refused(function=pipes["janus"].describe, arguments=[images])


@pytest.mark.parametrize("name", settings.LOAD)
def test_loading(tmp_path, name):
    folder = write_tiny("janus", tmp_path / "model")
    for value in settings.LOAD[name][1]:
        refused(function=janus_core.load, arguments=[folder], settings={"device": "cpu", name: value})


def test_an_image_too_large_names_its_size_and_the_largest(pipes):
    for family, largest in (("janus", "44x44"), ("janusflow", "352x352")):
        size = {"size": (4096, 4096)}
        refused("4096x4096", largest, function=pipes[family].generate_latents, arguments=["a"], settings=size)
    with pytest.raises(PromptError, match="image is too large"):
        check_context(600, 512, 580)
    with pytest.raises(PromptError, match="prompt is too long"):
        check_context(600, 512, 4)


@pytest.mark.parametrize("part", ["vq.decoder.conv_out", "vq.encoder.conv_out"])
def test_a_vq_model_of_nan_is_an_error(tmp_path, part):
    pipe = janus_core.load(write_tiny("janus", tmp_path / "model"), device="cpu", dtype=torch.float32)
    module = pipe
    for name in part.split("."):
        module = getattr(module, name)
    module.bias.fill_(math.nan)
    if "decoder" in part:
        refused("not finite", function=pipe, arguments=["a cat"])
    else:
        refused("not finite", function=pipe.encode, arguments=[settings.Image.new("RGB", (16, 16))])


def test_a_vae_of_nan_is_an_error(tmp_path):
    """The VAE's output becomes an error on its way to and from pixels."""

    class VAE:
        device, dtype = torch.device("cpu"), torch.float32

        def decode(self, z):
            return type("Output", (), {"sample": torch.full((1, 3, 16, 16), math.nan)})

        def encode(self, pixels):
            return type("Output", (), {"latents": torch.full((1, 4, 2, 2), math.nan)})

    pipe = janus_core.load(write_tiny("janusflow", tmp_path / "model"), device="cpu", dtype=torch.float32)
    pipe.vae = janus_core.vae.LatentVAE(VAE(), 1.0)
    refused("not finite", function=pipe, arguments=["a cat"], settings={"steps": 1})
    refused("not finite", function=pipe.encode, arguments=[settings.Image.new("RGB", (16, 16))])
