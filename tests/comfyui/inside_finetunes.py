"""Checks of the fine-tunes' nodes that need ComfyUI's modules in the process.

test_finetune_nodes.py runs this file with ComfyUI's Python and folder, and the name of one check.
"""

import json
import sys
from unittest import mock

from load_pack import PACK  # isort: split

import numpy as np
import torch
from comfy_extras.nodes_rtdetr import DrawBBoxes
from pack.janus_core.checkpoint import read_checkpoint
from pack.janus_core.errors import PromptError
from pack.janus_core.finetunes import think
from pack.janus_core.sampling.settings import TokenSamplerSettings
from pack.nodes import finetune_nodes, loader_nodes, token_prompts, token_sampling
from pack.nodes.clip import make_clip
from pack.nodes.vae import JanusVAE
from PIL import Image
from safetensors.torch import load_file

import nodes as stock

CHECK = sys.argv[1]
GOLDENS = PACK / "tests" / "data" / "goldens"


def pro_and_goldens():
    """What Load Janus-Pro gives for ar-a in float32, and finetunes.safetensors with its texts and an IMAGE."""
    folder = GOLDENS / "ar-a"
    checkpoint = read_checkpoint(folder)
    model = loader_nodes.make_patcher(checkpoint, "fp32")
    vae = model.model.vae = JanusVAE(checkpoint)
    texts = json.loads((folder / "finetunes.json").read_text(encoding="utf-8"))["texts"]
    image = torch.from_numpy(np.array(Image.open(folder / "picture.png").convert("RGB"))) / 255
    return model, make_clip(model, checkpoint), vae, load_file(folder / "finetunes.safetensors"), texts, image[None]


def guided_logits(model, positive, negative):
    """The guided logits of the first six tokens that Janus Token Sampler samples."""
    logits, sample = [], token_sampling.sample_image_tokens

    def logged(*args, **kwargs):
        for step in sample(*args, **kwargs):
            logits.append(step.logits[0].clone())
            yield step

    with mock.patch.object(token_sampling, "sample_image_tokens", logged):
        token_sampling.sample(
            model, positive, negative, {"samples": torch.zeros(1, 8, 6, 6)}, TokenSamplerSettings(temperature=0)
        )
    return torch.stack(logits[:6])


def prompts_of_fine_tuned_models_are_exact():
    """Token ids, embeddings, masks and guided logits of the nodes' conditionings are the authors'."""
    model, clip, vae, expected, texts, source = pro_and_goldens()
    network = model.model.diffusion_model

    def compare(name, positive, negative, prefix=""):
        logits = guided_logits(model, positive, negative)
        assert (logits - expected[f"{name}.{prefix}logits"]).abs().max() < 1e-4, name
        ids = next(
            expected[f"{name}.{prefix}{k}"] for k in ("cond_ids", "full_ids") if f"{name}.{prefix}{k}" in expected
        )
        assert torch.equal(positive[0][1]["janus_ids"], ids)
        assert torch.equal(negative[0][1]["janus_ids"], expected[f"{name}.{prefix}uncond_ids"])
        if f"{name}.{prefix}embeds" in expected:
            prompts = token_prompts.read_prompts(positive, negative, 1, network)
            rows = [*prompts.cond, *(prompts.part or []), *prompts.uncond]
            embeds = torch.stack([row.embeds for row in rows])
            assert (embeds - expected[f"{name}.{prefix}embeds"]).abs().max() < 1e-4, name

    for case in ("p0", "p1"):
        name = f"janus4o.{case}"
        compare(name, *finetune_nodes.JanusImagePrompt.execute(clip, vae, source, texts[name]["prompt"]).result)
        for key, recipe in (("reasongen", "reasongen-r1"), ("t2i_r1", "t2i-r1"), ("got_r1", "got-r1")):
            name = f"{key}.{case}"
            result = finetune_nodes.JanusThink.execute(clip, texts[name]["prompt"], recipe, 0.0, 0, 12).result
            assert result[2] == texts[name]["text"]
            compare(name, *result[:2])
        name = f"pro_r1.{case}"
        image = expected[f"{name}.picture"][None].float() / 255
        result = finetune_nodes.JanusReflect.execute(clip, vae, image, texts[name]["prompt"], 0.0, 0, 12).result
        assert result[2] is (texts[name]["verdict"] == "Yes")
        compare(name, *result[:2], prefix="redraw.")
        mask = result[0][0][1]["attention_mask"][0]
        assert torch.equal(mask, expected[f"{name}.redraw.mask"])


