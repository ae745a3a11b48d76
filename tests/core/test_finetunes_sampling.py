"""Prompts of fine-tuned models in the sampler: batches, all decode loops, intervals, hidden tokens; and bad input."""

import pytest
import torch
from cpu_graph import capture
from PIL import Image

import janus_core
from janus_core.errors import JanusError, PromptError, SamplingError
from janus_core.finetunes.boxes import boxes_of
from janus_core.finetunes.generation_prompt import batch_rows
from janus_core.image import open_image
from janus_core.networks.llama import causal_mask
from janus_core.prompt import BEGIN_OF_IMAGE, PromptEncoder
from janus_core.sampling import graph_decode
from janus_core.sampling.decode_loop import decode_loop
from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens

needs_replay = pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch cannot replay its operations on a CPU")
CAPTION = "a white night above a lazy sky"


@pytest.fixture(scope="module")
def ar(golden):
    pipe = janus_core.load(golden("ar-a").folder, device="cpu", dtype=torch.float32)
    pipe.example = open_image(golden("ar-a").folder / "picture.png")
    return pipe


@pytest.fixture(scope="module")
def prompts(ar):
    """An edit, two thoughts of different lengths, and a prompt with a hidden token."""
    with torch.inference_mode():
        edit = ar.edit_prompt(ar.example, "make the circle green")
        thoughts = [ar.think(CAPTION, "reasongen-r1", max_new_tokens=n, temperature=0).prompt for n in (1, 7)]
        again = ar.reflect(ar.example, CAPTION, temperature=0, max_new_tokens=5).prompt
        again.tokens.visible[-30] = again.uncond_tokens.visible[-30] = False  # whatever the model wrote
    return {"edit": edit, "thought": thoughts[0], "longer": thoughts[1], "again": again}


@torch.inference_mode()
def sample(ar, prompts, batch=1, count=36, decode=None, given=None, **settings):
    """Tokens, and all guided logits [N, B, V]."""
    cond, uncond, part, part_weight = batch_rows(prompts)
    settings = TokenSamplerSettings(**{"seed": 3, **settings})
    extra = {} if decode is None else {"decode": decode}
    steps = sample_image_tokens(
        ar.model,
        cond,
        uncond,
        count,
        settings,
        part=part,
        part_weight=part_weight,
        image_indices=range(batch),
        given_tokens=given,
        **extra,
    )
    pairs = [(step.tokens, step.logits.clone()) for step in steps]
    return pairs[-1][0], torch.stack([logits for _, logits in pairs])


def pass_logits(ar, row, image):
    """Logits at each image position of a row, from one pass over prompt and image with a mask."""
    embeds = torch.cat((row.embeds[None], ar.model.embed_image_tokens(image[:, :-1], torch.float32)), dim=1)
    visible = torch.cat((row.visible, torch.ones(image.shape[1] - 1, dtype=torch.bool)))[None]
    mask = causal_mask(embeds.shape[1], 0, torch.float32, "cpu", visible)
    hidden = ar.model.llama(embeds, mask=mask)[:, len(row.embeds) - 1 :]
    return ar.model.image_logits(hidden)[0]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["edit", "again"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75), (0.0, 0.0)])
def test_logits_are_those_of_one_pass_over_each_row(ar, prompts, name, interval):
    """The blend of two conditional rows holds with guidance and without; a hidden token is read by nobody."""
    prompt = prompts[name]
    tokens, logits = sample(ar, [prompt], guidance=3.0, guidance_interval=interval)
    cond, uncond = pass_logits(ar, prompt.cond, tokens), pass_logits(ar, prompt.uncond, tokens)
    if prompt.part is not None:
        cond = (cond + prompt.part.weight * pass_logits(ar, prompt.part_row, tokens)) / (1 + prompt.part.weight)
    guided = torch.zeros(36, 1, dtype=torch.bool)
    guided[round(36 * interval[0]) : round(36 * interval[1])] = True
    assert torch.allclose(logits[:, 0], torch.where(guided, uncond + 3 * (cond - uncond), cond), atol=1e-4)


