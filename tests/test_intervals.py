"""Interquartile mean and intervals against known values."""

import numpy as np
import pytest

from admrl_jax.stats.intervals import bootstrap_interval, interquartile_mean, t_interval


def test_interquartile_mean():
    assert interquartile_mean([1, 2, 3, 100]) == 2.5  # a quarter of the weight is one value at each end
    assert interquartile_mean([[7.0]]) == 7.0
    assert interquartile_mean(range(5)) == pytest.approx(2.0)
    # six values: the cut falls half way into the second and the fifth
    assert interquartile_mean([-50, 2, 3, 4, 6, 99]) == pytest.approx((2 / 2 + 3 + 4 + 6 / 2) / 3)
    with pytest.raises(ValueError, match="at least one"):
        interquartile_mean([])


def test_t_interval():
    # mean 2, standard error 1 / sqrt(3); t(0.975, 2 degrees) = 4.30265
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    # the review's example: adMRL minus MAML in 2D navigation
    assert t_interval([-7.8, -16.4, -50.5]) == pytest.approx((-81, 31), abs=1)
    assert t_interval([5.0, 5.0, 5.0]) == (5.0, 5.0)
    with pytest.raises(ValueError, match="at least two"):
        t_interval([1.0])


def test_bootstrap_interval():
    x = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(x)
    # the normal interval has half width 1.96 / sqrt(400) = 0.098
    assert (high - low) / 2 == pytest.approx(0.098 * x.std(), rel=0.1) and low < x.mean() < high
    assert bootstrap_interval(x) == (low, high)
    with pytest.raises(ValueError, match="at least 8"):
        bootstrap_interval(range(7))
