"""Editing an image by instruction, as Janus-4o's generation code does (arXiv 2506.18095)."""

from dataclasses import replace

import torch
from PIL import Image

from ..errors import PromptError
from ..image import understanding_pixels
from ..prompt import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, PAD, PromptEncoder, all_visible
from ..sampling.settings import check_range
from ..schema import Text, check
from .generation_prompt import Embedder, GenerationPrompt, Part, roles_of

ROLES, MODEL = "<|User|>", "Janus-4o"


def edit_text(prompts: PromptEncoder, instruction: str, seen: int, encoded: int, roles: str = "auto") -> str:
    """The chat text of an edit.

    Args:
        seen, encoded: how many tokens the image takes as the vision tower sees it, and as VQ tokens.
    """
    check("The instruction", instruction, Text(empty=True), PromptError)
    image = f"{BEGIN_OF_IMAGE}{IMAGE_PLACEHOLDER * seen}{END_OF_IMAGE}{BEGIN_OF_IMAGE}{PAD * encoded}{END_OF_IMAGE}"
    return prompts.generation_text(image + instruction, roles=roles_of(prompts, MODEL, ROLES, roles))


def vq_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """What the VQ model encodes of an image: the vision tower's input, float32 [3, size, size] in [-1, 1]."""
    return understanding_pixels(image, size)


def edit_prompt(
    embedder: Embedder,
    image: Image.Image,
    vq_tokens: torch.Tensor,
    instruction: str,
    image_guidance: float = 5.0,
    roles: str = "auto",
) -> GenerationPrompt:
    """The prompt to edit an image.

    The first row has the image twice: as the vision tower sees it, and as VQ tokens. The second row lacks the VQ
    tokens; `image_guidance` is its weight w2 in `(full + w2 part) / (1 + w2)`.

    Args:
        image: of any size; it is resized and padded to the native square.
        vq_tokens: int64 [N], of its vq_pixels at the native size.
        image_guidance: 0 to 100; 0 leaves the second row out.
        roles: as in PromptEncoder.chat; "auto" is the recipe's.

    Raises:
        PromptError, SamplingError: the checkpoint lacks a token, or a setting is out of range.
    """
    check_range("image_guidance", image_guidance, 0, 100)
    prompts = embedder.prompts
    seen, encoded = embedder.image(image), embedder.vq_tokens(vq_tokens)
    ids = prompts.ids(edit_text(prompts, instruction, len(seen), len(encoded), roles))
    first = int((ids == prompts.placeholder).nonzero()[0])
    start = first + len(seen) + 2
    prompt = embedder.prompt(all_visible(ids))
    full = prompt.embeds.clone()
    full[first : first + len(seen)] = seen
    full[start : start + len(encoded)] = encoded
    pad = embedder.text(torch.tensor([prompts.pad]))[0]
    return replace(prompt, embeds=full, part=Part(start, start + len(encoded), pad, image_guidance))
