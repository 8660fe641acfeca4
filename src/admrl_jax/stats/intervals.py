"""Small-sample statistics over seeds: interquartile mean, t and bootstrap intervals."""

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

LEVEL = 0.95
"""Nominal coverage of every interval."""

WORDED_SEEDS = 3
"""With fewer runs no interval is given, no comparison worded and no claim decided."""
BOOTSTRAP_SEEDS = 8
"""With fewer runs a bootstrap interval is little more than their range."""


def interquartile_mean(x: ArrayLike) -> float:
    """Mean of the middle half of all values (Agarwal et al. 2021).

    A quarter of the weight is cut at each end; a value that straddles a cut counts in part, so
    the result is defined for any number of values (for one to three it leans on the middle).
    """
    ordered = np.sort(np.asarray(x, float).ravel())
    if ordered.size == 0:
        raise ValueError("interquartile_mean needs at least one value")
    edges = np.linspace(0.0, 1.0, ordered.size + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float(np.sum(weights * ordered) / np.sum(weights))


def t_interval(values: ArrayLike) -> tuple[float, float]:
    """Interval of the mean by Student's t, for values that are independent and roughly normal.

    Args:
        values: `[n]`, one per run, at least two.
    """
    x = np.asarray(values, float)
    if x.size < 2:
        raise ValueError("t_interval needs at least two values")
    error = scipy.stats.sem(x)
    if error == 0:
        return float(x.mean()), float(x.mean())
    low, high = scipy.stats.t.interval(LEVEL, x.size - 1, loc=x.mean(), scale=error)
    return float(low), float(high)


def bootstrap_interval(values: ArrayLike) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same values always give the same.

    Args:
        values: `[n]`, one per run, at least `BOOTSTRAP_SEEDS`.
    """
    x = np.asarray(values, float)
    if x.size < BOOTSTRAP_SEEDS:
        raise ValueError(f"bootstrap_interval needs at least {BOOTSTRAP_SEEDS} values")
    found = scipy.stats.bootstrap(
        (x,), np.mean, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