def stock_nodes_change_both_conditional_rows():
    """Both rows are made from the changed tensor; they differ where the first has VQ tokens and the second pads."""
    model, clip, vae, _, _, source = pro_and_goldens()
    network = model.model.diffusion_model
    positive, negative = finetune_nodes.JanusImagePrompt.execute(clip, vae, source, "make it red", 2.0).result
    part = positive[0][1]["janus_part"]
    other = clip.encode_from_tokens_scheduled(clip.tokenize("a dog"))
    changes = {
        "average": stock.ConditioningAverage().addWeighted(positive, other, 0.3)[0],
        "concat": stock.ConditioningConcat().concat(positive, other)[0],
        "zero": stock.ConditioningZeroOut().zero_out(positive)[0],
        "range": stock.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.5)[0],
    }
    for name, changed in changes.items():
        prompts = token_prompts.read_prompts(changed, negative, 1, network)
        (cond,), (second,), (uncond,) = prompts.cond, prompts.part, prompts.uncond
        assert prompts.part_weight == 2.0 and len(cond.embeds) == len(second.embeds) == len(uncond.embeds), name
        assert torch.equal(cond.embeds, changed[0][0][0]), name
        differs = (cond.embeds != second.embeds).any(-1).nonzero().flatten().tolist()
        assert differs == list(range(part.start, part.end)), name
        assert torch.equal(second.embeds[part.start], part.pad.float()), name
    assert len(changes["concat"][0][0][0]) > len(positive[0][0][0])
    combined = stock.ConditioningCombine().combine(positive, changes["average"])[0]
    prompts = token_prompts.read_prompts(combined, negative, 2, network)
    assert len(prompts.cond) == len(prompts.part) == 2 and len(prompts.uncond) == 1
    prompts = token_prompts.read_prompts(other, positive, 1, network)
    assert prompts.part is None, "a negative's second row is not used"
    for conds in (combined + positive, stock.ConditioningCombine().combine(positive, other)[0]):
        try:
            token_prompts.read_prompts(conds, negative, 2, network)
        except PromptError as error:
            assert "\n" not in str(error)
        else:
            raise AssertionError("three prompts for two images, and an image in one of two, must be refused")


def planned_boxes_fit_stock_draw_bboxes():
    """GoT-R1's boxes are in pixels; Draw BBoxes prints a label only if it is a name of COCO."""
    _, clip, _, _, _, _ = pro_and_goldens()

    def planned(label, recipe="got-r1"):
        plan = f"<|obj_start|>{label}<|obj_end|> <|box_start|>(250,250),(750,500)<|box_end|><begin_of_image>"
        thought = think.Thought(
            plan, clip.cond_stage_model.embedder.prompt(clip.cond_stage_model.prompts.conditional("a"))
        )
        with mock.patch.object(finetune_nodes, "think", lambda *args, **kwargs: [thought]):
            return finetune_nodes.JanusThink.execute(clip, "a", recipe).result[3]

    box = {"x": 24.0, "y": 24.0, "width": 48.0, "height": 24.0, "label": "cat", "score": 1.0}
    clip.cond_stage_model.set_clip_options({"execution_device": torch.device("cpu")})
    assert planned("cat") == [[box]] and planned("cat", "t2i-r1") == [[]]
    named, other = (
        DrawBBoxes.execute(planned(label), torch.zeros(1, 96, 96, 3)).result[0][0] for label in ("cat", "cube")
    )
    for image in (named, other):
        assert image[24, 24:72].any() and not image[:20].any() and not image[80:].any()
    assert named[28:44, 28:68].any() and not other[28:44, 28:68].any()


with torch.inference_mode():
    globals()[CHECK]()
