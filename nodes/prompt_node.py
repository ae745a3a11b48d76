"""Janus Prompt (CFG)."""

from comfy_api.latest import io

from ..janus_core.errors import PromptError
from .clip import JanusTextModel
from .inputs import chat_inputs


def text_model(clip) -> JanusTextModel:
    """The Janus text model of a CLIP. Raises PromptError for any other CLIP."""
    model = getattr(clip, "cond_stage_model", None)
    if not isinstance(model, JanusTextModel):
        raise PromptError("This node needs the CLIP output of Load Janus-Pro or Load JanusFlow.")
    return model


class JanusPromptEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JanusPromptEncode",
            display_name="Janus Prompt (CFG)",
            category="Janus/conditioning",
            description="Encodes a prompt with the model's own chat template, and the negative prompt for guidance. An "
            "empty negative prompt becomes the model's unconditional row, as in the paper.",
            search_aliases=["janus", "deepseek", "prompt", "clip text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Janus-Pro or Load JanusFlow."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The image to generate, in plain language; (word:1.2) is not a weight here.",
                ),
                io.String.Input(
                    "negative_text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What guidance moves away from. Leave it empty for guidance as in the paper.",
                ),
                *chat_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, clip, text, negative_text="", roles="auto", system_prompt="") -> io.NodeOutput:
        text_model(clip)
        tokens = [clip.tokenize(t, roles=roles, system_prompt=system_prompt) for t in (text, negative_text)]
        return io.NodeOutput(*map(clip.encode_from_tokens_scheduled, tokens))
