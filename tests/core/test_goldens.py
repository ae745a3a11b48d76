"""Every golden tensor through the public functions that the nodes and the CLI call.

Tolerances: integers equal, floats 1e-4, decoded images 1e-3.
"""

import pytest
import torch
from checked import Checked

import janus_core
from janus_core.describe import question_embeds
from janus_core.image import open_image, understanding_pixels
from janus_core.networks.vq import tokens_to_latent
from janus_core.sampling import flow
from janus_core.sampling.settings import TextSamplerSettings, TokenSamplerSettings
from janus_core.sampling.text import sample_text
from janus_core.sampling.tokens import sample_image_tokens

IMAGE = 1e-3


def load(golden):
    return janus_core.load(golden.folder, device="cpu", dtype=torch.float32)


@torch.inference_mode()
def check_understanding(pipe, golden, check):
    image = open_image(golden.folder / "picture.png")
    pixels = understanding_pixels(image, pipe.image_size)
    check("und.pixel_values", pixels[None, None])
    question = golden.text["und.question"]
    assert pipe.prompts.question_text(question) == golden.text["und.sft"]
    asked = pipe.prompts.question_ids(question, pipe.model.params.siglip.tokens)
    check("und.input_ids", asked.ids[None])
    embeds = question_embeds(pipe.model, asked, pipe.model.embed_images(pixels[None]), torch.float32)
    check("und.inputs_embeds", embeds)
    *_, ids = sample_text(pipe.model, embeds, pipe.prompts.eos, TextSamplerSettings(max_new_tokens=12))
    check("und.answer_ids", ids)
    assert pipe.describe(image, question, max_new_tokens=12) == [golden.text["und.answer"]]


def test_autoregressive(golden):
    golden = golden("ar-a")
    pipe, check = load(golden), Checked(golden.expected)
    names = sorted({tuple(n.split(".")[:2]) for n in golden.expected if ".cfg" in n})
    for k, cfg in names:
        prompt, key = golden.text[f"{k}.prompt"], f"{k}.{cfg}"
        assert pipe.prompts.generation_text(prompt) == golden.text[f"{k}.sft"]
        check(f"{k}.input_ids", pipe.prompts.generation_ids(prompt))
        guidance = float(cfg[3:])
        tokens = pipe.generate_tokens(prompt, guidance=guidance, temperature=0)
        check(f"{key}.greedy_tokens", tokens)
        with torch.inference_mode():
            settings = TokenSamplerSettings(guidance=guidance, temperature=0)
            steps = sample_image_tokens(pipe.model, *pipe.encode_prompt(prompt), tokens.shape[1], settings)
            check(f"{key}.logits", torch.cat([step.logits for step in steps]))
        if f"{key}.image" in golden.expected:
            check(f"{key}.image", pipe.decode_pixels(tokens_to_latent(tokens, pipe.codebook, (6, 6))), IMAGE)
    with torch.inference_mode():
        latent = pipe.vq.encode(golden.expected["vq.pixels"])
    check("vq.pixels", golden.expected["vq.pixels"])
    check("vq.quantized", latent)
    check("vq.tokens", pipe.tokens_of(latent))
    check("vq.reconstruction", pipe.decode_pixels(latent), IMAGE)
    check_understanding(pipe, golden, check)
    check.all()


def test_flow(golden):
    golden = golden("flow-a")
    pipe, check = load(golden), Checked(golden.expected)
    for k in range(5):
        prompt, seed = golden.text[f"gen{k}.prompt"], 2100 + k
        assert pipe.prompts.generation_text(prompt) == golden.text[f"gen{k}.sft"]
        check(f"gen{k}.input_ids", pipe.prompts.generation_ids(prompt))
        z = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(seed))
        check(f"gen{k}.noise", z, 0)
        with torch.inference_mode():
            branches = flow.stacked(pipe.encode_prompt(prompt))
            encoded = pipe.model.encode_prompt(*branches, pipe.model.image_tokens(12, 12))
            for t in ("0", "0.37", "0.9"):
                v = pipe.model.velocity(z.repeat(2, 1, 1, 1), torch.full((2,), 1000 * float(t)), encoded)
                check(f"gen{k}.velocity.t{t}", v)
        for name in golden.expected:
            if name.startswith(f"gen{k}.steps"):
                _, steps, cfg, _ = name.split(".")
                check(name, pipe.generate_latents(prompt, seed=seed, steps=int(steps[5:]), guidance=float(cfg[3:])))
    check_understanding(pipe, golden, check)
    check.all()


@pytest.mark.parametrize("name", ["ar-a", "flow-a"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(golden, name, dtype):
    """The first guided logits and the velocities in 16 bits agree with float32's to 5% of their range."""
    golden = golden(name)
    pipe = janus_core.load(golden.folder, device="cpu", dtype=dtype)
    with torch.inference_mode():
        if name == "ar-a":
            settings = TokenSamplerSettings(guidance=1, temperature=0)
            steps = sample_image_tokens(pipe.model, *pipe.encode_prompt(golden.text["gen0.prompt"]), 36, settings)
            result, expected = next(steps).logits[0], golden.expected["gen0.cfg1.logits"][0]
        else:
            expected = golden.expected["gen0.velocity.t0.37"]
            branches = flow.stacked(pipe.encode_prompt(golden.text["gen0.prompt"]))
            encoded = pipe.model.encode_prompt(*branches, pipe.model.image_tokens(12, 12))
            z = golden.expected["gen0.noise"].repeat(2, 1, 1, 1).to(dtype)
            result = pipe.model.velocity(z, torch.full((2,), 370.0), encoded).float()
    assert (result - expected).abs().max() < 0.05 * expected.abs().max()