def test_an_image_guidance_of_zero_leaves_the_second_row_out(ar, prompts):
    with torch.inference_mode():
        prompt = ar.edit_prompt(ar.example, "make the circle green", 0.0)
        assert torch.equal(prompt.embeds, prompts["edit"].embeds)
        settings = TokenSamplerSettings(seed=3)
        *_, plain = sample_image_tokens(ar.model, [prompt.cond], [prompt.uncond], 36, settings)
    assert torch.equal(sample(ar, [prompt])[0], plain.tokens)


@pytest.mark.parametrize("name", ["edit", "thought", "again"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6)])
def test_image_k_does_not_depend_on_the_batch(ar, prompts, name, interval):
    settings = dict(guidance_interval=interval)
    batch, _ = sample(ar, [prompts[name]], 3, **settings)
    for k in range(3):
        assert torch.equal(sample(ar, [prompts[name]], seed=3 + k, **settings)[0], batch[k : k + 1])


def test_prompts_of_different_lengths_in_one_batch(ar, prompts):
    """Each image has a prompt of its own, rows of its own length, and the tokens that it has alone."""
    several = [prompts["thought"], prompts["again"], prompts["longer"]]
    batch = ar.generate_tokens(several, seed=8)
    assert len({len(prompt.embeds) for prompt in several}) == 3
    for k, prompt in enumerate(several):
        assert torch.equal(ar.generate_tokens(prompt, seed=8 + k), batch[k : k + 1])
    with pytest.raises(SamplingError, match="one image of each"):
        ar.generate_tokens(several, num_images=3)
    mixed = ar.generate_tokens([prompts["thought"], "a cat"], seed=1)
    assert torch.equal(mixed[1:], ar.generate_tokens("a cat", seed=2))


def test_thought_k_is_that_of_its_seed(ar):
    def think(seed, **more):
        return ar.think(CAPTION, "t2i-r1", seed=seed, max_new_tokens=9, **more)

    batch = think(5, num_thoughts=3)
    assert [thought.thought for thought in batch] == [think(5 + k).thought for k in range(3)]
    assert len({thought.thought for thought in batch}) == 3
    images = ar.generate_tokens([thought.prompt for thought in batch], seed=5)
    assert torch.equal(images[1:2], ar.generate_tokens(think(6).prompt, seed=6))


@pytest.mark.parametrize("name", ["edit", "again"])
@pytest.mark.parametrize("window", [3, 16])
def test_speculation_samples_the_same_tokens(ar, prompts, name, window):
    for settings in ({"guidance_interval": (0.1, 0.5)}, {"guidance": 1.0}, {"temperature": 0}):
        plain, _ = sample(ar, [prompts[name]], 2, **settings)
        decode = decode_loop(window=window, width=6)
        assert torch.equal(sample(ar, [prompts[name]], 2, decode=decode, **settings)[0], plain)


@needs_replay
@pytest.mark.parametrize("name", ["edit", "again"])
def test_a_captured_step_samples_the_same_tokens(ar, prompts, name):
    given = (torch.full((2, 36), 7), torch.arange(36).expand(2, -1) == 5)
    for settings in ({"guidance_interval": (0.1, 0.5)}, {"guidance": 1.0}):
        plain, logits = sample(ar, [prompts[name]], 2, given=given, **settings)
        decode = decode_loop(capture=capture)
        replayed, same = sample(ar, [prompts[name]], 2, given=given, decode=decode, **settings)
        assert torch.equal(replayed, plain) and torch.allclose(logits, same, atol=1e-4)
        assert (plain[:, 5] == 7).all()


