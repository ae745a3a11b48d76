"""Janus Image Prompt, Janus Think and Janus Reflect: the prompts of models fine-tuned from Janus-Pro."""

from contextlib import contextmanager

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..janus_core.errors import ImageError, PromptError
from ..janus_core.finetunes import edit, reflect
from ..janus_core.finetunes.boxes import boxes_of
from ..janus_core.finetunes.think import RECIPES, recipe_of, think
from ..janus_core.image import array_to_image, truncated_image
from ..janus_core.networks.vq import latent_to_tokens
from ..janus_core.sampling.settings import check_range
from . import conditioning
from .inputs import max_new_tokens_input, seed_input, temperature_input
from .prompt_node import text_model
from .vae import JanusVAE

CLIP_TOOLTIP = "From Load Janus-Pro."
VAE_TOOLTIP = "The VAE of the same Load Janus-Pro."


def janus_pro(clip):
    """The text model of Load Janus-Pro's CLIP. Raises PromptError for another CLIP."""
    model = text_model(clip)
    if model.prompts.family != "janus":
        raise PromptError("This node needs the CLIP of Load Janus-Pro; JanusFlow has no models of this kind.")
    return model


def encoded(vae, network, pixels):
    """The VQ tokens int64 [N] of pixels [3, H, W] in [-1, 1]. Raises ImageError for another checkpoint's VAE."""
    if not isinstance(vae, JanusVAE) or vae.first_stage_model.params != network.params.vq:
        raise ImageError("This node needs the VAE of the same Load Janus-Pro as the CLIP.")
    latent = vae.encode((pixels.permute(1, 2, 0)[None] + 1) / 2)
    return latent_to_tokens(latent.cpu(), network.codebook)[0]


@contextmanager
def on_device(clip, max_new_tokens: int):
    """Loads a CLIP's model with the memory to write text about an image; yields the Embedder and a progress report."""
    model = text_model(clip)
    needed = model.answer_bytes(1, max_new_tokens, images=2)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=needed, minimum_memory_required=needed)
    device = clip.patcher.load_device
    model.set_clip_options({"execution_device": device})
    bar = comfy.utils.ProgressBar(max_new_tokens)

    def report(done, total):
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    with comfy.model_management.cuda_device_context(device):
        yield model.embedder, report


def conditionings(embedder, prompt, text: str):
    """The two CONDITIONINGs of a GenerationPrompt, or of a batch of them."""
    return conditioning.of_prompt(embedder, prompt, text, comfy.model_management.intermediate_device())


def prompt_outputs() -> list:
    return [
        io.Conditioning.Output(display_name="positive", tooltip="The prompt, for Janus Token Sampler."),
        io.Conditioning.Output(display_name="negative", tooltip="The unconditional row of this prompt."),
    ]


class JanusImagePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusImagePrompt",
            display_name="Janus Image Prompt",
            category="Janus/conditioning",
            description='Encodes an image and an instruction that changes it, such as "make the sky red", for a '
            "Janus-4o checkpoint. Janus Token Sampler then generates the changed image.",
            search_aliases=["janus", "deepseek", "janus-4o", "edit", "instruction", "image to image"],
            inputs=[
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input("image", tooltip="The image to change. A batch gives one prompt per image."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="What to change, as an instruction."
                ),
                io.Float.Input(
                    "image_guidance",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How far the result may depart from the image. Janus-4o uses 5; at 0 it stays closest, and "
                    "two rows are computed instead of three.",
                ),
            ],
            outputs=prompt_outputs(),
        )

    @classmethod
    def execute(cls, clip, vae, image, text, image_guidance=5.0) -> io.NodeOutput:
        network = janus_pro(clip).network
        check_range("image_guidance", image_guidance, 0, 100)
        images = [array_to_image(one) for one in image]
        size = network.params.siglip.image_size
        tokens = [encoded(vae, network, edit.vq_pixels(one, size)) for one in images]
        with on_device(clip, 1) as (embedder, _):
            prompts = [edit.edit_prompt(embedder, *pair, text, image_guidance) for pair in zip(images, tokens)]
            return io.NodeOutput(*conditionings(embedder, prompts, text))


