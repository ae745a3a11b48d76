"""Answering questions about images: pixels, question, sampled text."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from .errors import ImageError
from .image import understanding_pixels
from .prompt import Messages, PromptEncoder, Question
from .sampling.settings import TextSamplerSettings
from .sampling.text import sample_text
from .vision_language import VisionLanguageModel


def answer_steps(
    model: VisionLanguageModel,
    prompts: PromptEncoder,
    images: Sequence[Sequence[Image.Image]],
    question: str | Messages,
    settings: TextSamplerSettings,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seeds: Sequence[int] | None = None,
    **chat,
) -> Iterator[torch.Tensor]:
    """Samples the answers to one question.

    Args:
        images: of each answer the images that the question is about, the same number for each; [[]] asks without any.
        question: a text, or the messages of a conversation (see PromptEncoder.chat).
        device, dtype: where and in which dtype the model computes.
        seeds: a seed per answer, instead of seed + k.
        chat: roles and system_prompt, see PromptEncoder.chat.

    Yields:
        int64 [B, n] after each token: the answers so far (see sampling.text).

    Raises:
        PromptError: placeholders and images do not match, or the question does not fit the context.
        SamplingError: the model's logits are not finite.
    """
    siglip = model.params.siglip
    tokens = prompts.question_ids(question, siglip.tokens, len(images[0]), **chat)
    if images[0]:
        pixels = torch.stack([understanding_pixels(one, siglip.image_size) for group in images for one in group])
        embeds = question_embeds(model, tokens, model.embed_images(pixels.to(device, dtype)), dtype)
    else:
        embeds = model.embed_text(tokens.ids.to(device), dtype)[None]
    return sample_text(model, embeds, prompts.eos, settings, seeds=seeds)


def question_embeds(model: VisionLanguageModel, question: Question, image_embeds, dtype: torch.dtype) -> torch.Tensor:
    """Input embeddings of a question.

    Args:
        image_embeds: what `model.embed_images` gave for a batch of B times n images, [B * n, tokens, hidden].

    Returns:
        [B, L, hidden].
    """
    hidden = image_embeds.shape[-1]
    image_embeds = image_embeds.reshape(-1, int(question.is_image.sum()), hidden).to(dtype)
    embeds = model.embed_text(question.ids.to(image_embeds.device), dtype).repeat(image_embeds.shape[0], 1, 1)
    embeds[:, question.is_image.to(embeds.device)] = image_embeds
    return embeds


def image_groups(images) -> list[list[Image.Image]]:
    """The images of each answer.

    Args:
        images: an image, or a list with one entry per answer, an image or a list of images; None for an answer without.

    Raises:
        ImageError: there is no image, or answers have different numbers of images.
    """
    if images is None:
        return [[]]
    groups = images if isinstance(images, (list, tuple)) else [images]
    groups = [list(group) if isinstance(group, (list, tuple)) else [group] for group in groups]
    if not groups or not groups[0] or len({len(group) for group in groups}) != 1:
        raise ImageError("There must be an image to describe, and the same number of images for every answer.")
    return groups
