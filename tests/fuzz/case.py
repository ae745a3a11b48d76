"""What a fuzz case is, and how its outcome is judged."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from janus_core.errors import JanusError

REFUSED, SAME, OK = "refused", "same", "ok"
FORBIDDEN = (
    "[Errno",
    "weights_only",
    "Traceback",
    " object at 0x",
    "'NoneType'",
    "object has no attribute",
    "unexpected keyword",
)

# Values that no numeric setting takes.
NOT_NUMBERS = ("5", "", [], [1], {}, {"a": 1}, True, None, math.nan, math.inf, -math.inf, 10**5000, "\ud800")


@dataclass
class Case:
    """One hostile input.

    Attributes:
        label: what was done, for the table and for failures.
        run: does it; returns what `baseline` is compared with.
        expected: the outcomes that are right: REFUSED (a JanusError of one sentence), SAME (the result equals the
            baseline), OK (any result).
        baseline: the result without the mutation.
    """

    label: str
    run: Callable[[], object]
    expected: tuple[str, ...]
    baseline: object = None


def judge(case: Case) -> tuple[str, str]:
    """(outcome, detail) of a case; the outcome is one of its expected ones, or the name of a failure."""
    try:
        result = case.run()
    except JanusError as error:
        problem = message_problem(str(error))
        if problem:
            return "unclear", f"{problem}: {error}"
        return (REFUSED if REFUSED in case.expected else "wrongly refused"), str(error)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return "traceback", f"{type(error).__name__}: {str(error)[:300]}"
    if OK in case.expected:
        return OK, ""
    if SAME in case.expected and result == case.baseline:
        return SAME, ""
    return "accepted though wrong", str(result)[:200]


def message_problem(message: str) -> str | None:
    """What is wrong with an error message, None for one clear line."""
    if "\n" in message:
        return "more than one line"
    if not message.rstrip().endswith((".", ")", "]")) or len(message) < 15:
        return "not a sentence"
    if len(message) > 700:
        return "too long"
    bad = [word for word in FORBIDDEN if word in message]
    return f"contains {bad[0]!r}" if bad else None


def pick(rng: random.Random, values):
    return values[rng.randrange(len(values))]


def flip(rng: random.Random, data: bytes, start: int = 0, end: int | None = None, most: int = 4) -> bytes:
    """Data with one to `most` bytes between start and end replaced."""
    out, end = bytearray(data), min(end or len(data), len(data))
    for _ in range(rng.randint(1, most)):
        if end > start:
            out[rng.randrange(start, end)] = rng.randrange(256)
    return bytes(out)
