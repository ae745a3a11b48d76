"""Every golden tensor through the public functions that the nodes and the CLI call. Bars: integers equal, floats 1e-4,
decoded pictures 1e-3."""

import pytest
import torch
from janus_core.sampling.choice import Choice

import janus_core
from janus_core.image import open_image, understanding_pixels
from janus_core.networks.vq import tokens_to_latent
from janus_core.prompt import question_embeds
from janus_core.sampling import flow, text, tokens

FLOAT, PICTURE = 1e-4, 1e-3


class Checked:
    """Compares answers with the golden tensors and remembers which ones were."""

    def __init__(self, expected):
        self.expected, self.seen = expected, set()

    def __call__(self, name, answer, bar=FLOAT):
        expected = self.expected[name]
        assert answer.shape == expected.shape, name
        if expected.is_floating_point():
            assert (answer - expected).abs().max() <= bar, name
        else:
            assert torch.equal(answer, expected), name
        self.seen.add(name)

    def all(self):
        assert self.seen == set(self.expected), set(self.expected) - self.seen


def load(golden):
    return janus_core.load(golden.folder, device="cpu", dtype=torch.float32)


@torch.inference_mode()
def check_understanding(pipe, golden, check):
    picture = open_image(golden.folder / "picture.png")
    pixels = understanding_pixels(picture, pipe.image_size)
    check("und.pixel_values", pixels[None, None])
    question = golden.text["und.question"]
    assert pipe.prompts.question_text(question) == golden.text["und.sft"]
    asked = pipe.prompts.question_ids(question, pipe.model.params.siglip.tokens)
    check("und.input_ids", asked.ids[None])
    embeds = question_embeds(pipe.model, asked, pipe.model.embed_images(pixels[None]), torch.float32)
    check("und.inputs_embeds", embeds)
    *_, ids = text.sample_steps(pipe.model, embeds, 12, pipe.prompts.eos)
    check("und.answer_ids", ids)
    assert pipe.describe(picture, question, max_new_tokens=12) == [golden.text["und.answer"]]


def test_autoregressive(golden):
    golden = golden("ar-a")
    pipe, check = load(golden), Checked(golden.expected)
    names = sorted({tuple(n.split(".")[:2]) for n in golden.expected if ".cfg" in n})
    for k, cfg in names:
        prompt, key = golden.text[f"{k}.prompt"], f"{k}.{cfg}"
        assert pipe.prompts.generation_text(prompt) == golden.text[f"{k}.sft"]
        check(f"{k}.input_ids", pipe.prompts.generation_ids(prompt))
        guidance = float(cfg[3:])
        drawn = pipe.generate_tokens(prompt, guidance=guidance, temperature=0)
        check(f"{key}.greedy_tokens", drawn)
        with torch.inference_mode():
            steps = tokens.sample_steps(
                pipe.model, *pipe.sides(prompt), drawn.shape[1], cfg=guidance, choice=Choice(temperature=0)
            )
            check(f"{key}.logits", torch.cat([step.logits for step in steps]))
        if f"{key}.image" in golden.expected:
            check(f"{key}.image", pipe.decode_pixels(tokens_to_latent(drawn, pipe.codebook, (6, 6))), PICTURE)
    with torch.inference_mode():
        latent = pipe.vq.encode(golden.expected["vq.pixels"])
    check("vq.pixels", golden.expected["vq.pixels"])
    check("vq.quantized", latent)
    check("vq.tokens", pipe.tokens_of(latent))
    check("vq.reconstruction", pipe.decode_pixels(latent), PICTURE)
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
            encoded = pipe.model.encode_prompt(*flow.joined(*pipe.sides(prompt)), pipe.model.image_tokens(12, 12))
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
    """The first guided logits and the velocities in 16 bits agree with float32's to a few percent of their range."""
    golden = golden(name)
    pipe = janus_core.load(golden.folder, device="cpu", dtype=dtype)
    with torch.inference_mode():
        if name == "ar-a":
            steps = tokens.sample_steps(
                pipe.model, *pipe.sides(golden.text["gen0.prompt"]), 36, cfg=1, choice=Choice(temperature=0)
            )
            answer, expected = next(steps).logits[0], golden.expected["gen0.cfg1.logits"][0]
        else:
            expected = golden.expected["gen0.velocity.t0.37"]
            sides = flow.joined(*pipe.sides(golden.text["gen0.prompt"]))
            encoded = pipe.model.encode_prompt(*sides, pipe.model.image_tokens(12, 12))
            z = golden.expected["gen0.noise"].repeat(2, 1, 1, 1).to(dtype)
            answer = pipe.model.velocity(z, torch.full((2,), 370.0), encoded).float()
    assert (answer - expected).abs().max() < 0.05 * expected.abs().max()
