"""What the pipelines of both families share: sizes, prompts, and describing images."""

from collections.abc import Sequence

import torch

from .describe import answer_steps, image_groups
from .errors import ImageError, SamplingError
from .image import check_size
from .progress import Callback, report
from .prompt import SYSTEM_PROMPT, Messages, PromptEncoder, PromptTokens
from .sampling.settings import TextSamplerSettings, check_range, settings_of
from .sampling.text import strip_end
from .schema import shown


def prompt_list(prompt, num_images: int) -> tuple[list, int]:
    """(the prompts of a run, how many images it gives): `num_images` of one prompt, or one of each in a list.

    Raises:
        SamplingError: num_images is out of range, or there are several prompts and several images.
    """
    check_range("num_images", num_images, 1, 4096, whole=True)
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if num_images > 1 < len(prompts):
        raise SamplingError(f"A list of {len(prompts)} prompts gives one image of each: leave num_images at 1.")
    return prompts, max(num_images, len(prompts))


class Pipeline:
    """What both families do: describe images.

    Attributes:
        patch_size: width and height of what one position of the language model stands for, in pixels.
    """

    patch_size: int

    def __init__(self, model, prompts: PromptEncoder, device: torch.device, dtype: torch.dtype):
        self.model, self.prompts, self.device, self.dtype = model, prompts, device, dtype

    @property
    def image_size(self) -> int:
        """Native width and height of an image, in pixels."""
        return self.model.params.siglip.image_size

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of patches in an image of `size` (width, height) in pixels, the native size when None.

        Raises:
            ImageError: size is not (width, height) in whole patches, or the model has too few positions for it.
        """
        multiple = self.patch_size
        size = (self.image_size, self.image_size) if size is None else size
        pair = isinstance(size, (tuple, list)) and len(size) == 2
        if not pair or any(type(side) is not int or side < multiple or side % multiple for side in size):
            raise ImageError(f"The size {shown(size)} is not (width, height), each a multiple of {multiple} pixels.")
        width, height = size
        check_size(width, height, multiple, self.model.params.llama.max_positions)
        return height // multiple, width // multiple

    def embed(self, prompt: PromptTokens) -> torch.Tensor:
        """The input embeddings of a prompt, [1, L, hidden]."""
        table = self.model.llama.embed_tokens.weight.device
        return self.model.embed_text(prompt.ids.to(table), self.dtype)[None].to(self.device)

    @torch.inference_mode()
    def describe(
        self,
        images,
        question: str | Messages = "Describe this picture.",
        *,
        roles: str = "auto",
        system_prompt: str = SYSTEM_PROMPT,
        seeds: Sequence[int] | None = None,
        callback: Callback | None = None,
        **settings,
    ) -> list[str]:
        """Answers a question about images.

        Args:
            images: a Pillow image, or a list with one entry per answer; an entry may itself be a list of images that
                the question is about together, the same number in every entry. None asks without an image.
            question: a text, or a conversation: a list of {"role": "user" or "assistant", "content": text}, perhaps
                after one of "system". <image_placeholder> says where each image is; without it, they come first.
            roles: "auto" for the checkpoint's own, "<|User|>" or "User".
            system_prompt: the text in front of the conversation.
            seeds: a seed per answer; seed, seed + 1, … when None.
            callback: called after every token with (done, total); returning False cancels.
            settings: fields of TextSamplerSettings: max_new_tokens, temperature, top_k, top_p, seed.

        Returns:
            One answer per entry, as the model writes it.

        Raises:
            PromptError, ImageError, SamplingError, Cancelled.
        """
        settings = settings_of(TextSamplerSettings, settings)
        groups = image_groups(images)
        self.load_unused()
        place = {"device": self.device, "dtype": self.dtype}
        chat = {"roles": roles, "system_prompt": system_prompt}
        steps = answer_steps(self.model, self.prompts, groups, question, settings, seeds=seeds, **place, **chat)
        for ids in steps:
            report(callback, ids.shape[1], settings.max_new_tokens)
        return [self.prompts.decode(strip_end(row, self.prompts.eos)) for row in ids]

    def load_unused(self):
        """Moves the weights that are unused in generation to the device as well."""
        with torch.inference_mode(False):
            self.model.to(self.device)
