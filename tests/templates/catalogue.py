"""The templates: their names, and what their images show."""

from collections.abc import Callable
from typing import NamedTuple

from . import janus_pro, janusflow, two_models
from .builder import Builder


class Entry(NamedTuple):
    """A template's function and what its last image shows; None where the demo models have no such scene."""

    build: Callable[[Builder], None]
    scene: str | None


TEMPLATES = {
    "Janus-Pro - Text to Image": Entry(janus_pro.text_to_image, "a red circle on a blue background"),
    "Janus-Pro - Inpaint": Entry(janus_pro.inpaint, "a yellow cross above an orange circle on a black background"),
    "Janus-Pro - Describe Image": Entry(janus_pro.describe_image, "a black square on a yellow background"),
    "Janus-Pro - Caption a Dataset": Entry(janus_pro.caption_dataset, "a large yellow cross on a purple background"),
    "Janus-Pro - Caption to Prompt": Entry(two_models.caption_to_prompt, "a white square on a green background"),
    "Janus-Pro - LoRA": Entry(janus_pro.lora, "a yellow triangle on a black background"),
    "Janus-Pro - Batch Contact Sheet": Entry(janus_pro.contact_sheet, None),
    "Janus-Pro - Upscale": Entry(janus_pro.upscale, "a green cross on a white background"),
    "Janus-Pro - Refine with JanusFlow": Entry(
        two_models.refine_with_janusflow, "a blue triangle on an orange background"
    ),
    "Janus-Pro and JanusFlow - Compare": Entry(
        two_models.compare, "a white circle above a green square on a red background"
    ),
    "JanusFlow - Text to Image": Entry(janusflow.text_to_image, "a white cross on a purple background"),
    "JanusFlow - KSampler and SamplerCustom": Entry(
        janusflow.stock_samplers, "an orange triangle on a green background"
    ),
    "JanusFlow - Image to Image": Entry(janusflow.image_to_image, "a green square on a yellow background"),
    "JanusFlow - Inpaint": Entry(janusflow.inpaint, "a blue triangle above a yellow circle on a white background"),
    "JanusFlow - Refine with SDXL": Entry(janusflow.refine_with_sdxl, None),
}


WITHOUT_DEMO = {"JanusFlow - Refine with SDXL"}  # needs weights that the pack does not ship


def templates(schema: dict):
    """Every template, built."""
    for name, entry in TEMPLATES.items():
        template = Builder(name, schema, entry.scene)
        entry.build(template)
        yield template
