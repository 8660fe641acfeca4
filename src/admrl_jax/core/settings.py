"""Settings as frozen dataclasses: bounds beside the fields, checks, and plain dictionaries for JSON.

A field says what it accepts in its annotation, `horizon: Annotated[int, STEPS] = 100`. A rule over several
fields is a method `check(prefix)` of the dataclass that raises `ConfigError`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_origin, get_type_hints

from jax.core import Tracer


class ConfigError(ValueError):
    """A setting that is not accepted; the message names field, value and what is accepted."""


class Accepts(NamedTuple):
    """What a field accepts.

    Attributes:
        test: predicate.
        words: the same, in words.
    """

    test: Callable[[Any], bool]
    words: str


def is_whole(x: Any) -> bool:
    """An integer that is not a boolean."""
    return isinstance(x, int) and not isinstance(x, bool)


def is_number(x: Any) -> bool:
    """An integer or a finite float."""
    return is_whole(x) or (isinstance(x, float) and math.isfinite(x))


def number_from(low: float, high: float) -> Accepts:
    """A number in a closed range."""
    return Accepts(lambda x: is_number(x) and low <= x <= high, f"a number from {low} to {high}")


def whole_from(low: int, high: int) -> Accepts:
    """A whole number in a closed range."""
    return Accepts(lambda x: is_whole(x) and low <= x <= high, f"a whole number from {low} to {high}")


def one_of(*names: str) -> Accepts:
    """One of a few names."""
    return Accepts(lambda x: x in names, "one of " + ", ".join(names))


def distinct(each: Accepts, words: str, *, may_be_empty: bool = False) -> Accepts:
    """A tuple of different values, each of which passes `each`."""

    def test(x: Any) -> bool:
        is_long_enough = isinstance(x, tuple) and (may_be_empty or len(x) > 0)
        return is_long_enough and all(map(each.test, x)) and len(set(x)) == len(x)

    return Accepts(test, f"{'different' if may_be_empty else 'one or more different'} {words}")


# Generous, but finite: far outside them 32-bit numbers are zero or infinite, and programs never end.
POSITIVE = number_from(1e-6, 1_000_000)
NOT_NEGATIVE = number_from(0, 1_000_000)
NUMBER = number_from(-1_000_000, 1_000_000)
STEP_SIZE = number_from(1e-6, 10)
STEP_SIZE_OR_ZERO = number_from(0, 10)
INNER_STEP_SIZE = number_from(1e-6, 100)
UNIT = number_from(0, 1)
ABOVE_ONE = Accepts(lambda x: is_number(x) and 1 < x <= 10, "a number above 1, at most 10")
FRACTION = Accepts(lambda x: is_number(x) and 0 < x < 1, "a number between 0 and 1")
SHARE = Accepts(lambda x: is_number(x) and 0 < x <= 1, "a number above 0, at most 1")
STEPS = whole_from(1, 1_000_000)
STEPS_OR_ZERO = whole_from(0, 1_000_000)
COUNT = whole_from(1, 10_000)
COUNT_OR_ZERO = whole_from(0, 10_000)
REPEATS = whole_from(1, 1000)
SEED = whole_from(0, 2**31 - 1)
SIZES = Accepts(
    lambda x: isinstance(x, tuple) and 1 <= len(x) <= 10 and all(map(COUNT.test, x)),
    "one to ten whole numbers from 1 to 10000",
)
STRENGTHS = distinct(POSITIVE, f"numbers from {1e-6} to {1_000_000}")

_BY_TYPE = {
    bool: Accepts(lambda x: isinstance(x, bool), "True or False"),
    int: Accepts(is_whole, "a whole number"),
    float: NUMBER,
    str: Accepts(lambda x: isinstance(x, str), "a text"),
}


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Accepts | None]]:
    """`(dotted name, value, what it accepts)` of every field, nested dataclasses walked through."""
    hints = get_type_hints(type(config), include_extras=True)
    for item in dataclasses.fields(config):
        value, hint = getattr(config, item.name), hints[item.name]
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{item.name}.")
            continue
        bounds = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Accepts)]
        base = getattr(hint, "__origin__", hint) if bounds else hint
        yield prefix + item.name, value, bounds[0] if bounds else _BY_TYPE.get(get_origin(base) or base)


def flatten(config: Any) -> dict[str, Any]:
    """Every setting by its dotted name, `learners.maml_trpo.inner_lr`."""
    return {name: value for name, value, _ in fields_of(config)}


def refusal(name: str, value: Any, accepted: str) -> ConfigError:
    """The error that names a field, its value and what is accepted."""
    return ConfigError(f"{name}: {value!r} is not accepted; accepted: {accepted}")


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks every field, then the rules over several fields, of a dataclass and those inside it.

    Raises:
        ConfigError: at the first setting that is not accepted.
    """
    for name, value, accepts in fields_of(config, prefix):
        # Values that a program is traced over are not known yet, and pass.
        if accepts is not None and not isinstance(value, Tracer) and not accepts.test(value):
            raise refusal(name, value, accepts.words)
    _check_rules(config, prefix)


def _check_rules(config: Any, prefix: str) -> None:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_rules(value, f"{prefix}{item.name}.")
    if hasattr(config, "check"):
        config.check(prefix)


def is_on(value: float) -> bool:
    """Whether an option that 0 turns off has to be computed; one that a program is traced over has."""
    return isinstance(value, Tracer) or value > 0


def check_order(config: Any, prefix: str, low: str, high: str) -> None:
    """Refuses an empty range: field `low` must be below field `high`."""
    values = getattr(config, low), getattr(config, high)
    if not any(isinstance(x, Tracer) for x in values) and not values[0] < values[1]:
        raise refusal(prefix + low, values[0], f"a number below {prefix}{high} ({values[1]!r})")


def to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists, ready for JSON."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: Any, tree: dict[str, Any], prefix: str = "", *, may_miss: tuple[str, ...] = ()) -> Any:
    """The inverse of `to_plain` for a dataclass.

    Args:
        cls: the dataclass.
        tree: its settings.
        prefix: of names in messages.
        may_miss: names of groups in which whatever is missing takes its default; and of settings.

    Raises:
        ConfigError: settings are unknown or missing.
    """
    hints = get_type_hints(cls)
    names = {item.name for item in dataclasses.fields(cls)}
    odd = set(tree) - names if prefix.split(".")[0] in may_miss else names ^ set(tree)
    odd -= names & set(may_miss)
    if odd:
        raise ConfigError(
            "config: unknown or missing settings: " + ", ".join(prefix + name for name in sorted(odd))
        )
    values = {}
    for name, value in tree.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            value = from_plain(hints[name], value, f"{prefix}{name}.", may_miss=may_miss)
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return cls(**values)
