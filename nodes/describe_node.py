"""Janus Describe Image."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..janus_core.sampling.choice import Choice
from ..janus_core.sampling.text import strip_end
from .inputs import seed_input, temperature_input, top_p_input
from .prompt_node import text_model

QUESTION = "Describe this image in detail."


def describe(
    clip, pictures, question: str, max_new_tokens: int, choice: Choice, seed: int, progress: bool = True
) -> list[str]:
    """One answer per picture of an IMAGE batch; pictures that fit in memory together are answered together.

    Args:
        progress: whether to move the node's progress bar.
    """
    model = text_model(clip)
    count = len(pictures)
    one = model.answer_bytes(1, max_new_tokens)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=one * count, minimum_memory_required=one)
    device = clip.patcher.load_device
    model.set_clip_options({"execution_device": device})
    together = max(1, int(clip.patcher.get_free_memory(device) // one))
    bar = comfy.utils.ProgressBar(max_new_tokens * -(-count // together)) if progress else None
    answers = []
    with comfy.model_management.cuda_device_context(device):
        for start in range(0, count, together):
            chunk = pictures[start : start + together]
            before = max_new_tokens * (start // together)
            for ids in model.answers(chunk, question, max_new_tokens, choice, (seed + start) % 2**64):
                comfy.model_management.throw_exception_if_processing_interrupted()
                if progress:
                    bar.update_absolute(before + ids.shape[1])
            answers += [model.prompts.decode(strip_end(row, model.prompts.eos)) for row in ids]
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
            description="Answers a question about each picture of a batch, with the same weights that draw.",
            search_aliases=["janus", "caption", "describe", "vqa", "vision", "image to text", "interrogate"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Janus-Pro or Load JanusFlow."),
                io.Image.Input("image", tooltip="One answer is written for every picture of the batch."),
                io.String.Input(
                    "question",
                    multiline=True,
                    default=QUESTION,
                    tooltip="What to ask about the picture, or what to do with it, in plain language.",
                ),
                io.Int.Input(
                    "max_new_tokens", default=512, min=1, max=4096, tooltip="The longest answer; most end before."
                ),
                temperature_input(0.0, "0 writes the most likely answer; more is freer."),
                top_p_input(0.95, "With a temperature: choose among the likeliest words of this total probability."),
                seed_input("With a temperature: the same seed writes the same answer."),
            ],
            outputs=[io.String.Output(display_name="answer", is_output_list=True, tooltip="One per picture.")],
        )

    @classmethod
    def execute(cls, clip, image, question, max_new_tokens, temperature, top_p, seed) -> io.NodeOutput:
        return io.NodeOutput(describe(clip, image, question, max_new_tokens, Choice(temperature, 0, top_p), seed))