@pytest.mark.parametrize("name", ["edit", "again"])
def test_triton_kernels_sample_the_same_tokens(ar, prompts, name, monkeypatch, larger_tiles):
    pytest.importorskip("triton", minversion="3.4", reason="needs a Triton whose interpreter is complete")
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted where there is a GPU")
    used = []
    kernels = graph_decode.triton_decoder.TritonDecoder
    monkeypatch.setattr(graph_decode.triton_decoder, "usable", lambda llama, x: True)
    monkeypatch.setattr(kernels, "__init__", lambda *a, init=kernels.__init__: used.append(1) or init(*a))
    plain, logits = sample(ar, [prompts[name]], count=2)
    decode = decode_loop(capture=lambda step: step, triton=True)
    sampled, same = sample(ar, [prompts[name]], count=2, decode=decode)
    assert used and torch.equal(sampled, plain) and torch.allclose(logits, same, atol=1e-3)


def test_a_negative_prompt_takes_the_unconditional_rows_place(ar, prompts):
    negative = ar.generate_tokens(prompts["edit"], negative_prompt="a blurry photo", temperature=0)
    prompt = ar.generation_prompt(prompts["edit"], "a blurry photo")
    assert torch.equal(prompt.uncond_tokens.ids, ar.prompts.generation_ids("a blurry photo"))
    assert prompt.part is not None and torch.equal(sample(ar, [prompt], temperature=0)[0], negative)
    assert not torch.equal(negative, ar.generate_tokens(prompts["edit"], temperature=0))


def test_a_batch_with_an_image_in_some_prompts(ar, prompts):
    with pytest.raises(PromptError, match="in all of its prompts or in none"):
        ar.generate_tokens([prompts["edit"], prompts["thought"]])


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (500, 40), (96, 96)])
@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_images_of_any_size_and_mode(ar, size, mode):
    image = Image.new(mode, size)
    assert ar.edit(image, "", temperature=0)[0].size == (96, 96)
    matches, reason, prompt = ar.reflect(image, "", temperature=0, max_new_tokens=2)
    assert isinstance(matches, bool) and isinstance(reason, str)
    assert ar.generate_tokens(prompt, temperature=0).shape == (1, 36)


def test_limits_and_empty_texts(ar):
    """A thought that never ends is cut as the recipe says; a reason may be empty, and then the prompt is complete."""
    begin, eos = ar.prompts.begin, ar.prompts.eos
    for recipe in ("reasongen-r1", "got-r1"):
        for limit in (1, 5):
            ids = ar.think(CAPTION, recipe, max_new_tokens=limit, temperature=0).prompt.tokens.ids.tolist()
            assert ids[-1] == begin and ids.count(begin) == 1
    reflection = ar.reflect(ar.example, CAPTION, max_new_tokens=1)
    assert reflection.reason == "" and reflection.prompt.tokens.visible.all()
    hook = ar.model.language_model.lm_head.register_forward_hook(
        lambda module, inputs, logits: torch.nn.functional.one_hot(torch.tensor(eos), logits.shape[-1]).expand_as(
            logits
        )
    )
    try:
        reflection = ar.reflect(ar.example, CAPTION, temperature=0)
        thought, prompt = ar.think(CAPTION, "t2i-r1", temperature=0)
    finally:
        hook.remove()
    assert reflection.reason == "" and int((~reflection.prompt.tokens.visible).sum()) == 1
    assert thought == ""
    assert ar.prompts.decode(prompt.tokens.ids, True).endswith(f"User: {CAPTION}.\n\nAssistant:{BEGIN_OF_IMAGE}")


def test_a_long_caption_loses_its_end(ar):
    reflection = ar.reflect(ar.example, "word " * 300, temperature=0, max_new_tokens=3)
    ids = ar.prompts.generation_ids("word " * 300)
    assert torch.equal(reflection.prompt.tokens.ids[:200], ids[:200])
    assert reflection.prompt.tokens.ids[200] == ar.prompts.placeholder
    uncond = reflection.prompt.uncond_tokens.ids
    assert uncond[0] == ids[0] and uncond[199] == ids[199] and (uncond[1:199] == ar.prompts.pad).all()


