"""Janus Describe Image."""

from dataclasses import replace

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..janus_core.prompt import SYSTEM_PROMPT
from ..janus_core.sampling.settings import TextSamplerSettings
from ..janus_core.sampling.text import strip_end
from .inputs import chat_inputs, max_new_tokens_input, seed_input, temperature_input, top_p_input
from .prompt_node import text_model

QUESTION = "Describe this image in detail."


def describe(clip, images, question: str, settings: TextSamplerSettings, progress: bool = True, **chat) -> list[str]:
    """One answer per image of an IMAGE batch, without the blanks around it.

    As many images as fit in memory are answered together.

    Args:
        chat: roles and system_prompt, see PromptEncoder.chat.
        progress: whether to move the node's progress bar.
    """
    model = text_model(clip)
    count, max_new_tokens = len(images), settings.max_new_tokens
    one = model.answer_bytes(1, max_new_tokens)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=one * count, minimum_memory_required=one)
    device = clip.patcher.load_device
    model.set_clip_options({"execution_device": device})
    chunk_size = max(1, int(clip.patcher.get_free_memory(device) // one))
    bar = comfy.utils.ProgressBar(max_new_tokens * -(-count // chunk_size)) if progress else None
    answers = []
    with comfy.model_management.cuda_device_context(device):
        for start in range(0, count, chunk_size):
            chunk = images[start : start + chunk_size]
            before = max_new_tokens * (start // chunk_size)
            chunk_settings = replace(settings, seed=(settings.seed + start) % 2**64)
            for ids in model.answers(chunk, question, chunk_settings, **chat):
                comfy.model_management.throw_exception_if_processing_interrupted()
                if progress:
                    bar.update_absolute(before + ids.shape[1])
            answers += [model.prompts.decode(strip_end(row, model.prompts.eos)).strip() for row in ids]
    if progress:
        bar.update_absolute(bar.total)
    return answers


class JanusDescribeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusDescribeImage",
            display_name="Janus Describe Image",
            category="Janus/text",
            description="Answers a question about each image of a batch, with the same weights that generate images.",
            search_aliases=[
                "janus",
                "deepseek",
                "caption",
                "describe",
                "vqa",
                "vision",
                "image to text",
                "interrogate",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Janus-Pro or Load JanusFlow."),
                io.Image.Input("image", tooltip="Every image of the batch gets an answer."),
                io.String.Input(
                    "question",
                    multiline=True,
                    default=QUESTION,
                    tooltip="What to ask about the image, or what to do with it, in plain language.",
                ),
                max_new_tokens_input(512, "The longest answer, in tokens; most are shorter."),
                temperature_input(0.0, "0 always writes the most likely answer; higher values vary it more."),
                top_p_input(
                    0.95,
                    "With a temperature above 0: sample from the most likely tokens of this total probability.",
                ),
                seed_input("With a temperature above 0: the same seed gives the same answer."),
                *chat_inputs(SYSTEM_PROMPT),
            ],
            outputs=[io.String.Output(display_name="answer", is_output_list=True, tooltip="One per image.")],
        )

    @classmethod
    def execute(
        cls,
        clip,
        image,
        question,
        max_new_tokens,
        temperature,
        top_p,
        seed,
        roles="auto",
        system_prompt=SYSTEM_PROMPT,
    ) -> io.NodeOutput:
        settings = TextSamplerSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        return io.NodeOutput(describe(clip, image, question, settings, roles=roles, system_prompt=system_prompt))