class JanusThink(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusThink",
            display_name="Janus Think",
            category="Janus/conditioning",
            description="Lets a ReasonGen-R1, T2I-R1 or GoT-R1 checkpoint write a plan of the image, and encodes the "
            "prompt that goes with it.",
            search_aliases=[
                "janus",
                "deepseek",
                "reasongen",
                "t2i-r1",
                "got-r1",
                "chain of thought",
                "prompt enhance",
                "plan",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="The image to generate, in plain language."
                ),
                io.Combo.Input("recipe", options=list(RECIPES), tooltip="Which of these models the checkpoint is."),
                temperature_input(1.0, "Of the plan. The authors use 1; 0 always writes the most likely plan."),
                seed_input("With a temperature above 0: the same seed gives the same plan."),
                max_new_tokens_input(0, "The longest plan, in tokens. 0 is the recipe's own limit.", min=0),
            ],
            outputs=[
                *prompt_outputs(),
                io.String.Output(display_name="thought", tooltip="The plan, as the model wrote it."),
                io.BoundingBox.Output(
                    display_name="boxes", tooltip="The boxes that GoT-R1 planned, in pixels of the native size."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, text, recipe, temperature=1.0, seed=0, max_new_tokens=0) -> io.NodeOutput:
        size = janus_pro(clip).network.params.siglip.image_size
        found = recipe_of(recipe)
        settings = found.settings(max_new_tokens, temperature=temperature, seed=seed)
        with on_device(clip, settings.max_new_tokens) as (embedder, report):
            ((thought, prompt),) = think(embedder, found.request(embedder, text), settings, report=report)
            outputs = conditionings(embedder, prompt, text)
        boxes = boxes_of(thought, size) if found.plans_boxes else []
        return io.NodeOutput(*outputs, thought, [boxes])


class JanusReflect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusReflect",
            display_name="Janus Reflect",
            category="Janus/conditioning",
            description="Asks a Janus-Pro-R1 checkpoint whether an image matches its prompt, and encodes the prompt to "
            "generate it again.",
            search_aliases=["janus", "deepseek", "janus-pro-r1", "check", "verify", "self-correct", "regenerate"],
            inputs=[
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                io.Vae.Input("vae", tooltip=VAE_TOOLTIP),
                io.Image.Input("image", tooltip="The image to check, one at a time."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt that the image was generated from.",
                ),
                temperature_input(1.0, "Of the answer. The authors use 1; 0 always writes the most likely answer."),
                seed_input("With a temperature above 0: the same seed gives the same answer."),
                max_new_tokens_input(80, "The longest answer, in tokens."),
            ],
            outputs=[
                *prompt_outputs(),
                io.Boolean.Output(display_name="matches", tooltip="Whether the image matches, for If/Else Switch."),
                io.String.Output(display_name="reason", tooltip="Why, as the model wrote it."),
            ],
        )

    @classmethod
    def execute(cls, clip, vae, image, text, temperature=1.0, seed=0, max_new_tokens=80) -> io.NodeOutput:
        network = janus_pro(clip).network
        settings = reflect.check_settings(max_new_tokens, temperature=temperature, seed=seed)
        if len(image) != 1:
            raise ImageError(f"Janus Reflect checks one image, not a batch of {len(image)}: use Get Image from Batch.")
        checked = truncated_image(image[0])
        tokens = encoded(vae, network, reflect.vq_pixels(checked, network.params.siglip.image_size))
        with on_device(clip, max_new_tokens) as (embedder, report):
            result = reflect.reflect(embedder, checked, tokens, text, settings, report=report)
            outputs = conditionings(embedder, result.prompt, text)
        return io.NodeOutput(*outputs, result.matches, result.reason)
