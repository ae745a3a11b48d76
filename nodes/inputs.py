"""Inputs that several nodes share."""

from comfy_api.latest import io

from ..janus_core.errors import SamplingError
from ..janus_core.prompt import ROLES
from ..janus_core.sampling.settings import MAX_NEW_TOKENS


def prompt_inputs() -> list:
    """The conditional and the unconditional branch of guidance."""
    return [
        io.Conditioning.Input("positive", tooltip="The prompt, from Janus Prompt (CFG) or CLIP Text Encode."),
        io.Conditioning.Input(
            "negative", tooltip="What guidance moves away from; an empty prompt gives guidance as in the paper."
        ),
    ]


def image_latent(latent: dict):
    """The samples [B, C, h, w] of an image's LATENT. Raises SamplingError for one of audio, video, layers or a mesh."""
    if latent.get("type", "image") != "image":
        raise SamplingError(f"This latent is of type {latent['type']}, not of an image: use Empty Latent Image.")
    check_image_shape(latent["samples"])
    return latent["samples"]


def with_samples(latent: dict, samples) -> dict:
    """A LATENT with other samples, whose size is their own: without a downscale ratio."""
    return {**{k: v for k, v in latent.items() if not k.startswith("downscale_ratio")}, "samples": samples}


def check_image_shape(samples):
    """Raises SamplingError unless samples or noise have the four dimensions of images."""
    if samples.is_nested or samples.ndim != 4:
        kind = "several parts" if samples.is_nested else f"{samples.ndim} dimensions"
        raise SamplingError(f"This latent has {kind}, an image's has 4 dimensions: use Empty Latent Image.")


def seed_input(tooltip: str):
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def top_p_input(default: float, tooltip: str, **settings):
    return io.Float.Input("top_p", default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **settings)


def temperature_input(default: float, tooltip: str):
    return io.Float.Input("temperature", default=default, min=0.0, max=5.0, step=0.05, tooltip=tooltip)


def max_new_tokens_input(default: int, tooltip: str, min: int = 1):
    return io.Int.Input("max_new_tokens", default=default, min=min, max=MAX_NEW_TOKENS, tooltip=tooltip)


def cfg_input(default: float, tooltip: str):
    return io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def chat_inputs(system_prompt: str = "") -> list:
    """How the chat template is filled."""
    settings = dict(optional=True, advanced=True)
    return [
        io.Combo.Input(
            "roles",
            options=["auto", *ROLES],
            default="auto",
            tooltip="The names of user and assistant in the chat template. auto: as the checkpoint's files say.",
            **settings,
        ),
        io.String.Input(
            "system_prompt",
            multiline=True,
            default=system_prompt,
            tooltip="The text in front of the chat. Empty leaves it out.",
            **settings,
        ),
    ]


def interval_inputs(whole: str) -> list:
    """The part in which guidance acts of a `whole`, such as "run"."""
    settings = dict(min=0.0, max=1.0, step=0.01, optional=True, advanced=True)
    return [
        io.Float.Input(
            "cfg_start",
            default=0.0,
            tooltip=f"The fraction of the {whole} at which guidance starts. Before it, only the prompt is used.",
            **settings,
        ),
        io.Float.Input(
            "cfg_end",
            default=1.0,
            tooltip=f"The fraction of the {whole} at which guidance ends. After it, one row per image is computed "
            "instead of two.",
            **settings,
        ),
    ]
