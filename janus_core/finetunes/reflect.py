"""Checking an image and generating again, as Janus-Pro-R1's generation code does (arXiv 2506.01480)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image

from ..image import cropped_pixels
from ..prompt import BEGIN_OF_IMAGE, END_OF_IMAGE, EOS, PromptEncoder, PromptTokens
from ..sampling.settings import TextSamplerSettings
from ..sampling.text import sample_text, written_ids
from .generation_prompt import Embedder, GenerationPrompt, roles_of

ROLES, MODEL = "<|User|>", "Janus-Pro-R1"
MAX_PROMPT = 200  # tokens; a longer prompt is cut at its end
MAX_NEW_TOKENS = 80
CHECK = f"{END_OF_IMAGE}\nLet me think Does this image match the prompt..."
AGAIN = f"{EOS}\nNext, I will draw a new image{BEGIN_OF_IMAGE}"


class Reflection(NamedTuple):
    """What the model says about an image, and the prompt to generate it again."""

    matches: bool
    reason: str
    prompt: GenerationPrompt


def check_settings(max_new_tokens: int = MAX_NEW_TOKENS, **settings) -> TextSamplerSettings:
    """The authors' settings of the answer: temperature 1, no top-k or top-p, at most 80 tokens."""
    return TextSamplerSettings(max_new_tokens=max_new_tokens, **{"temperature": 1.0, "top_p": 1.0, **settings})


def prompt_ids(prompts: PromptEncoder, prompt: str, roles: str = "auto") -> torch.Tensor:
    """Token ids of the prompt for the first image, int64 [at most 200]."""
    return prompts.generation_ids(prompt, roles=roles_of(prompts, MODEL, ROLES, roles))[:MAX_PROMPT]


def yes_no_ids(prompts: PromptEncoder) -> tuple[int, int]:
    """The token ids that the answer may begin with: the last of those of "Yes" and of "No"."""
    return tuple(int(prompts.ids(word, bos=False)[-1]) for word in ("Yes", "No"))


def match_question(embedder: Embedder, ids: torch.Tensor, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """The question whether an image matches its prompt.

    Args:
        ids: of the prompt (see prompt_ids).

    Returns:
        (ids int64 [L], with placeholders for the image; embeddings [L, hidden]).
    """
    prompts, seen = embedder.prompts, embedder.image(image)
    question = prompts.ids(CHECK, bos=False)
    placeholders = torch.full((len(seen),), prompts.placeholder)
    embeds = torch.cat((embedder.text(ids), seen, embedder.text(question)))
    return torch.cat((ids, placeholders, question)), embeds


def sample_answer(
    embedder: Embedder, embeds: torch.Tensor, settings: TextSamplerSettings, report: Callable[[int, int], None]
) -> list[int]:
    """The token ids of the answer to `match_question`, with end-of-sentence if the model wrote it."""
    prompts = embedder.prompts
    first_ids = yes_no_ids(prompts)
    for ids in sample_text(embedder.model, embeds[None], prompts.eos, settings, first_ids=first_ids):
        report(ids.shape[1], settings.max_new_tokens)
    return written_ids(ids[0], [prompts.eos])


def vq_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """What the VQ model encodes of an image: its centre, float32 [3, size, size] in [-1, 1]."""
    return cropped_pixels(image, size)


def regeneration_prompt(
    embedder: Embedder, ids: torch.Tensor, vq_tokens: torch.Tensor, answer: list[int]
) -> GenerationPrompt:
    """The prompt to generate an image again after an answer.

    Both rows have the image as VQ tokens, the check and the answer; the unconditional row has pads in the prompt only.
    An end-of-sentence or pad token of the answer is hidden.

    Args:
        ids: of the prompt (see prompt_ids).
        vq_tokens: int64 [N], of the image's vq_pixels at the native size.
        answer: token ids (see sample_answer).
    """
    prompts, encoded = embedder.prompts, embedder.vq_tokens(vq_tokens)
    answered = torch.tensor(answer)
    question, last = prompts.ids(CHECK, bos=False), prompts.ids(AGAIN, bos=False)
    shared_ids = torch.cat((torch.full((len(encoded),), prompts.placeholder), question, answered, last))
    shared = torch.cat((encoded, embedder.text(torch.cat((question, answered, last)))))
    visible = torch.ones(len(ids) + len(shared), dtype=torch.bool)
    start = len(ids) + len(encoded) + len(question)
    visible[start : start + len(answer)] = (answered != prompts.eos) & (answered != prompts.pad)

    def row(prompt: torch.Tensor) -> tuple[PromptTokens, torch.Tensor]:
        tokens = PromptTokens(torch.cat((prompt, shared_ids)), visible)
        return tokens, torch.cat((embedder.text(prompt), shared))

    uncond = ids.clone()
    uncond[1:-1] = prompts.pad
    return GenerationPrompt(*row(ids), *row(uncond))


def reflect(
    embedder: Embedder,
    image: Image.Image,
    vq_tokens: torch.Tensor,
    prompt: str,
    settings: TextSamplerSettings,
    *,
    roles: str = "auto",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Reflection:
    """Asks the model whether an image matches its prompt, and why.

    Args:
        image: of 8 bits per channel, and of any size; it is resized to the native one.
        vq_tokens: int64 [N], of its vq_pixels at the native size.
        roles: as in PromptEncoder.chat; "auto" is the recipe's.
        report: called after every token with (done, total).

    Raises:
        PromptError: the checkpoint lacks a token, or the prompt and the answer do not fit the context.
        SamplingError: the model's logits are not finite.
    """
    ids = prompt_ids(embedder.prompts, prompt, roles)
    _, embeds = match_question(embedder, ids, image)
    answer = sample_answer(embedder, embeds, settings, report)
    matches = answer[0] == yes_no_ids(embedder.prompts)[0]
    prompt_again = regeneration_prompt(embedder, ids, vq_tokens, answer)
    return Reflection(matches, embedder.prompts.decode(answer[1:]), prompt_again)
