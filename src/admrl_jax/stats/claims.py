"""Whether a claim holds, by a rule that is fixed before anything is measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from admrl_jax.stats.intervals import LEVEL, WORDED_SEEDS, t_interval

SUPPORTED, CONTRADICTED, UNDECIDED, UNMEASURED = "supported", "contradicted", "undecided", "not measured"


class Effect(NamedTuple):
    """How far a claim holds, above zero where it does.

    Attributes:
        value: mean over seeds.
        low: lower end of the 95 % interval; NaN with too few seeds.
        high: its upper end.
        seeds: how many there are.
    """

    value: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`SUPPORTED` where the whole interval is above zero, `CONTRADICTED` where all of it is below."""
        if self.seeds == 0:
            return UNMEASURED
        return SUPPORTED if self.low > 0 else CONTRADICTED if self.high < 0 else UNDECIDED


NOTHING = Effect(float("nan"), float("nan"), float("nan"), 0)


def effect_of(values: Iterable[float]) -> Effect:
    """The mean of independent seeds, with its t interval.

    Args:
        values: one per seed.
    """
    x = np.asarray([value for value in values if np.isfinite(value)], float)
    if not x.size:
        return NOTHING
    low, high = t_interval(x) if x.size >= WORDED_SEEDS else (float("nan"), float("nan"))
    return Effect(float(x.mean()), low, high, x.size)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Effect:
    """`first` minus `second`, within every seed that both have."""
    return effect_of([first[seed] - second[seed] for seed in first if seed in second])


def bounded(effect: Effect, *, is_too_high: bool, is_too_low: bool) -> Effect:
    """An effect whose value may be too high, which supports nothing, or too low, contradicting nothing."""
    if np.isnan(effect.low):
        return effect
    low = -np.inf if is_too_high else effect.low
    return effect._replace(low=low, high=np.inf if is_too_low else effect.high)


def one_of_many(effect: Effect, tests: int) -> Effect:
    """An effect of which one among so many tests that fails is enough: its upper end is moved up.

    Of a t interval, by Bonferroni, so that the chance of any false contradiction stays that of one test.
    """
    if not np.isfinite(effect.high) or effect.seeds < 2 or tests < 2:
        return effect
    one, all_of_them = scipy.stats.t.ppf([0.5 + LEVEL / 2, 1 - (0.5 - LEVEL / 2) / tests], effect.seeds - 1)
    return effect._replace(high=effect.value + (effect.high - effect.value) * float(all_of_them / one))


def weakest(effects: Sequence[Effect]) -> Effect:
    """Of a claim that holds if all its parts do: supported if all are, contradicted if any is.

    Support needs no correction for the number of parts (intersection-union test, Berger 1982);
    contradiction does, see `one_of_many`.

    Args:
        effects: of the parts.
    """
    if not effects or any(effect.seeds == 0 for effect in effects):
        return NOTHING
    value, low, high = (
        # Not Python's `min`, which may lose a NaN: a part with too few seeds supports nothing.
        float(np.min([getattr(effect, name) for effect in effects]))
        for name in ("value", "low", "high")
    )
    return Effect(value, low, high, min(effect.seeds for effect in effects))


def agreement(values: ArrayLike, printed: float) -> Effect:
    """Whether a printed number without a spread could be one more seed of ours.

    Positive where it lies inside the 95 % prediction interval: how far from the nearest end. That excludes
    nothing and supports nothing, the less the more our seeds scatter, so `low` is minus infinity then: the
    verdict is undecided. Outside, `low` and `high` are the value, and the number is contradicted.

    Args:
        values: one per seed.
        printed: the number.
    """
    x = np.asarray(values, float)
    if x.size < WORDED_SEEDS:
        return NOTHING if not x.size else Effect(float("nan"), float("nan"), float("nan"), x.size)
    quantile = float(scipy.stats.t.ppf(0.5 + LEVEL / 2, x.size - 1))
    reach = quantile * float(x.std(ddof=1)) * float(np.sqrt(1 + 1 / x.size))
    inside = reach - abs(printed - float(x.mean()))
    return Effect(inside, -np.inf if inside > 0 else inside, inside, x.size)


def spread_ratio(wide: ArrayLike, narrow: ArrayLike) -> Effect:
    """Logarithm of the ratio of two standard deviations over seeds, with the interval of the F distribution.

    Args:
        wide: one value per seed, of what is claimed to vary more.
        narrow: the same of what is claimed to vary less.
    """
    x, y = np.asarray(wide, float), np.asarray(narrow, float)
    if min(x.size, y.size) < 2 or x.std() == 0 or y.std() == 0:
        return NOTHING
    ratio = float(np.log(x.std(ddof=1) / y.std(ddof=1)))
    if min(x.size, y.size) < WORDED_SEEDS:
        return Effect(ratio, float("nan"), float("nan"), min(x.size, y.size))
    ends = scipy.stats.f.ppf([0.5 + LEVEL / 2, 0.5 - LEVEL / 2], x.size - 1, y.size - 1)
    low, high = (ratio - 0.5 * float(np.log(end)) for end in ends)
    return Effect(ratio, low, high, min(x.size, y.size))


def overall(verdicts: Iterable[str]) -> str:
    """Of a claim over several environments: one that contradicts it is enough, all have to support it."""
    found = list(verdicts)
    for verdict in (CONTRADICTED, UNMEASURED, UNDECIDED):
        if verdict in found:
            return UNDECIDED if verdict == UNMEASURED and set(found) != {UNMEASURED} else verdict
    return SUPPORTED if found else UNMEASURED
