"""Images and answers of many prompts at once, in batches, for both families."""

from collections.abc import Sequence

from PIL import Image

from ..pipeline import JanusFlowPipeline, Prompt
from ..progress import Callback
from .manifest import OTHER_SETTINGS


def sample_images(
    pipe,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    settings: dict,
    *,
    batch_size: int,
    negative: str = "",
    callback: Callback | None = None,
) -> tuple[list[Image.Image], int]:
    """One image of each prompt with its own seed, which does not depend on the others.

    Args:
        settings: of the pipeline; lists stand for tuples.

    Returns:
        (images, tokens that each image took; 0 for JanusFlow).
    """
    settings = {**_with_tuples(settings), "negative_prompt": negative, "callback": callback}
    images, tokens = [], 0
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        if isinstance(pipe, JanusFlowPipeline):
            images += pipe(list(prompts[part]), seeds=list(seeds[part]), **settings)
        else:
            found = pipe.generate_tokens(list(prompts[part]), seeds=list(seeds[part]), **settings)
            tokens = found.shape[1]
            images += pipe.decode_tokens(found, settings.get("size"))
    return images, tokens


def sample_answers(
    pipe,
    images: Sequence[Sequence[Image.Image]],
    question,
    seeds: Sequence[int],
    settings: dict,
    *,
    batch_size: int,
    callback: Callback | None = None,
) -> list[str]:
    """The answers to one question about each group of images; without any, the question is asked once per seed."""
    answers = []
    for first in range(0, len(seeds), batch_size):
        part = slice(first, first + batch_size)
        if images[0]:
            answers += pipe.describe(images[part], question, seeds=list(seeds[part]), callback=callback, **settings)
        else:
            for seed in seeds[part]:
                answers += pipe.describe(None, question, seeds=[seed], callback=callback, **settings)
    return answers


def sampler_settings(settings: dict) -> dict:
    """A job's settings without those that are not the sampler's, lists as tuples."""
    return _with_tuples({name: value for name, value in settings.items() if name not in OTHER_SETTINGS})


def _with_tuples(settings: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
