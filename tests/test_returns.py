"""Returns, GAE, the linear baseline and advantage normalisation, with early ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal, random_experience

from admrl_jax.core import returns

REWARD = jnp.array([1.0, 2.0, 3.0, 4.0])
VALUE = jnp.array([0.5, 1.0, 1.5, 2.0])
FULL = jnp.ones(4)
ENDED = jnp.array([1.0, 1.0, 0.0, 0.0])

score = jax.jit(functools.partial(returns.estimate_advantages, discount=0.9, gae_lambda=0.8))


def test_discounted_returns_golden() -> None:
    # Discount 1/2: R3 = 4; R2 = 3 + 2 = 5; R1 = 2 + 2.5 = 4.5; R0 = 1 + 2.25 = 3.25.
    np.testing.assert_allclose(returns.discounted_returns(REWARD, FULL, 0.5), [3.25, 4.5, 5, 4], rtol=1e-6)
    # Ended after the second step: R1 = 2, R0 = 1 + 1 = 2.
    np.testing.assert_allclose(returns.discounted_returns(REWARD, ENDED, 0.5), [2, 2, 0, 0], rtol=1e-6)


def test_gae_golden() -> None:
    # Discount 1/2, so delta_t = r_t + V_{t+1} / 2 - V_t with V_4 = 0:
    # delta = 1 + 0.5 - 0.5 = 1;  2 + 0.75 - 1 = 1.75;  3 + 1 - 1.5 = 2.5;  4 - 2 = 2.
    # A_t = delta_t + discount * lambda * A_{t+1} with lambda 1/2, a factor of 1/4:
    # A3 = 2; A2 = 2.5 + 0.5 = 3; A1 = 1.75 + 0.75 = 2.5; A0 = 1 + 0.625 = 1.625.
    np.testing.assert_allclose(returns.gae(REWARD, VALUE, FULL, 0.5, 0.5), [1.625, 2.5, 3, 2], rtol=1e-6)
    # Ended after the second step: delta1 = 2 - 1 = 1, delta0 = 1; A1 = 1, A0 = 1 + 1/4.
    np.testing.assert_allclose(returns.gae(REWARD, VALUE, ENDED, 0.5, 0.5), [1.25, 1, 0, 0], rtol=1e-6)


def test_gae_limits() -> None:
    # lambda 1 is return-to-go minus value, lambda 0 the one-step residual.
    discounted = returns.discounted_returns(REWARD, FULL, 0.5)
    np.testing.assert_allclose(returns.gae(REWARD, VALUE, FULL, 0.5, 1.0), discounted - VALUE, rtol=1e-6)
    np.testing.assert_allclose(returns.gae(REWARD, VALUE, FULL, 0.5, 0.0), [1, 1.75, 2.5, 2], rtol=1e-6)


def test_baseline_features_golden() -> None:
    obs = jnp.array([[0.0, 1.0], [2.0, -3.0], [20.0, -20.0]])
    # [o, o^2, t, t^2, t^3, 1] with t = step / 100 and o clipped to 10.
    expected = [
        [0, 1, 0, 1, 0, 0, 0, 1],
        [2, -3, 4, 9, 0.01, 1e-4, 1e-6, 1],
        [10, -10, 100, 100, 0.02, 4e-4, 8e-6, 1],
    ]
    np.testing.assert_allclose(returns.baseline_features(obs), expected, rtol=1e-6)


def ridge_by_lstsq(features: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same ridge regression in float64 as an augmented least-squares problem.

    Minimising |X w - y|^2 / n + ridge |w|^2 is lstsq on X stacked over sqrt(ridge n) I.
    """
    rows = mask.astype(bool)
    x, y = features[rows].astype(np.float64), target[rows].astype(np.float64)
    rms = np.sqrt((x**2).mean(0))
    x = x / np.where(rms > 1e-6, rms, 1)
    penalty = np.sqrt(returns.RIDGE * len(x)) * np.eye(x.shape[1])
    weights = np.linalg.lstsq(np.vstack([x, penalty]), np.append(y, np.zeros(len(penalty))), rcond=None)[0]
    prediction = np.zeros(target.shape)
    prediction[rows] = x @ weights
    return prediction


def test_linear_baseline_matches_lstsq() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 10, 5)) * np.array([1, 100, 0.01, 1, 1])
    target = features @ np.array([1, 0.02, 30, -1, 0]) + 0.3 * rng.normal(size=(6, 10))
    mask = (np.arange(10) < rng.integers(3, 11, size=(6, 1))).astype(np.float32)
    ours = returns.linear_baseline(*(jnp.asarray(x, jnp.float32) for x in (features, target, mask)))
    # float32 normal equations of a well-conditioned problem.
    np.testing.assert_allclose(ours, ridge_by_lstsq(features, target, mask), atol=2e-4)


@pytest.mark.parametrize("odd", ["duplicated", "constant", "zero", "all zero"])
def test_linear_baseline_survives_degenerate_columns(odd: str) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 4)).astype(np.float32)
    target = (2 * features[:, 0] + 1).astype(np.float32)
    features[:, 1] = {"duplicated": features[:, 0], "constant": 3.0, "zero": 0.0, "all zero": 0.0}[odd]
    if odd == "all zero":
        features[:] = 0
    mask = np.ones(50, np.float32)
    ours = np.asarray(returns.linear_baseline(*map(jnp.asarray, (features, target, mask))))
    assert np.all(np.isfinite(ours))
    np.testing.assert_allclose(ours, ridge_by_lstsq(features, target, mask), atol=5e-3)


