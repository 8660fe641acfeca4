"""Comparisons and aggregates of scores over runs and tasks (most of them after Agarwal et al. 2021).

Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", NeurIPS 2021 (arXiv:2108.13264). Runs S, tasks N.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from admrl_jax.stats.intervals import BOOTSTRAP_SEEDS, LEVEL, interquartile_mean, t_interval


class Difference(NamedTuple):
    """Paired differences over seeds.

    Attributes:
        mean: of the differences.
        low: end of the interval of the mean.
        high: the other end.
        p_value: two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    p_value: float


def paired_interval(values: ArrayLike, baseline: ArrayLike) -> Difference:
    """Mean of `values - baseline` over seeds, its t interval and the two-sided paired t test.

    Where all differences are one number the interval is that number, and p is 1 if it is zero, else 0.

    Args:
        values: `[S]`, one per seed.
        baseline: `[S]`, of the same seeds in the same order.

    Raises:
        ValueError: with fewer than two pairs, or other shapes.
    """
    x, y = np.asarray(values, float), np.asarray(baseline, float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"paired_interval needs two vectors of one length, got {x.shape} and {y.shape}")
    if x.size < 2:
        raise ValueError("paired_interval needs at least two pairs")
    difference = x - y
    # scipy.stats warns here, and returns nan for 0 / 0.
    if np.ptp(difference) == 0:
        constant = float(difference[0])
        return Difference(constant, constant, constant, float(constant == 0))
    p_value = scipy.stats.ttest_rel(x, y).pvalue
    return Difference(float(difference.mean()), *t_interval(difference), float(p_value))


def holm(p_values: ArrayLike) -> np.ndarray:
    """P values adjusted for their number by the step-down method of Holm (1979).

    Rejecting those at most alpha bounds the chance of any false rejection by alpha, however dependent
    the tests are.

    Args:
        p_values: `[m]`, of all tests of the family.

    Returns:
        `[m]`, in the order given.

    Raises:
        ValueError: if one is not in [0, 1].
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"holm needs a vector of numbers in [0, 1], got {p}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    # An adjusted p value is never below that of a smaller p value.
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return adjusted


def stratified_mean(values: ArrayLike, strata: ArrayLike) -> np.ndarray:
    """Mean over strata of the mean within each, so that all weigh the same whatever the draw of tasks.

    A stratum that was not drawn has no weight. `t_interval` of the `[S]` result is its interval over seeds.

    Args:
        values: `[S, N]` or `[N]`.
        strata: `[N]`, the label of each task's stratum, for instance its direction.

    Returns:
        `[S]` or `[]`.

    Raises:
        ValueError: without tasks, or where the lengths differ.
    """
    x, labels = np.asarray(values, float), np.asarray(strata)
    if labels.ndim != 1 or labels.size == 0 or x.shape[-1:] != labels.shape:
        raise ValueError(f"stratified_mean needs one stratum per task, got {labels.shape} for {x.shape}")
    return np.asarray(np.mean([x[..., labels == s].mean(-1) for s in np.unique(labels)], axis=0))


def stratified_error(values: ArrayLike, strata: ArrayLike) -> float:
    """Standard error of `stratified_mean`; strata with a single value tell nothing of it.

    Args:
        values: `[N]`.
        strata: `[N]`, the label of each task's stratum.
    """
    x, labels = np.asarray(values, float), np.asarray(strata)
    groups = [x[labels == s] for s in np.unique(labels)]
    variances = [group.var(ddof=1) / group.size for group in groups if group.size > 1]
    return float(np.sqrt(np.sum(variances))) / max(len(groups), 1)


def stratified_bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval by stratified bootstrap (Agarwal et al. 2021).

    Runs are drawn anew within each task, independently of the other tasks.
    The tasks are taken as fixed: the interval is about other runs on these tasks.

    Args:
        scores: `[S, N]`, at least `BOOTSTRAP_SEEDS` runs.
        statistic: of one redrawn `[S, N]`.
        seed: of the resampling; the interval is a function of its arguments only.

    Raises:
        ValueError: with fewer runs, or another rank.
    """
    x = _runs_by_tasks("stratified_bootstrap_interval", scores)
    if len(x) < BOOTSTRAP_SEEDS:
        raise ValueError(f"stratified_bootstrap_interval needs at least {BOOTSTRAP_SEEDS} runs, got {len(x)}")
    found = scipy.stats.bootstrap(
        tuple(x.T),  # samples of their own, which scipy.stats redraws independently
        lambda *tasks: statistic(np.stack(tasks, axis=1)),
        vectorized=False,
        batch=1000,  # bounds the memory
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Share of runs and tasks with a score above each threshold (Agarwal et al. 2021).

    This is their run-score distribution. A score of nan is above none.

    Args:
        scores: `[S, N]`.
        thresholds: `[K]`.

    Returns:
        `[K]`.

    Raises:
        ValueError: without scores, or for another rank.
    """
    x = _runs_by_tasks("performance_profile", scores)
    return np.mean(x[..., None] > np.asarray(thresholds, float), axis=(0, 1))


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Chance that a run of `x` scores above a run of `y`, mean over tasks (Agarwal et al. 2021).

    In each task it is the Mann-Whitney U statistic over the number of pairs. A tie counts half.

    Args:
        x: `[S, N]`.
        y: `[T, N]`, on the same tasks; the number of runs may differ.

    Raises:
        ValueError: without scores, or where the number of tasks differs.
    """
    a = _runs_by_tasks("probability_of_improvement", x)
    b = _runs_by_tasks("probability_of_improvement", y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"probability_of_improvement needs the same tasks, got {a.shape[1]} and {b.shape[1]}"
        )
    # Only U is used; the exact p value would be slow.
    u = scipy.stats.mannwhitneyu(a, b, axis=0, method="asymptotic").statistic
    return float(np.mean(u) / (len(a) * len(b)))


def cvar(values: ArrayLike, level: float = 0.1) -> float:
    """Mean of the worst share of all values, the lowest (conditional value at risk).

    Where `level` times their number is no whole number, the last value counts in part
    (Rockafellar and Uryasev 2002).

    Args:
        values: any shape, at least one.
        level: the share, in (0, 1].

    Raises:
        ValueError: without values, or for another level.
    """
    ordered = np.sort(np.asarray(values, float).ravel())
    if ordered.size == 0:
        raise ValueError("cvar needs at least one value")
    if not 0 < level <= 1:
        raise ValueError(f"cvar needs a level in (0, 1], got {level}")
    count = level * ordered.size
    # All values are in the sum, so that one nan, which is sorted to the end, makes it nan.
    return float(np.sum(np.clip(count - np.arange(ordered.size), 0.0, 1.0) * ordered) / count)


def floor_normalised(returns: ArrayLike, floor: ArrayLike, clean: ArrayLike) -> np.ndarray:
    """Returns on the scale where 0 is doing nothing and 1 the clean return of the undefended policy.

    Args:
        returns: any shape.
        floor: the return of doing nothing; a number, or a shape that broadcasts to that of `returns`.
        clean: the return of the undefended policy without an attack; likewise.

    Raises:
        ValueError: where the clean return is not above the floor.
    """
    low, high = np.asarray(floor, float), np.asarray(clean, float)
    if not np.all(high > low):
        raise ValueError(f"the clean return {high} must be above the floor {low}")
    return np.asarray((np.asarray(returns, float) - low) / (high - low))


def _runs_by_tasks(name: str, scores: ArrayLike) -> np.ndarray:
    x = np.asarray(scores, float)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"{name} needs scores [runs, tasks], got shape {x.shape}")
    return x
