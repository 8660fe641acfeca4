"""Comparisons and aggregates of scores against values by hand, brute-force loops and published identities."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from admrl_jax.stats.intervals import t_interval
from admrl_jax.stats.scores import (
    cvar,
    floor_normalised,
    holm,
    paired_interval,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap_interval,
    stratified_mean,
)


def test_paired_interval():
    # Differences 1, 2, 3 between seeds that are far apart: mean 2, standard error 1 / sqrt(3).
    # t(0.975, 2 degrees) = 4.30265; with 2 degrees p = 1 - t / sqrt(t^2 + 2), and t^2 = 12.
    found = paired_interval([11.0, 202.0, -27.0], [10.0, 200.0, -30.0])
    half = 4.30265 / 3**0.5
    assert found == pytest.approx((2, 2 - half, 2 + half, 1 - (12 / 14) ** 0.5), abs=1e-4)
    # Differences -1, -3: t = -2, and with 1 degree (Cauchy) p = 1 - 2 / pi * atan(2).
    found = paired_interval([0.0, 4.0], [1.0, 7.0])
    half = math.tan(0.475 * math.pi)
    assert found == pytest.approx((-2, -2 - half, -2 + half, 1 - 2 / math.pi * math.atan(2)))
    assert found.mean == -2 and found.low < found.high


def test_paired_interval_agrees_with_the_p_value():
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(50):
        found = paired_interval(rng.normal(1.0, size=5), rng.normal(size=5))
        assert (found.low <= 0 <= found.high) == (found.p_value >= 0.05)
        sides.add(found.p_value >= 0.05)
    assert sides == {True, False}


def test_paired_interval_of_equal_differences():
    assert paired_interval([1.0, 5.0], [1.0, 5.0]) == (0.0, 0.0, 0.0, 1.0)
    assert paired_interval([3.0, 7.0], [1.0, 5.0]) == (2.0, 2.0, 2.0, 0.0)


def test_paired_interval_errors():
    with pytest.raises(ValueError, match="at least two pairs"):
        paired_interval([1.0], [2.0])
    with pytest.raises(ValueError, match="one length"):
        paired_interval([1.0, 2.0, 3.0], [1.0])  # would broadcast


def test_holm():
    # sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is lifted to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.02, 0.7]) == pytest.approx([1.0, 0.06, 1.0])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.3]) == pytest.approx([0.3])
    assert holm([]).shape == (0,)


def test_holm_is_closed_bonferroni():
    # Holm's p value is the largest Bonferroni p value of all sets of hypotheses with this one.
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(size=5) ** 3
        expected = np.zeros(5)
        for size in range(1, 6):
            for members in itertools.combinations(range(5), size):
                for i in members:
                    expected[i] = max(expected[i], min(1.0, size * min(p[j] for j in members)))
        assert holm(p) == pytest.approx(expected)


@pytest.mark.parametrize("p", [[0.1, 1.1], [-0.1], [math.nan, 0.1], [[0.1]]])
def test_holm_errors(p):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm(p)


def test_stratified_mean():
    # three tasks forward with mean 2, one backward with 6: half of each is 4, the plain mean 3
    assert stratified_mean([1.0, 2.0, 6.0, 3.0], [1, 1, -1, 1]) == pytest.approx(4.0)
    assert stratified_mean([1.0, 2.0, 6.0, 3.0], ["f", "f", "b", "f"]) == pytest.approx(4.0)
    # per seed: (2 + 6) / 2 and (0 + 10) / 2
    seeds = stratified_mean([[1.0, 2.0, 6.0, 3.0], [0.0, 0.0, 10.0, 0.0]], [1, 1, -1, 1])
    assert seeds == pytest.approx([4.0, 5.0])
    # mean 4.5, standard error 0.5, t(0.975, 1 degree) = 12.7062
    assert t_interval(seeds) == pytest.approx((4.5 - 6.3531, 4.5 + 6.3531), abs=1e-4)
    x = np.arange(12.0).reshape(3, 4)
    assert stratified_mean(x, [0, 0, 0, 0]) == pytest.approx(x.mean(1))


def test_stratified_mean_errors():
    for values, strata in [([[1.0, 2.0]], [0, 1, 2]), ([], []), ([1.0, 2.0], [[0, 1]]), (1.0, [0])]:
        with pytest.raises(ValueError, match="one stratum per task"):
            stratified_mean(values, strata)


def test_stratified_bootstrap_draws_tasks_independently():
    # Scores a and -a: were whole runs drawn, every mean would be 0. The redrawn mean of a task has variance
    # var / S, that of all tasks sum(var) / (S N^2).
    a = np.random.default_rng(0).normal(size=200)
    scores = np.stack([a, -a], axis=1)
    low, high = stratified_bootstrap_interval(scores, np.mean)
    assert (high - low) / 2 == pytest.approx(1.96 * (2 * a.var() / (200 * 4)) ** 0.5, rel=0.05)
    assert low < 0 < high


def test_stratified_bootstrap_keeps_runs_in_their_task():
    # Runs that are alike within a task are alike in every draw.
    # The interquartile mean of 1, 2, 3, 100 is 2.5.
    scores = np.tile([1.0, 2.0, 3.0, 100.0], (8, 1))
    assert stratified_bootstrap_interval(scores) == pytest.approx((2.5, 2.5))
    assert stratified_bootstrap_interval(scores, np.mean) == pytest.approx((26.5, 26.5))


def test_stratified_bootstrap_against_rliable():
    # rliable: indices drawn per task, trim_mean of all scores (a quarter of 24 is whole), percentiles.
    rng = np.random.default_rng(1)
    scores = rng.lognormal(sigma=1.5, size=(8, 3))
    drawn = scores[rng.integers(8, size=(20_000, 8, 3)), np.arange(3)]
    expected = np.percentile(scipy.stats.trim_mean(drawn.reshape(-1, 24), 0.25, axis=1), [2.5, 97.5])
    found = stratified_bootstrap_interval(scores)
    # four times the Monte Carlo error of a 2.5% quantile is about 0.04 of the width
    close = pytest.approx(tuple(expected), abs=0.05 * (expected[1] - expected[0]))
    assert found == close
    # the scores are skewed enough to tell the percentile interval from its mirror image
    centre = scipy.stats.trim_mean(scores.ravel(), 0.25)
    assert (2 * centre - expected[1], 2 * centre - expected[0]) != close
    assert stratified_bootstrap_interval(scores) == found
    assert stratified_bootstrap_interval(scores, seed=1) != found


def test_stratified_bootstrap_errors():
    with pytest.raises(ValueError, match="at least 8 runs, got 7"):
        stratified_bootstrap_interval(np.zeros((7, 20)))
    with pytest.raises(ValueError, match=r"\[runs, tasks\]"):
        stratified_bootstrap_interval(np.zeros(20))


def test_performance_profile():
    # of 0, 1, 1, 3: all above -1, three above 0 (not 0 itself), one above 1 and 2, none above 3
    profile = performance_profile([[0.0, 1.0], [1.0, 3.0]], [-1.0, 0.0, 1.0, 2.0, 3.0])
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]
    # one of the three scores was nan
    assert performance_profile([[1.0, math.nan, 2.0]], [0.0]) == pytest.approx([2 / 3])


def test_performance_profile_against_its_definition():
    # mean over tasks of the mean over runs of 1[score > threshold], and its area is the mean score
    scores = np.random.default_rng(0).integers(0, 10, size=(4, 3))
    thresholds = range(10)
    expected = [sum(sum(s > t for s in task) / 4 for task in scores.T) / 3 for t in thresholds]
    profile = performance_profile(scores, thresholds)
    assert profile == pytest.approx(expected)
    assert profile.sum() == pytest.approx(scores.mean())


def test_probability_of_improvement():
    # task 0: of 1, 2, 3 against 2, 0: 1 wins once, 2 wins once and ties once, 3 wins twice: 4.5 / 6
    # task 1: all tie: 1 / 2
    x = [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]
    y = [[2.0, 5.0], [0.0, 5.0]]
    assert probability_of_improvement(x, y) == pytest.approx((0.75 + 0.5) / 2)
    assert probability_of_improvement(y, x) == pytest.approx((0.25 + 0.5) / 2)
    assert probability_of_improvement([[1.0]], [[0.0]]) == 1.0


def test_probability_of_improvement_against_its_definition():
    rng = np.random.default_rng(0)
    scale = np.array([1, 10, 100])  # a comparison across tasks would show
    x, y = rng.integers(1, 6, size=(7, 3)) * scale, rng.integers(0, 5, size=(4, 3)) * scale
    wins = [
        sum((a > b) + (a == b) / 2 for a in x[:, task] for b in y[:, task]) / (7 * 4) for task in range(3)
    ]
    assert probability_of_improvement(x, y) == pytest.approx(sum(wins) / 3)


def test_probability_of_improvement_errors():
    with pytest.raises(ValueError, match="same tasks, got 3 and 1"):
        probability_of_improvement(np.zeros((2, 3)), np.zeros((2, 1)))  # would broadcast
    with pytest.raises(ValueError, match=r"\[runs, tasks\]"):
        probability_of_improvement(np.zeros(3), np.zeros(3))


def test_cvar():
    ten = [7, 3, 10, 1, 5, 9, 2, 8, 4, 6]
    assert cvar(ten) == pytest.approx(1.0)
    assert cvar(ten, 0.3) == pytest.approx(2.0)
    assert cvar(ten, 0.25) == pytest.approx((1 + 2 + 0.5 * 3) / 2.5)
    assert cvar([[4.0, -2.0], [1.0, 8.0]]) == pytest.approx(-2.0)  # a tenth of four: a part of the worst
    assert cvar(ten, 1.0) == pytest.approx(5.5)


def test_cvar_against_rockafellar_and_uryasev():
    # the maximum over c of c - mean(max(c - x, 0)) / level, which is attained at a value
    x = np.random.default_rng(0).normal(size=23)
    for level in (0.01, 0.1, 0.37, 0.9, 1.0):
        expected = max(c - np.mean(np.maximum(c - x, 0)) / level for c in x)
        assert cvar(x, level) == pytest.approx(expected)


def test_cvar_errors():
    with pytest.raises(ValueError, match="at least one"):
        cvar([])
    for level in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="level"):
            cvar([1.0], level)


def test_floor_normalised():
    assert floor_normalised([-5.0, 0.0, 10.0, 20.0], 0.0, 10.0).tolist() == [-0.5, 0.0, 1.0, 2.0]
    # returns are negative: from -100 to -20, -60 is half way
    assert floor_normalised(-60.0, -100.0, -20.0) == pytest.approx(0.5)
    # a floor and a clean return per task
    found = floor_normalised([[1.0, 0.0], [2.0, 5.0]], [0.0, -10.0], [4.0, 10.0])
    assert found == pytest.approx(np.array([[0.25, 0.5], [0.5, 0.75]]))


@pytest.mark.parametrize(
    ("floor", "clean", "message"),
    [
        (3.0, 3.0, "clean return 3.0 must be above the floor 3.0"),
        (-20.0, -35.5, "clean return -35.5 must be above the floor -20.0"),
        (0.0, math.nan, "clean return nan"),
        ([0.0, 2.0], [1.0, 1.0], "above the floor"),
    ],
)
def test_floor_normalised_errors(floor, clean, message):
    with pytest.raises(ValueError, match=message):
        floor_normalised([1.0, 2.0], floor, clean)


def test_a_lost_run_is_not_left_out():
    lost = [1.0, math.nan, 2.0]
    assert all(math.isnan(number) for number in paired_interval(lost, [0.0, 0.0, 0.0]))
    assert math.isnan(stratified_mean(lost, [0, 0, 1]))
    assert math.isnan(probability_of_improvement([lost], [[0.0, 0.0, 0.0]]))
    assert math.isnan(cvar(lost, 0.1))
