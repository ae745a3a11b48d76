"""The recipes of fine-tuned models: every tensor of finetunes.safetensors through the public functions, and what they
promise about batches, settings and bad input.

Integers equal, floats within 1e-4. Janus-Pro-R1's check starts from the golden 8-bit image.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checked import Checked
from PIL import Image
from safetensors.torch import load_file

import janus_core
from janus_core.finetunes import edit, reflect, think
from janus_core.finetunes.generation_prompt import batch_rows
from janus_core.image import open_image, truncated_image, understanding_pixels
from janus_core.networks.vq import tokens_to_latent
from janus_core.sampling.settings import TokenSamplerSettings
from janus_core.sampling.tokens import sample_image_tokens

GREEDY = TokenSamplerSettings(temperature=0)
RECIPES = {"reasongen": "reasongen-r1", "t2i_r1": "t2i-r1", "got_r1": "got-r1"}
CASES = [(model, case) for model in ("janus4o", "pro_r1", *RECIPES) for case in ("p0", "p1")]


@pytest.fixture(scope="module")
def ar(golden):
    folder = golden("ar-a").folder
    pipe = janus_core.load(folder, device="cpu", dtype=torch.float32)
    golden_texts = json.loads((folder / "finetunes.json").read_text(encoding="utf-8"))
    return SimpleNamespace(
        folder=folder,
        pipe=pipe,
        limit=golden_texts["settings"]["limit"],
        texts=golden_texts["texts"],
        tensors=load_file(folder / "finetunes.safetensors"),
        source=open_image(folder / "picture.png"),
    )


def checked(tensors, case: str) -> Checked:
    return Checked({n.removeprefix(f"{case}."): t for n, t in tensors.items() if n.startswith(f"{case}.")})


def rows_of(prompt):
    """The prompt's rows in the golden files' order: conditional, second conditional, unconditional."""
    return [row for row in (prompt.cond, prompt.part_row, prompt.uncond) if row is not None]


def check_sampling(pipe, prompt, check, prefix=""):
    """The first step's logits of each row, the guided logits, and the tokens; then the tokens of the pipeline."""
    for row in rows_of(prompt):
        assert row.visible.dtype == torch.bool
    first = []
    for row in rows_of(prompt):
        step = next(sample_image_tokens(pipe.model, [row], None, 36, TokenSamplerSettings(guidance=1, temperature=0)))
        first.append(step.logits[0])
    check(f"{prefix}row_logits", torch.stack(first))
    cond, uncond, part, part_weight = batch_rows([prompt])
    steps = sample_image_tokens(pipe.model, cond, uncond, 36, GREEDY, part=part, part_weight=part_weight)
    logits, tokens = zip(*((step.logits[0], step.tokens) for step in steps))
    check(f"{prefix}logits", torch.stack(logits[:6]))
    check(f"{prefix}greedy_tokens", tokens[-1])
    check(f"{prefix}greedy_tokens", pipe.generate_tokens(prompt, temperature=0))


def text_logits(pipe, embeds, written):
    """Raw logits of each written token, from one pass over the prompt and the text."""
    text = pipe.model.embed_text(torch.tensor(written[:-1], dtype=torch.long), torch.float32)
    hidden = pipe.model.llama(torch.cat((embeds, text))[None])[0, len(embeds) - 1 :]
    return pipe.model.text_logits(hidden)[:6]


@torch.inference_mode()
@pytest.mark.parametrize("case", ["p0", "p1"])
def test_edit(ar, case):
    pipe, check, text = ar.pipe, checked(ar.tensors, f"janus4o.{case}"), ar.texts[f"janus4o.{case}"]
    assert edit.edit_text(pipe.prompts, text["prompt"], 36, 36) == text["sft"]
    prompt = pipe.edit_prompt(ar.source, text["prompt"])
    check("full_ids", prompt.tokens.ids)
    check("part_ids", prompt.tokens.ids)
    check("uncond_ids", prompt.uncond_tokens.ids)
    pixels = understanding_pixels(ar.source, pipe.image_size)[None]
    check("input_codes", pipe.encode_tokens(pixels))
    if case == "p0":
        check("pixels", pixels)
        check("embeds", torch.stack([row.embeds for row in rows_of(prompt)]))
    check_sampling(pipe, prompt, check)
    expected = pipe.decode_tokens(ar.tensors[f"janus4o.{case}.greedy_tokens"])
    assert pipe.edit(ar.source, text["prompt"], temperature=0)[0].tobytes() == expected[0].tobytes()
    check.all()


