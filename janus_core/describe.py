"""Answering questions about images: pixels, question, sampled text."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from .image import understanding_pixels
from .prompt import PromptEncoder, question_embeds
from .sampling.settings import TextSamplerSettings
from .sampling.text import sample_text
from .vision_language import VisionLanguageModel


def answer_steps(
    model: VisionLanguageModel,
    prompts: PromptEncoder,
    images: Sequence[Sequence[Image.Image]],
    question: str,
    settings: TextSamplerSettings,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """Samples the answers to one question.

    Args:
        images: of each answer the images that the question is about, the same number for each; [[]] asks without any.
        device, dtype: where and in which dtype the model computes.

    Yields:
        int64 [B, n] after each token: the answers so far (see sampling.text).

    Raises:
        PromptError: placeholders and images do not match, or the question does not fit the context.
        SamplingError: the model's logits are not finite.
    """
    siglip = model.params.siglip
    tokens = prompts.question_ids(question, siglip.tokens, len(images[0]))
    if images[0]:
        pixels = torch.stack([understanding_pixels(one, siglip.image_size) for group in images for one in group])
        embeds = question_embeds(model, tokens, model.embed_images(pixels.to(device, dtype)), dtype)
    else:
        embeds = model.embed_text(tokens.ids.to(device), dtype)[None]
    return sample_text(model, embeds, prompts.eos, settings)
