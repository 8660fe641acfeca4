"""Diagonal Gaussian: parity with SciPy, numeric integration, the gradient of the KL, log density of noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian

OLD = Gaussian(jnp.array([[0.3, -1.2, 2.0], [0.0, 0.5, -0.5]]), jnp.array([-0.7, 0.0, 0.4]))
NEW = Gaussian(jnp.array([[0.1, -1.0, 2.5], [0.2, 0.5, 0.0]]), jnp.array([-0.5, 0.2, 0.1]))


def test_log_prob_matches_scipy() -> None:
    value = np.array([[0.0, 1.0, -1.0], [2.0, 0.5, 3.0]])
    expected = scipy.stats.norm.logpdf(value, OLD.mean, np.exp(OLD.log_std)).sum(-1)
    np.testing.assert_allclose(gaussian.log_prob(OLD, jnp.asarray(value)), expected, rtol=1e-5)


def test_log_prob_golden() -> None:
    # At the mean of a standard normal in two dimensions: -2 * log(2 pi) / 2 = -1.8378771.
    dist = Gaussian(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_allclose(gaussian.log_prob(dist, jnp.zeros(2)), -1.8378771, rtol=1e-6)
    # One standard deviation away in one coordinate costs exactly 1/2.
    np.testing.assert_allclose(gaussian.log_prob(dist, jnp.array([1.0, 0.0])), -2.3378771, rtol=1e-6)


def test_entropy_matches_scipy_for_every_sample() -> None:
    expected = scipy.stats.norm.entropy(scale=np.exp(OLD.log_std)).sum()
    np.testing.assert_allclose(gaussian.entropy(OLD), np.full(2, expected), rtol=1e-6)


def test_kl_matches_numeric_integration() -> None:
    def integral(m0: float, s0: float, m1: float, s1: float) -> float:
        p, q = scipy.stats.norm(m0, s0), scipy.stats.norm(m1, s1)
        return scipy.integrate.quad(
            lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), m0 - 12 * s0, m0 + 12 * s0, epsabs=1e-12
        )[0]

    expected = [
        sum(
            integral(*map(float, entry))
            for entry in zip(
                OLD.mean[i], jnp.exp(OLD.log_std), NEW.mean[i], jnp.exp(NEW.log_std), strict=True
            )
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(gaussian.kl(OLD, NEW), expected, rtol=1e-4)


def test_kl_golden() -> None:
    # KL(N(0, 1) || N(1, 2^2)) = log 2 + (1 + 1) / (2 * 4) - 1/2 = 0.6931472 - 0.25 = 0.4431472.
    old = Gaussian(jnp.zeros(1), jnp.zeros(1))
    new = Gaussian(jnp.ones(1), jnp.log(jnp.full(1, 2.0)))
    np.testing.assert_allclose(gaussian.kl(old, new), 0.4431472, rtol=1e-6)
    # The other way: -log 2 + (4 + 1) / 2 - 1/2 = 1.3068528.
    np.testing.assert_allclose(gaussian.kl(new, old), 1.3068528, rtol=1e-6)


def test_kl_and_its_gradient_vanish_at_equality() -> None:
    value, gradient = jax.value_and_grad(lambda new: jnp.sum(gaussian.kl(OLD, new)))(OLD)
    assert value == 0
    np.testing.assert_array_equal(gradient.mean, 0)
    np.testing.assert_allclose(gradient.log_std, 0, atol=1e-6)


def test_sample_has_the_mean_and_std_it_says() -> None:
    dist = Gaussian(jnp.broadcast_to(jnp.array([1.0, -2.0]), (20000, 2)), jnp.log(jnp.array([0.5, 2.0])))
    x = np.asarray(gaussian.sample(dist, jax.random.key(0)))
    std = np.array([0.5, 2.0])
    # Standard errors: std / sqrt(n) for the mean, std / sqrt(2 n) for the standard deviation.
    assert np.all(np.abs(x.mean(0) - [1.0, -2.0]) < 4 * std / 20000**0.5)
    assert np.all(np.abs(x.std(0) - std) < 4 * std / 40000**0.5)


@pytest.mark.parametrize("noise", [0.0, 1.0, -2.0])
def test_from_noise(noise: float) -> None:
    # mean + exp(log_std) * noise with mean 3 and std 0.5.
    dist = Gaussian(jnp.array([3.0]), jnp.log(jnp.array([0.5])))
    np.testing.assert_allclose(gaussian.from_noise(dist, jnp.array([noise])), [3 + 0.5 * noise], rtol=1e-6)


@pytest.mark.parametrize("log_std", [-8.0, 0.0, 2.0])
def test_log_prob_of_noise_is_that_of_its_sample(log_std: float) -> None:
    # Recorded with every action: it must agree with what is recomputed from the action later.
    dist = Gaussian(OLD.mean, jnp.full(3, log_std))
    noise = jax.random.normal(jax.random.key(0), OLD.mean.shape)
    expected = gaussian.log_prob(dist, gaussian.from_noise(dist, noise))
    # At a deviation of exp(-8) the action's rounding is 1e-4 deviations.
    np.testing.assert_allclose(gaussian.log_prob_of_noise(dist, noise), expected, rtol=2e-3)
