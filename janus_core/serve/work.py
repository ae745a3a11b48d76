"""What a batch of jobs runs: images, edits, answers."""

import json
from dataclasses import dataclass, field

from ..batch.sample import sample_images
from ..describe import answer_steps, image_groups
from ..progress import Callback, report
from ..sampling.settings import TextSamplerSettings
from ..sampling.text import strip_end
from .batcher import Job


@dataclass(frozen=True)
class ImagesWanted:
    """Images of a prompt, or of an image and an instruction.

    Attributes:
        source: a Pillow image to edit, or None.
        settings: of the sampler, size, and image_guidance for edits.
    """

    prompt: str
    seeds: tuple[int, ...]
    negative: str = ""
    source: object = None
    settings: dict = field(default_factory=dict)

    @property
    def setting(self) -> str:
        kind = "edit" if self.source is not None else "images"
        return json.dumps([kind, self.settings, self.negative], sort_keys=True)


@dataclass(frozen=True)
class AnswerWanted:
    """An answer to a conversation about images.

    Attributes:
        messages: as PromptEncoder.chat takes them, with a placeholder per image.
        settings: of TextSamplerSettings, without the seed.
        chat: roles and system_prompt.
        stop: texts before which the answer ends.
    """

    messages: tuple[dict, ...]
    images: tuple
    seed: int
    settings: dict
    chat: dict
    stop: tuple[str, ...] = ()

    @property
    def setting(self) -> str:
        return json.dumps(["answer", self.messages, len(self.images), self.settings, self.chat], sort_keys=True)


@dataclass(frozen=True)
class Answer:
    """The text, why it ended ("stop" or "length"), and the tokens of question and answer."""

    text: str
    reason: str
    prompt_tokens: int
    tokens: int


class Model:
    """A pipeline that runs batches of jobs of one setting.

    Args:
        name: that clients use.
        batch_size: the most images or answers at once.
    """

    def __init__(self, name: str, pipe, batch_size: int):
        self.name, self.pipe, self.batch_size = name, pipe, batch_size

    @property
    def family(self) -> str:
        return self.pipe.model.family

    def run(self, jobs: list[Job], callback: Callback) -> list:
        """A list of Pillow images, or an Answer, per job."""
        return (self._answers if isinstance(jobs[0].payload, AnswerWanted) else self._images)(jobs, callback)

    def _images(self, jobs: list[Job], callback: Callback) -> list:
        wanted = [job.payload for job in jobs]
        settings = dict(wanted[0].settings)
        weight = settings.pop("image_guidance", 5.0)
        prompts = []
        for one in wanted:
            prompt = one.prompt if one.source is None else self.pipe.edit_prompt(one.source, one.prompt, weight)
            prompts += [prompt] * len(one.seeds)
        seeds = [seed for one in wanted for seed in one.seeds]
        more = {"batch_size": self.batch_size, "negative": wanted[0].negative, "callback": callback}
        images, _ = sample_images(self.pipe, prompts, seeds, settings, **more)
        images = iter(images)
        return [[next(images) for _ in one.seeds] for one in wanted]

    def _answers(self, jobs: list[Job], callback: Callback) -> list[Answer]:
        wanted = [job.payload for job in jobs]
        if not wanted[0].images and len(jobs) > 1:  # a batch of answers needs images to have rows
            return [self._answers([job], callback)[0] for job in jobs]
        first, pipe = wanted[0], self.pipe
        groups = image_groups([list(one.images) for one in wanted] if first.images else None)
        settings = TextSamplerSettings(**first.settings)
        pipe.load_unused()
        place = {"device": pipe.device, "dtype": pipe.dtype, "seeds": [one.seed for one in wanted]}
        siglip_tokens = pipe.model.params.siglip.tokens
        question = pipe.prompts.question_ids(list(first.messages), siglip_tokens, len(groups[0]), **first.chat)
        steps = answer_steps(pipe.model, pipe.prompts, groups, list(first.messages), settings, **place, **first.chat)
        rows = [_Row(job, pipe.prompts) for job in jobs]
        watched = any(job.on_text is not None or job.payload.stop for job in jobs)
        for ids in steps:
            report(callback, ids.shape[1], settings.max_new_tokens)
            if watched:
                for row, tokens in zip(rows, ids):
                    row.read(tokens)
                if all(row.ended for row in rows):
                    break
        for row, tokens in zip(rows, ids):
            row.read(tokens)
        return [Answer(row.text, row.reason, len(question.ids), len(row.ids)) for row in rows]


class _Row:
    """The answer to a job while it is generated.

    Attributes:
        ids: the tokens so far, without the end-of-sentence token.
        text: the answer so far, up to a stop text.
        ended: the model ended it, or wrote a stop text; further tokens of its batch are not part of it.
    """

    def __init__(self, job: Job, prompts):
        self.job, self.prompts = job, prompts
        self.ids, self.text, self.ended = [], "", False

    @property
    def reason(self) -> str:
        return "stop" if self.ended else "length"

    def read(self, tokens):
        """Takes the tokens [n] so far, and tells the job what of the text is certain."""
        if self.ended:
            return
        self.ids = strip_end(tokens, self.prompts.eos)
        text, stops = self.prompts.decode(self.ids).lstrip(), self.job.payload.stop
        ends = [text.index(stop) for stop in stops if stop in text]
        self.text = text[: min(ends)] if ends else text
        self.ended = bool(ends) or len(self.ids) < len(tokens)
        if self.job.on_text is not None:
            self.job.on_text(self.text if self.ended else certain_text(text, stops))


def certain_text(text: str, stops: tuple[str, ...]) -> str:
    """The beginning of an unfinished text that no later token changes.

    An incomplete character at its end is left out, and so is what may be the beginning of a stop text.
    """
    text = text.rstrip("\ufffd")
    longest = min(max(map(len, stops), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return text[:-length]
    return text
