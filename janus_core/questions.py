"""Questions that ask for a form of answer, as benchmarks of understanding do.

The words are VLMEvalKit's for Janus (open-compass/VLMEvalKit, vlmeval/vlm/janus.py).
"""

from collections.abc import Sequence
from string import ascii_uppercase

from .errors import PromptError

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
ANSWERS = ("free", "word", "letter")


def question_for(question: str, answer: str = "free", options: Sequence[str] = ()) -> str:
    """A question with its options and the form of its answer.

    Args:
        answer: "free" as it is, "word" for a word or phrase (also yes or no), "letter" for one of the options.
        options: of a multiple choice, written as A. …, B. ….

    Raises:
        PromptError: there is no such form, or options and form do not fit.
    """
    if answer not in ANSWERS:
        raise PromptError(f"There is no form of answer {answer!r}, only {', '.join(ANSWERS)}.")
    if len(options) > len(ascii_uppercase) or (answer == "letter") != bool(options):
        raise PromptError(
            f"The answer form letter needs 1 to {len(ascii_uppercase)} options; the other forms take none."
        )
    if answer == "free":
        return question
    if answer == "word":
        return f"\n{question}\n{WORD}"
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)]
    return "\n".join([question, *lines, LETTER])
