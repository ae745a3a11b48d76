"""One request, with the fields of TorchUMM's (AIFrontierLab/TorchUMM, src/umm/inference/multimodal_inputs.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import JanusError
from ..schema import Items, OneOf, Section, Text, check_fields

TASKS = ("generation", "editing", "understanding")
FIELDS = {
    "backbone": Text(),
    "task": OneOf(TASKS),
    "prompt": Text(empty=True),
    "images": Items(Text(), 0),
    "videos": Items(Text(), 0),
    "params": Section(),
    "metadata": Section(),
    "output_path": Text(),
}


class RequestError(JanusError):
    """A request or its configuration cannot be used."""


@dataclass(frozen=True)
class Request:
    """What to do.

    Attributes:
        task: "generation", "editing" or "understanding".
        prompt: of the image, the instruction, or the question.
        images: files to edit or to answer about.
        params: settings that take the place of the configuration's, by TorchUMM's names (see runner.py).
        output_path: where images go; numbered `stem_0.png`, `stem_1.png`, … if there are several.
        metadata: carried along; not read.

    Raises:
        RequestError: a field is missing or cannot be used.
    """

    task: str
    prompt: str | None = None
    images: tuple[str, ...] = ()
    params: dict = field(default_factory=dict)
    output_path: str | None = None
    metadata: dict = field(default_factory=dict)

    def __post_init__(self):
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        check_fields(values, FIELDS, "The request", RequestError)
        if self.task == "generation" and not self.prompt:
            raise RequestError("A request for generation needs a prompt.")
        if self.task == "editing" and not (self.prompt and len(self.images) == 1):
            raise RequestError("A request for editing needs a prompt and one image.")
        if self.task == "understanding" and not (self.prompt or self.images):
            raise RequestError("A request for understanding needs a prompt or an image.")

    @classmethod
    def of(cls, values: "Request | Mapping") -> "Request":
        """A request from a mapping with TorchUMM's fields; `backbone` is not read, and videos are refused.

        Raises:
            RequestError: a field is unknown, missing, or cannot be used.
        """
        if isinstance(values, Request):
            return values
        if not isinstance(values, Mapping):
            raise RequestError(f"A request must be a mapping, not {type(values).__name__}.")
        values = {name: value for name, value in values.items() if value is not None}
        check_fields(values, FIELDS, "The request", RequestError, closed=True)
        if "task" not in values:
            raise RequestError(f"A request needs a task: {', '.join(TASKS)}.")
        if values.get("videos"):
            raise RequestError("These models read images, not videos.")
        params = dict(values.get("params", {}))
        images = tuple(values.get("images", ())) or tuple(filter(None, [params.pop("image_path", None)]))
        prompt = values.get("prompt") or params.pop("instruction", None)
        rest = {name: values[name] for name in ("task", "output_path", "metadata") if name in values}
        return cls(prompt=prompt, images=images, params=params, **rest)
