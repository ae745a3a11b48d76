"""Types and ranges of settings, declared once and checked in one place.

A field has `problem(value)`, which says what the value must be, or returns None where it is that already.
"""

import math
from dataclasses import dataclass

from .errors import JanusError


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; never a bool, NaN or infinite. `or_zero` allows 0 below `low`."""

    low: float
    high: float
    or_zero: bool = False

    def problem(self, value) -> str | None:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        if right and (self.low <= value <= self.high or (self.or_zero and value == 0)):  # false for NaN
            return None
        return f"{'0 or ' * self.or_zero}a number between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`; never a bool."""

    low: int
    high: int

    def problem(self, value) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"a whole number between {self.low} and {self.high}"


@dataclass(frozen=True)
class OneOf:
    """One of a few values; the type counts too, so that True is not 1."""

    values: tuple

    def problem(self, value) -> str | None:
        if any(type(value) is type(one) and value == one for one in self.values):
            return None
        return " or ".join(repr(one) for one in self.values)


@dataclass(frozen=True)
class Text:
    """A text of any length; `empty` allows none."""

    empty: bool = False

    def problem(self, value) -> str | None:
        if not isinstance(value, str) or not (value or self.empty):
            return "a text"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "a text without half characters"
        return None


@dataclass(frozen=True)
class Items:
    """A list of `least` to `most` values of one field."""

    of: object
    least: int = 1
    most: int = 1000

    def problem(self, value) -> str | None:
        if isinstance(value, (list, tuple)) and self.least <= len(value) <= self.most:
            if not any(self.of.problem(one) for one in value):
                return None
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"a list of {count}, each {self.of.problem(math.nan)}"


@dataclass(frozen=True)
class Section:
    """A JSON object; its own fields are checked where it is read."""

    def problem(self, value) -> str | None:
        return None if isinstance(value, dict) else "an object"


@dataclass(frozen=True)
class Anything:
    """Any value; it is checked where it is used."""

    def problem(self, value) -> None:
        return None


FLAG = OneOf((True, False))


def check(name: str, value, field, error: type[JanusError]):
    """Raises `error` unless a value is what its field asks for."""
    problem = field.problem(value)
    if problem:
        raise error(f"{name} is {shown(value)}, it must be {problem}.")


def check_fields(values: dict, fields: dict, where: str, error: type[JanusError], closed: bool = False):
    """Checks those of the fields that are there and not None.

    Args:
        where: the file or section, for messages.
        closed: also raise `error` for a name that is not a field.
    """
    for name, value in values.items():
        if name in fields:
            if value is not None:
                check(f"{where}: {name}", value, fields[name], error)
        elif closed:
            raise error(f"{where} has no setting {shown(name)}, only {', '.join(fields)}.")


def shown(value) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 80 else text[:77] + "..."
