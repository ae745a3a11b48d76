"""Writing a plan before generating: the recipes of ReasonGen-R1, T2I-R1 and GoT-R1, from their generation code."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import PromptError
from ..prompt import PromptEncoder, all_visible
from ..sampling.settings import TextSamplerSettings
from ..sampling.text import sample_text, written_ids
from ..schema import OneOf, Text, check
from .boxes import BOX_TOKENS
from .generation_prompt import Embedder, GenerationPrompt, roles_of

T2I_SYSTEM = "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt."
T2I_TEMPLATE = """\
You are asked to generate an image based on this prompt: "{}"
Provide a brief, precise visualization of all elements in the prompt. Your description should:
1. Include every object mentioned in the prompt
2. Specify visual attributes (color, number, shape, texture) if specified in the prompt
3. Clarify relationships (e.g., spatial) between objects if specified in the prompt
4. Be concise (50 words or less)
5. Focus only on what's explicitly stated in the prompt
6. Do not elaborate beyond the attributes or relationships specified in the prompt
Do not miss objects. Output your visualization directly without explanation:"""


@dataclass(frozen=True)
class Recipe:
    """How a model plans.

    Attributes:
        model: its name.
        roles: a key of prompt.ROLES.
        system_prompt, template: of the request for a plan; {} stands for the prompt.
        max_new_tokens: the longest plan, in tokens.
        top_k: of the plan's sampling; 0 is off.
        ends_at_eos, ends_at_image: which of end-of-sentence and begin-of-image end the plan.
        finish: from a request and a plan's token ids to the plan's text and the token ids of the prompt for the image.
        tokens: special tokens that the tokenizer must have.
        plans_boxes: whether a plan has boxes (see boxes_of).
    """

    model: str
    roles: str
    template: str
    max_new_tokens: int
    ends_at_eos: bool
    ends_at_image: bool
    finish: Callable[["PlanRequest", list[int]], tuple[str, list[int]]]
    system_prompt: str = ""
    top_k: int = 0
    tokens: tuple[str, ...] = ()
    plans_boxes: bool = False

    def settings(self, max_new_tokens: int = 0, **settings) -> TextSamplerSettings:
        """Those of the authors: temperature 1, no top-p, the recipe's top-k, and its limit if max_new_tokens is 0."""
        limit = self.max_new_tokens if max_new_tokens == 0 else max_new_tokens
        own = {"temperature": 1.0, "top_k": self.top_k, "top_p": 1.0}
        return TextSamplerSettings(max_new_tokens=limit, **{**own, **settings})

    def request(self, embedder: Embedder, prompt: str, roles: str = "auto") -> "PlanRequest":
        """Asks for a plan of an image.

        Args:
            roles: as in PromptEncoder.chat; "auto" is the recipe's.

        Raises:
            PromptError: the prompt is no text, or the checkpoint lacks a token of the recipe.
        """
        check("The prompt", prompt, Text(empty=True), PromptError)
        prompts = embedder.prompts.with_tokens(self.tokens, embedder.model.params.llama.vocab_size)
        if prompts is not embedder.prompts:
            logging.warning(
                f"The tokenizer lacks tokens of {self.model}: they are added, as its code does. Is this {self.model}?"
            )
        roles = roles_of(prompts, self.model, self.roles, roles)
        text = prompts.chat(self.template.replace("{}", prompt), roles=roles, system_prompt=self.system_prompt)
        stop_ids = [prompts.eos] * self.ends_at_eos + [prompts.begin] * self.ends_at_image
        return PlanRequest(self, prompts, prompt, roles, prompts.ids(text), stop_ids)


@dataclass(frozen=True)
class PlanRequest:
    """A request for a plan.

    Attributes:
        prompts: the PromptEncoder with the recipe's tokens.
        ids: token ids up to where the plan begins, int64 [L].
        stop_ids: the token ids that end the plan.
    """

    recipe: Recipe
    prompts: PromptEncoder
    prompt: str
    roles: str
    ids: torch.Tensor
    stop_ids: list[int]


def _reasongen(request: PlanRequest, written: list[int]) -> tuple[str, list[int]]:
    """One context; end-of-sentence, or the last token of a plan that was cut, becomes begin-of-image."""
    return request.prompts.decode(written, True), [*request.ids.tolist(), *written[:-1], request.prompts.begin]


def _t2i(request: PlanRequest, written: list[int]) -> tuple[str, list[int]]:
    """A new context: prompt and plan as a text, which is tokenized anew."""
    prompts, thought = request.prompts, request.prompts.decode(written)
    text = prompts.chat(f"{request.prompt}. {thought}", roles=request.roles)
    return thought, [*prompts.ids(text).tolist(), prompts.begin]


def _got(request: PlanRequest, written: list[int]) -> tuple[str, list[int]]:
    """One context, to which begin-of-image is appended unless the model wrote it."""
    begin = request.prompts.begin
    written = written if written[-1] == begin else [*written, begin]
    return request.prompts.decode(written, True), [*request.ids.tolist(), *written]


RECIPES = {
    "reasongen-r1": Recipe(
        model="ReasonGen-R1",
        roles="<|User|>",
        template="A photo of {}. Output a richly detailed prompt: ",
        max_new_tokens=448,
        ends_at_eos=True,
        ends_at_image=True,
        finish=_reasongen,
    ),
    "t2i-r1": Recipe(
        model="T2I-R1",
        roles="User",
        system_prompt=T2I_SYSTEM,
        template=T2I_TEMPLATE,
        max_new_tokens=512,
        top_k=50,
        ends_at_eos=True,
        ends_at_image=False,
        finish=_t2i,
    ),
    "got-r1": Recipe(
        model="GoT-R1",
        roles="User",
        template="Follow the caption to generate an image through a chain of thought process: {}",
        max_new_tokens=600,
        ends_at_eos=False,
        ends_at_image=True,
        finish=_got,
        tokens=BOX_TOKENS,
        plans_boxes=True,
    ),
}


class Thought(NamedTuple):
    """A plan, as the authors' code returns it, and the prompt for its image."""

    thought: str
    prompt: GenerationPrompt


def recipe_of(name: str) -> Recipe:
    """The recipe of this name. Raises PromptError when there is none."""
    check("recipe", name, OneOf(tuple(RECIPES)), PromptError)
    return RECIPES[name]


def think(
    embedder: Embedder,
    request: PlanRequest,
    settings: TextSamplerSettings,
    *,
    count: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Thought]:
    """Plans images.

    Args:
        count: how many plans; plan k uses the random numbers of seed + k.
        report: called after every token with (done, total).

    Raises:
        PromptError: the prompt is too long.
        SamplingError: the model's logits are not finite.
    """
    thoughts = []
    for written in sample_plans(embedder, request, settings, count, report):
        thought, ids = request.recipe.finish(request, written)
        thoughts.append(Thought(thought, embedder.prompt(all_visible(torch.tensor(ids)))))
    return thoughts


def sample_plans(
    embedder: Embedder,
    request: PlanRequest,
    settings: TextSamplerSettings,
    count: int,
    report: Callable[[int, int], None],
) -> list[list[int]]:
    """The token ids of `count` plans, with the tokens that ended them; see `think`."""
    embeds = embedder.text(request.ids).expand(count, -1, -1)
    eos, stop_ids = request.prompts.eos, request.stop_ids
    for ids in sample_text(embedder.model, embeds, eos, settings, stop_ids=stop_ids):
        report(ids.shape[1], settings.max_new_tokens)
    return [written_ids(row, stop_ids) for row in ids]
