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


POSITIVE: Check = (lambda x: number(x) and x > 0, "a number above 0")
NOT_NEGATIVE: Check = (lambda x: number(x) and x >= 0, "a number of at least 0")
ABOVE_ONE: Check = (lambda x: number(x) and x > 1, "a number above 1")
NUMBER: Check = (number, "a number")
COUNT: Check = (lambda x: whole(x) and x >= 1, "a whole number of at least 1")
COUNT_OR_ZERO: Check = (lambda x: whole(x) and x >= 0, "a whole number of at least 0")
FRACTION: Check = (lambda x: number(x) and 0 < x < 1, "a number between 0 and 1")
UNIT: Check = (lambda x: number(x) and 0 <= x <= 1, "a number from 0 to 1")
SEED: Check = (lambda x: whole(x) and 0 <= x < 2**31, "a whole number from 0 to 2147483647")
SIZES: Check = (
    lambda x: isinstance(x, tuple) and len(x) > 0 and all(whole(size) and size >= 1 for size in x),
    "one or more whole numbers of at least 1",
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
