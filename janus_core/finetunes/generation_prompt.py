"""What the recipes give to the token sampler, and how they make input embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ..errors import PromptError
from ..image import understanding_pixels
from ..janus import Janus
from ..prompt import ROLES, PromptEncoder, PromptTokens
from ..sampling.tokens import PromptRow


@dataclass(frozen=True)
class Part:
    """The second conditional row of an edit: the first one, with pads where the image's VQ tokens are.

    Attributes:
        start, end: the positions [start, end) of the VQ tokens.
        pad: embedding of the pad token, [hidden].
        weight: w2 in `(full + w2 part) / (1 + w2)`.
    """

    start: int
    end: int
    pad: torch.Tensor
    weight: float

    def embeds(self, full: torch.Tensor) -> torch.Tensor:
        """The second row [..., L, hidden] beside a first one [..., L, hidden]."""
        part = full.clone()
        part[..., self.start : self.end, :] = self.pad.to(part)
        return part


@dataclass(frozen=True)
class GenerationPrompt:
    """A prompt for an image, as token ids and as the embeddings that the model reads.

    Attributes:
        tokens, embeds: of the conditional row, PromptTokens and [L, hidden]. Where the embeddings are of an image, the
            ids are the image placeholder's.
        uncond_tokens, uncond_embeds: of the row that guidance moves away from.
        part: how the second conditional row differs from the first; None without one.
    """

    tokens: PromptTokens
    embeds: torch.Tensor
    uncond_tokens: PromptTokens
    uncond_embeds: torch.Tensor
    part: Part | None = None

    @property
    def cond(self) -> PromptRow:
        return PromptRow(self.embeds, self.tokens.visible)

    @property
    def uncond(self) -> PromptRow:
        return PromptRow(self.uncond_embeds, self.uncond_tokens.visible)

    @property
    def part_row(self) -> PromptRow | None:
        return None if self.part is None else PromptRow(self.part.embeds(self.embeds), self.tokens.visible)


@dataclass(frozen=True)
class Embedder:
    """Input embeddings of a checkpoint's text, images and image tokens.

    Attributes:
        device, dtype: where and in which dtype the model computes.
    """

    model: Janus
    prompts: PromptEncoder
    device: torch.device
    dtype: torch.dtype

    @property
    def image_size(self) -> int:
        """Native width and height of an image, in pixels."""
        return self.model.params.siglip.image_size

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [L] to embeddings [L, hidden]."""
        return self.model.embed_text(ids.to(self.device), self.dtype)

    def image(self, image: Image.Image) -> torch.Tensor:
        """What the vision tower sees of an image, [tokens, hidden]."""
        pixels = understanding_pixels(image, self.image_size)[None]
        return self.model.embed_images(pixels.to(self.device, self.dtype))[0].to(self.dtype)

    def vq_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """The VQ tokens of an image, int64 [N], to embeddings [N, hidden]."""
        return self.model.embed_image_tokens(tokens.to(self.device), self.dtype)

    def prompt(self, tokens: PromptTokens) -> GenerationPrompt:
        """A prompt of text alone, beside the unconditional row of its length."""
        uncond = self.prompts.unconditional(len(tokens.ids))
        return GenerationPrompt(tokens, self.text(tokens.ids), uncond, self.text(uncond.ids))


def batch_rows(prompts: Sequence[GenerationPrompt]):
    """The rows of a batch's prompts, as sample_image_tokens takes them.

    Returns:
        (cond, uncond, part, part_weight): lists of PromptRows, and the weight of the second conditional rows; part is
        None without them.

    Raises:
        PromptError: there is no prompt, or only some have a second conditional row, or their weights differ.
    """
    if not prompts:
        raise PromptError("There is no prompt in the list: give one for each image.")
    weight = common_weight([prompt.part for prompt in prompts])
    part = None if weight is None else [prompt.part_row for prompt in prompts]
    return [prompt.cond for prompt in prompts], [prompt.uncond for prompt in prompts], part, weight or 0.0


def common_weight(parts: Sequence[Part | None]) -> float | None:
    """The weight that the second conditional rows of a batch share; None if there are none. Raises as batch_rows."""
    weights = {None if part is None else part.weight for part in parts}
    if len(weights) > 1:
        raise PromptError("A batch needs an image in all of its prompts or in none, and one image_guidance.")
    (weight,) = weights
    return weight


def roles_of(prompts: PromptEncoder, model: str, own: str, asked: str) -> str:
    """The roles that a recipe uses: those asked for, or its own for "auto".

    Args:
        model: the fine-tuned model's name, for the error.

    Raises:
        PromptError: the tokenizer lacks the recipe's own roles.
    """
    if asked != "auto":
        return asked
    if own != "User" and (missing := [role for role in ROLES[own] if prompts.find(role) is None]):
        raise PromptError(
            f"This checkpoint's tokenizer lacks {missing[0]}, which the prompts of {model} need: load {model}, or a "
            "model that was fine-tuned in the same way."
        )
    return own
