"""What a pipeline does with fine-tuned models: edit, think, reflect."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from PIL import Image

from ..errors import PromptError, SamplingError
from ..image import truncated_image
from ..progress import Callback, report
from ..sampling.settings import TextSamplerSettings, check_range, known
from ..schema import Text, check
from . import edit
from .generation_prompt import Embedder, GenerationPrompt
from .reflect import Reflection, check_settings, reflect, vq_pixels
from .think import Thought, recipe_of, think


class FineTunedModels:
    """Methods of JanusPipeline, whose other methods they use."""

    def generation_prompt(self, prompt: str | GenerationPrompt, negative_prompt: str = "", **chat) -> GenerationPrompt:
        """A prompt's rows; a negative prompt that is not empty takes the unconditional one's place."""
        if not isinstance(prompt, GenerationPrompt):
            cond, uncond = self.prompts.guidance_rows(prompt, negative_prompt, **chat)
            return GenerationPrompt(cond, self.embed(cond)[0], uncond, self.embed(uncond)[0])
        check("The negative prompt", negative_prompt, Text(empty=True), PromptError)
        if not negative_prompt.strip():
            return prompt
        uncond = self.prompts.conditional(negative_prompt, **chat)
        return replace(prompt, uncond_tokens=uncond, uncond_embeds=self.embed(uncond)[0])

    @property
    def embedder(self) -> Embedder:
        """Makes the prompts of fine-tuned models; needs the weights that are unused in generation."""
        return Embedder(self.model, self.prompts, self.device, self.dtype)

    @torch.inference_mode()
    def edit(
        self, image: Image.Image, prompt: str, *, image_guidance: float = 5.0, roles: str = "auto", **settings
    ) -> list[Image.Image]:
        """Edits an image as an instruction says, with Janus-4o; the other arguments are those of `generate_tokens`.

        Args:
            image_guidance: how little the VQ tokens of the image count, the w2 of `(full + w2 part) / (1 + w2)`.
            roles: as in `describe`; "auto" is the recipe's.
        """
        return self(self.edit_prompt(image, prompt, image_guidance, roles), **settings)

    @torch.inference_mode()
    def edit_prompt(
        self, image: Image.Image, prompt: str, image_guidance: float = 5.0, roles: str = "auto"
    ) -> GenerationPrompt:
        """The prompt that `edit` generates from."""
        self.load_unused()
        (tokens,) = self.encode_tokens(edit.vq_pixels(image, self.image_size)[None])
        return edit.edit_prompt(self.embedder, image, tokens, prompt, image_guidance, roles)

    @torch.inference_mode()
    def think(
        self,
        prompt: str,
        recipe: str,
        *,
        num_thoughts: int | None = None,
        max_new_tokens: int = 0,
        roles: str = "auto",
        callback: Callback | None = None,
        **settings,
    ) -> Thought | list[Thought]:
        """Writes a plan of the image as ReasonGen-R1, T2I-R1 or GoT-R1 do before they generate it.

        Args:
            recipe: "reasongen-r1", "t2i-r1" or "got-r1": that of the checkpoint.
            num_thoughts: how many plans, of seed, seed + 1, …; None for one.
            max_new_tokens: the longest plan; 0 is the recipe's limit.
            roles: as in `describe`; "auto" is the recipe's.
            callback: called after every token with (done, total); returning False cancels.
            settings: fields of TextSamplerSettings; the recipe's by default.

        Returns:
            (thought, prompt): the plan and the prompt to generate its image; with num_thoughts a list of these.

        Raises:
            PromptError, SamplingError, Cancelled.
        """
        count = 1 if num_thoughts is None else num_thoughts
        check_range("num_thoughts", count, 1, 4096, whole=True)
        found = recipe_of(recipe)
        settings = found.settings(max_new_tokens, **known(TextSamplerSettings, settings))
        self.load_unused()
        request = found.request(self.embedder, prompt, roles)
        thoughts = think(self.embedder, request, settings, count=count, report=partial(report, callback))
        return thoughts[0] if num_thoughts is None else thoughts

    @torch.inference_mode()
    def reflect(
        self, image: Image.Image, prompt: str, *, roles: str = "auto", callback: Callback | None = None, **settings
    ) -> Reflection:
        """Asks Janus-Pro-R1 whether an image matches its prompt.

        Args:
            roles: as in `describe`; "auto" is the recipe's.
            callback: called after every token with (done, total); returning False cancels.
            settings: fields of TextSamplerSettings; at most 80 tokens at temperature 1 by default.

        Returns:
            (matches, reason, prompt): whether it does, why, and the prompt to generate it again.

        Raises:
            PromptError, ImageError, SamplingError, Cancelled.
        """
        settings = check_settings(**known(TextSamplerSettings, settings))
        self.load_unused()
        (tokens,) = self.encode_tokens(vq_pixels(image, self.image_size)[None])
        progress = partial(report, callback)
        return reflect(self.embedder, image, tokens, prompt, settings, roles=roles, report=progress)

    @torch.inference_mode()
    def generate_until_match(
        self,
        prompt: str,
        rounds: int,
        *,
        first: str | GenerationPrompt | None = None,
        text: dict | None = None,
        callback: Callback | None = None,
        size: tuple[int, int] | None = None,
        **settings,
    ) -> Iterator[tuple[Image.Image, Reflection]]:
        """Generates an image with Janus-Pro-R1 and checks it, and again until it matches, up to `rounds` times more.

        Args:
            first: the prompt of the first image, if it is another one than `prompt`, which the check reads.
            text: settings of the check, see `reflect`.
            size, settings: see `generate_tokens`.

        Yields:
            (image, Reflection) of each round. Images are rounded down to 8 bits, as the authors' code does.

        Raises:
            PromptError, SamplingError, ImageError, Cancelled.
        """
        check_range("rounds", rounds, 0, 1000, whole=True)
        if settings.get("num_images", 1) != 1:
            raise SamplingError("generate_until_match generates one image at a time: leave num_images at 1.")
        following = prompt if first is None else first
        for _ in range(rounds + 1):
            tokens = self.generate_tokens(following, size=size, callback=callback, **settings)
            pixels = self.vq.decode_tokens(tokens, self.grid(size), self.vq_dtype)[0].float()
            image = truncated_image((pixels.permute(1, 2, 0) + 1) / 2)
            reflection = self.reflect(image, prompt, callback=callback, **(text or {}))
            yield image, reflection
            if reflection.matches:
                return
            following = reflection.prompt
