"""Which values a setting accepts: predicates with their wording, and the error that names both."""

import math
from collections.abc import Callable
from typing import Any

Check = tuple[Callable[[Any], bool], str]
"""A predicate and what it accepts, in words."""


class ConfigError(ValueError):
    """A setting that is not accepted; the message names field, value and what is accepted."""


def whole(x: Any) -> bool:
    """An integer that is not a boolean."""
    return isinstance(x, int) and not isinstance(x, bool)


def number(x: Any) -> bool:
    """An integer or a finite float."""
    return whole(x) or (isinstance(x, float) and math.isfinite(x))


def number_from(low: float, high: float) -> Check:
    """A number in a closed range."""
    return (lambda x: number(x) and low <= x <= high, f"a number from {low} to {high}")


def whole_from(low: int, high: int) -> Check:
    """A whole number in a closed range."""
    return (lambda x: whole(x) and low <= x <= high, f"a whole number from {low} to {high}")


# Generous, but finite: far outside them numbers of 32 bits are zero or infinite, and programs endless.
POSITIVE = number_from(1e-6, 1_000_000)
NOT_NEGATIVE = number_from(0, 1_000_000)
NUMBER = number_from(-1_000_000, 1_000_000)
STEP_SIZE = number_from(1e-6, 10)
UNIT = number_from(0, 1)
ABOVE_ONE: Check = (lambda x: number(x) and 1 < x <= 10, "a number above 1, at most 10")
FRACTION: Check = (lambda x: number(x) and 0 < x < 1, "a number between 0 and 1")
STEPS = whole_from(1, 1_000_000)
STEPS_OR_ZERO = whole_from(0, 1_000_000)
COUNT = whole_from(1, 10_000)
COUNT_OR_ZERO = whole_from(0, 10_000)
REPEATS = whole_from(1, 1000)
SEED = whole_from(0, 2**31 - 1)
SIZES: Check = (
    lambda x: isinstance(x, tuple) and 1 <= len(x) <= 10 and all(map(COUNT[0], x)),
    "one to ten whole numbers from 1 to 10000",
)

FLAG: Check = (lambda x: isinstance(x, bool), "True or False")


def one_of(*names: str) -> Check:
    """One of a few names."""
    return (lambda x: x in names, "one of " + ", ".join(names))


def distinct(check: Check, wording: str) -> Check:
    """A tuple of one or more different values, each of which passes `check`."""
    return (
        lambda x: isinstance(x, tuple) and len(x) > 0 and all(map(check[0], x)) and len(set(x)) == len(x),
        f"one or more different {wording}",
    )