@torch.inference_mode()
@pytest.mark.parametrize("case", ["p0", "p1"])
@pytest.mark.parametrize("model", RECIPES)
def test_think(ar, model, case):
    pipe, check, text = ar.pipe, checked(ar.tensors, f"{model}.{case}"), ar.texts[f"{model}.{case}"]
    recipe = think.recipe_of(RECIPES[model])
    request = recipe.request(pipe.embedder, text["prompt"])
    check("input_ids", request.ids)
    settings = recipe.settings(ar.limit, temperature=0)
    (written,) = think.sample_plans(pipe.embedder, request, settings, 1, lambda done, total: None)
    check("text_ids", written)
    check("text_logits", text_logits(pipe, pipe.embedder.text(request.ids), written))
    thought, prompt = pipe.think(text["prompt"], RECIPES[model], temperature=0, max_new_tokens=ar.limit)
    assert thought == text["text"]
    check("cond_ids", prompt.tokens.ids)
    check("uncond_ids", prompt.uncond_tokens.ids)
    check_sampling(pipe, prompt, check)
    check.all()
    chat = request.prompts.chat(
        recipe.template.replace("{}", text["prompt"]), roles=recipe.roles, system_prompt=recipe.system_prompt
    )
    assert chat == text["sft"]
    if model == "got_r1":
        assert [request.prompts.tokenizer.token_to_id(t) for t in recipe.tokens] == text["box_token_ids"]
        assert pipe.prompts.tokenizer.token_to_id(recipe.tokens[0]) is None, "ordinary prompts are as before"


@torch.inference_mode()
@pytest.mark.parametrize("case", ["p0", "p1"])
def test_reflect(ar, case):
    pipe, check, text = ar.pipe, checked(ar.tensors, f"pro_r1.{case}"), ar.texts[f"pro_r1.{case}"]
    caption, golden_image = text["prompt"], ar.tensors[f"pro_r1.{case}.picture"]
    first = pipe.generation_prompt(caption)
    check("draw.cond_ids", first.tokens.ids)
    check("draw.uncond_ids", first.uncond_tokens.ids)
    check_sampling(pipe, first, check, "draw.")
    latent = tokens_to_latent(check.expected["draw.greedy_tokens"], pipe.codebook, (6, 6))
    pixels = (pipe.decode_pixels(latent) + 1) / 2
    mine = np.array(truncated_image(pixels[0].permute(1, 2, 0)), dtype=int)
    difference = np.abs(mine - golden_image.numpy().astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    image = Image.fromarray(golden_image.byte().numpy())
    check("picture", np.array(truncated_image(golden_image.float() / 255)))

    ids = reflect.prompt_ids(pipe.prompts, caption)
    check_ids, embeds = reflect.match_question(pipe.embedder, ids, image)
    check("check_ids", check_ids)
    yes_no = list(reflect.yes_no_ids(pipe.prompts))
    check("yes_no_ids", yes_no)
    answer = reflect.sample_answer(
        pipe.embedder, embeds, reflect.check_settings(ar.limit, temperature=0), lambda done, total: None
    )
    check("text_ids", answer)
    logits = text_logits(pipe, embeds, answer)
    check("check_logits", logits)
    check("yes_no_logits", logits[0, yes_no])
    matches, reason, prompt = pipe.reflect(image, caption, temperature=0, max_new_tokens=ar.limit)
    assert matches == (text["verdict"] == "Yes")
    assert pipe.prompts.decode(answer[:1]) + reason == text["text"]
    check("redraw.cond_ids", prompt.tokens.ids)
    check("redraw.uncond_ids", prompt.uncond_tokens.ids)
    check("redraw.mask", prompt.tokens.visible)
    check(
        "redraw.source_codes", pipe.encode_tokens(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1)
    )
    if case == "p0":
        check("check_embeds", embeds[None])
        check("redraw.embeds", torch.stack([row.embeds for row in rows_of(prompt)]))
    check_sampling(pipe, prompt, check, "redraw.")
    check.all()
