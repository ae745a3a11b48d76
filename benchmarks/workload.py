"""What is timed of an image: the runs, their sizes, and the parts that they give the times of."""

from dataclasses import dataclass

PROMPT = (
    "a photograph of a red fox that sits in the snow between two birches at dawn, with long blue shadows, a frozen "
    "lake and low mountains in the distance, soft light, shallow depth of field"
)
QUESTION = "Describe this image in detail."
TOKEN_SIZE = 16  # width and height in pixels of an image token, of either family
ANSWER_TOKENS = 9
RUNS = {  # by run: the parts whose seconds it gives
    "first": ("prompt", "decode"),
    "generate": ("step",),
    "describe": ("question", "text"),
}
PARTS = tuple(part for parts in RUNS.values() for part in parts)
TITLES = {
    "prompt": {"ar": "prompt pass", "flow": "prompt pass"},
    "step": {"ar": "token", "flow": "step"},
    "decode": {"ar": "VQ decode", "flow": "VAE decode"},
    "question": {"ar": "vision tower and question", "flow": "vision tower and question"},
    "text": {"ar": "text token", "flow": "text token"},
}


@dataclass(frozen=True)
class Workload:
    """The sizes of the runs.

    "first" is an image of one token (Janus-Pro) or one step on one token (JanusFlow): its time is the prompt pass's.
    It also decodes a latent of the native size. "generate" gives the time per token or step, from the end of the first
    to the end of the last; "describe" the time until the first token of an answer, and per token after it.
    """

    family: str  # "ar" or "flow"
    native: int  # width and height in pixels of what is decoded and described
    width: int  # of the image of "generate"
    steps: int  # tokens or flow steps of "generate"
    answer_tokens: int

    @property
    def latent_side(self) -> int:
        """Width and height of a latent of the native size."""
        return self.native // (TOKEN_SIZE if self.family == "ar" else 8)

    @classmethod
    def of(cls, family: str, native: int, is_short: bool) -> "Workload":
        """Images of the native size and 30 steps; if short, 36 tokens and 3 steps."""
        if family == "flow":
            return cls(family, native, native, 3 if is_short else 30, ANSWER_TOKENS)
        width = 6 * TOKEN_SIZE if is_short else native
        return cls(family, native, width, (width // TOKEN_SIZE) ** 2, ANSWER_TOKENS)


def unit_seconds(marks: list[tuple[float, int]], end: float) -> float:
    """Seconds per unit of work after the first.

    Args:
        marks: (time, units done) in order; the last has all units.
        end: when the work ended.
    """
    (start, done), total = marks[0], marks[-1][1]
    if total <= done:
        raise ValueError("The run ended after its first token.")
    return (end - start) / (total - done)