def test_prompts_over_the_context(ar):
    for run in (
        lambda: ar.edit(ar.example, "word " * 3000),
        lambda: ar.think("word " * 3000, "got-r1"),
        lambda: ar.generate_tokens(ar.generation_prompt("word " * 3000)),
    ):
        with pytest.raises(PromptError, match="too long"):
            run()


@pytest.mark.parametrize(
    "run,words",
    [
        (lambda ar: ar.think("a", "cot-r1"), "recipe is 'cot-r1', it must be 'reasongen-r1' or"),
        (lambda ar: ar.think("a", "t2i-r1", temperature=-1), "temperature"),
        (lambda ar: ar.think("a", "t2i-r1", max_new_tokens=5000), "max_new_tokens"),
        (lambda ar: ar.think("a", "t2i-r1", length=3), "no setting length"),
        (lambda ar: ar.think("a", "t2i-r1", num_thoughts=-1), "num_thoughts"),
        (lambda ar: ar.think("a", "t2i-r1", roles="Human"), "no roles Human"),
        (lambda ar: ar.edit(ar.example, "a", image_guidance=101), "image_guidance"),
        (lambda ar: ar.reflect(ar.example, "a", max_new_tokens=0), "max_new_tokens"),
    ],
)
def test_bad_settings_are_one_sentence(ar, run, words):
    with pytest.raises(JanusError, match=words) as error:
        run(ar)
    assert "\n" not in str(error.value)


def test_checkpoints_that_lack_tokens(ar, golden):
    """GoT-R1's tokens are added where the model has room for them; roles that are missing are an error."""
    with pytest.raises(PromptError, match=r"lacks the tokens .*box_start.*no embeddings"):
        ar.prompts.with_tokens(("<|box_start|>",), 540)
    assert ar.prompts.with_tokens(("<|User|>",), 540) is ar.prompts
    folder = golden("ar-a").folder
    text = (folder / "tokenizer.json").read_text(encoding="utf-8").replace("<|User|>", "<|Human|>")
    own = ar.prompts
    ar.prompts = PromptEncoder(text, {}, {}, "janus")
    try:
        for run in (
            lambda **roles: ar.think("a", "reasongen-r1", max_new_tokens=1, **roles),
            lambda **roles: ar.edit(ar.example, "a", **roles),
            lambda **roles: ar.reflect(ar.example, "a", max_new_tokens=1, **roles),
        ):
            with pytest.raises(PromptError, match=r"lacks <\|User\|>"):
                run()
            run(roles="User")
        ar.think("a", "t2i-r1", max_new_tokens=1)
    finally:
        ar.prompts = own


def test_explicit_roles_win(ar):
    for recipe, own, other in (("t2i-r1", "User", "<|User|>"), ("reasongen-r1", "<|User|>", "User")):
        for roles, used in (("auto", own), (other, other)):
            prompt = ar.think(CAPTION, recipe, roles=roles, max_new_tokens=1, temperature=0).prompt
            assert f"{used}: " in ar.prompts.decode(prompt.tokens.ids, special_tokens=True)


def test_boxes():
    thought = (
        " <|obj_start|> yellow vase<|obj_end|> <|box_start|>(202,482),(729,964)<|box_end|> beside "
        "<|obj_start|>two cats<|obj_end|><|box_start|>(10, 20),(0,1000)(500,0),(2000,7)<|box_end|>"
        "<|obj_start|>nothing<|obj_end|> <|box_start|>(1,2)<|box_end|><begin_of_image>"
    )
    expected = [
        {"x": 77.568, "y": 185.088, "width": 202.368, "height": 185.088, "label": "yellow vase", "score": 1.0},
        {"x": 0.0, "y": 7.68, "width": 3.84, "height": 376.32, "label": "two cats", "score": 1.0},
        {"x": 192.0, "y": 0.0, "width": 192.0, "height": 2.688, "label": "two cats", "score": 1.0},
    ]
    boxes = boxes_of(thought, 384)
    assert [{k: v if k == "label" else round(v, 6) for k, v in box.items()} for box in boxes] == expected
    assert boxes_of("a vase", 384) == []