def test_linear_baseline_of_thousands_of_dependent_samples() -> None:
    # A fast arm, as in Reacher: cosines and sines whose squares sum to 1, velocities beyond the clip. Summed
    # in one go, products lost more than the ridge in float32: errors of 4e-4 here, NaN in 3 % of tasks.
    rng = np.random.default_rng(0)
    speed = np.cumsum(10 * rng.normal(size=(8, 20, 200, 2)), axis=2)
    angle = np.cumsum(0.02 * speed, axis=2)
    elbow = angle.sum(-1)
    tip = 0.1 * np.stack([np.cos(elbow), np.sin(elbow)], axis=-1)
    obs = np.concatenate([np.cos(angle), np.sin(angle), speed, tip], axis=-1).astype(np.float32)
    reward = -np.square(rng.normal(size=(8, 20, 200))) - np.hypot(obs[..., 0], obs[..., 2] - 0.3)
    target = np.cumsum(reward[..., ::-1], axis=-1)[..., ::-1].astype(np.float32)
    mask = np.ones((8, 20, 200), np.float32)
    features = returns.baseline_features(jnp.asarray(obs))
    ours = jax.jit(jax.vmap(returns.linear_baseline))(features, jnp.asarray(target), jnp.asarray(mask))
    for task in range(8):
        exact = ridge_by_lstsq(np.asarray(features[task]), target[task], mask[task])
        np.testing.assert_allclose(ours[task], exact, atol=1.2e-4 * target.std())


def test_the_baseline_calls_no_lapack() -> None:
    # jaxlib's batched LAPACK calls wait for the pool they run on: two devices on two cores hang.
    fit = jax.jit(jax.vmap(returns.linear_baseline))
    batch = (jnp.ones((4, 10, 5)), jnp.ones((4, 10)), jnp.ones((4, 10)))
    assert "custom_call" not in fit.lower(*batch).as_text()


def test_linear_baseline_of_an_empty_mask_is_zero() -> None:
    ours = returns.linear_baseline(jnp.ones((5, 3)), jnp.ones(5), jnp.zeros(5))
    np.testing.assert_array_equal(ours, 0)


def test_normalise_advantages_golden() -> None:
    # Valid steps 1, 2, 3: mean 2, variance 2/3, so +-sqrt(3/2) = +-1.2247449; the 99 does not count.
    advantage, mask = jnp.array([1.0, 2.0, 3.0, 99.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    normalised = returns.normalise_advantages(advantage, mask)
    np.testing.assert_allclose(normalised, [-1.2247449, 0, 1.2247449, 0], rtol=1e-6)


def test_normalise_constant_advantages_is_finite() -> None:
    np.testing.assert_allclose(returns.normalise_advantages(jnp.full(4, 3.0), FULL), 0, atol=1e-6)


def test_masked_steps_change_nothing() -> None:
    trajectory = random_experience(3, (4, 6)).trajectory
    mask = np.asarray(trajectory.mask)
    assert 0 < mask.sum() < mask.size
    gone = mask == 0
    spoil = lambda x: jnp.where(gone.reshape(gone.shape + (1,) * (x.ndim - 2)), -777.0, x)  # noqa: E731
    garbage = jax.tree.map(spoil, trajectory)._replace(mask=trajectory.mask)
    clean, dirty = score(trajectory), score(garbage)
    assert_trees_equal(clean.advantage, dirty.advantage)
    np.testing.assert_array_equal(np.asarray(clean.advantage)[gone], 0)


def test_estimate_advantages_is_normalised_and_reads_perturbed_observations() -> None:
    trajectory = random_experience(4, (4, 6)).trajectory
    mask = np.asarray(trajectory.mask)
    experience = score(trajectory)
    advantage = np.asarray(experience.advantage)
    np.testing.assert_allclose(advantage.sum() / mask.sum(), 0, atol=1e-6)
    np.testing.assert_allclose((advantage**2).sum() / mask.sum(), 1, rtol=1e-5)
    blind = trajectory._replace(obs=trajectory.obs + 1)
    assert_trees_equal(experience.advantage, score(blind).advantage)


def test_a_given_spread_divides_instead_of_the_advantages_own() -> None:
    advantage, mask = jnp.array([1.0, 2.0, 3.0, 99.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(returns.normalise_advantages(advantage, mask, 4.0), [-0.25, 0, 0.25, 0])
    np.testing.assert_array_equal(
        returns.normalise_advantages(advantage, mask, 0.0), returns.normalise_advantages(advantage, mask)
    )
    trajectory = random_experience(4, (4, 6)).trajectory
    own, given = (
        returns.estimate_advantages(trajectory, discount=0.9, gae_lambda=0.8, spread=spread).advantage
        for spread in (0.0, 2.0)
    )
    ratio = (
        np.asarray(own)[np.asarray(trajectory.mask) > 0] / np.asarray(given)[np.asarray(trajectory.mask) > 0]
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
