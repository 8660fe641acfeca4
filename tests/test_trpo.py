"""Fisher products against dense Hessians, and the promises of the line search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal, random_experience, random_like, tiny_policy
from jax.flatten_util import ravel_pytree

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.learners import maml, trpo
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo, predict_query
from admrl_jax.learners.trpo import Objective, TRPOConfig, TRPOInfo


def weighted_kl(old: Gaussian, new: Gaussian, group: tuple) -> jax.Array:
    """KL(old, new) `[]` of one group, whose last entry weighs its samples."""
    return jnp.sum(group[-1] * gaussian.kl(old, new))


def no_loss(new: Gaussian, old: Gaussian) -> jax.Array:
    """For tests of the divergence alone."""
    return jnp.zeros(())


def through_adaptation(policy: Policy, inner_lr: float):
    """`(params, group) -> Gaussian`: adapts to support data, then predicts on query data."""
    learner = make_maml_trpo(policy, MAMLTRPOConfig(inner_lr=inner_lr))
    return lambda params, group: predict_query(learner, policy, params, group[:2])


def predict_all(predict, params, data) -> Gaussian:
    """`[N, ...]`."""
    return jax.vmap(lambda group: predict(params, group))(data)


def dense_and_product(predict, params, data, tasks: TaskAxis = TaskAxis()) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian of KL(old, new) at new = old, dense and column by column through `linearise`."""
    objective = Objective(predict, no_loss, weighted_kl)

    @jax.jit
    def both(params):
        flat, unravel = ravel_pytree(params)
        old, _, product = trpo.linearise(params, data, objective, tasks)

        def divergence(v: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(weighted_kl)(old, predict_all(predict, unravel(v), data), data))

        hessian = jax.hessian(divergence)(flat)
        columns = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(flat.size))
        return hessian, columns

    hessian, columns = both(params)
    return np.asarray(hessian), np.asarray(columns)


def test_fisher_product_is_the_dense_kl_hessian(x64: None) -> None:
    policy = tiny_policy(hidden=(3,))
    params = random_like(policy.init, 0, dtype=jnp.float64)
    obs = jnp.asarray(np.random.default_rng(1).normal(size=(7, 2)))
    data = (obs, jnp.full(7, 1 / 7))
    hessian, product = dense_and_product(lambda params, group: policy.apply(params, group[0]), params, data)
    np.testing.assert_allclose(product, hessian, atol=1e-12)
    assert np.abs(hessian).max() > 0.1


@pytest.mark.parametrize(("num_adapt_steps", "block"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3)])
def test_fisher_product_through_adaptation(x64: None, num_adapt_steps: int, block: int) -> None:
    # At the old parameters the terms with second derivatives of "adapt, then predict" are multiplied by the
    # gradient of the KL in the outputs, which is zero: the Gauss-Newton product is the whole Hessian.
    policy = tiny_policy(hidden=(3,))
    params = random_like(policy.init, 0, dtype=jnp.float64)
    # Three tasks: a block of two leaves one over.
    support = random_experience(2, (3, num_adapt_steps, 3, 4), dtype=np.float64)
    query = random_experience(3, (3, 3, 4), dtype=np.float64)
    data = (support, query, maml.query_weights(query))
    predict = through_adaptation(policy, 0.3)
    hessian, product = dense_and_product(predict, params, data, TaskAxis(block))
    np.testing.assert_allclose(product, hessian, atol=1e-12)
    assert np.abs(hessian).max() > 0.1


def shift(params: jax.Array, group: tuple) -> Gaussian:
    """Gaussians whose means are the parameters and whose standard deviation is 1: Fisher = identity."""
    return Gaussian(params, jnp.zeros(2))


def update_shift(old: jax.Array, loss, **settings: float) -> tuple[jax.Array, TRPOInfo]:
    """One step of `shift` on one group of one sample of weight 1."""
    objective = Objective(shift, loss, weighted_kl)
    return trpo.trpo_update(old, (jnp.ones(1),), objective, TRPOConfig(**settings))


def test_update_golden() -> None:
    # F = I and a linear loss g.mean, g = (3, 4): the step is -sqrt(2 max_kl / (1 + damping)) g / |g|,
    # whose KL is max_kl / (1 + damping), within the bound at the first candidate.
    gradient = jnp.array([3.0, 4.0])
    old = jnp.array([1.0, -1.0])
    new, info = update_shift(old, lambda new, old: jnp.sum(new.mean * gradient), max_kl=0.02, cg_damping=1e-3)
    size = (2 * 0.02 / 1.001) ** 0.5
    np.testing.assert_allclose(new, old - size * gradient / 5, rtol=1e-5)
    np.testing.assert_allclose(info.kl, 0.02 / 1.001, rtol=1e-4)
    np.testing.assert_allclose(info.loss_before, -1.0, rtol=1e-6)
    np.testing.assert_allclose(info.loss_after, -1.0 - 5 * size, rtol=1e-5)
    np.testing.assert_allclose(info.gradient_norm, 5.0, rtol=1e-6)
    assert info.accepted == 1 and info.line_search_steps == 1 and info.skipped == 0
    assert info.cg_residual < 1e-4


def test_update_backtracks_until_the_loss_falls() -> None:
    # Loss |mean|^2 from 0.01 with a full step of sqrt(0.02) = 0.1414 > 2 * 0.01: only candidates shorter
    # than 0.02 lower it. 0.1414 * 0.5^k < 0.02 first at k = 3, the fourth candidate.
    old = jnp.array([0.01, 0.0])
    new, info = update_shift(old, lambda new, old: jnp.sum(new.mean**2), max_kl=0.01, backtrack_ratio=0.5)
    assert info.accepted == 1 and info.line_search_steps == 4
    np.testing.assert_allclose(new, [0.01 - 0.02**0.5 / 8, 0], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(info.loss_after, jnp.sum(new**2), rtol=1e-6)


def test_max_kl_can_be_vmapped() -> None:
    update = functools.partial(update_shift, jnp.zeros(2), lambda new, old: jnp.sum(new.mean))
    new, info = jax.vmap(lambda max_kl: update(max_kl=max_kl))(jnp.array([0.01, 0.04]))
    # The step grows with the square root of the bound.
    np.testing.assert_allclose(new[1], 2 * new[0], rtol=1e-5)
    assert np.all(info.kl <= np.array([0.01, 0.04]))


def deceptive(new: Gaussian, old: Gaussian) -> jax.Array:
    """A loss with a gradient that no step lowers: its value is a squared distance."""
    slope = jnp.sum(new.mean - old.mean)
    return jnp.sum(jax.lax.stop_gradient(new.mean - old.mean) ** 2) + slope - jax.lax.stop_gradient(slope)


@pytest.mark.parametrize(
    ("surrogate", "skipped"),
    [
        (lambda new, old: jnp.sum(new.mean) * jnp.nan, 1),
        (lambda new, old: jnp.sum(jnp.where(new.mean == old.mean, new.mean, jnp.nan * new.mean)), 1),
        (lambda new, old: jnp.sum(jnp.where(new.mean == old.mean, new.mean, -jnp.inf)), 1),
        (lambda new, old: jnp.sum(jnp.sqrt(jnp.abs(new.mean - old.mean))), 1),
        (lambda new, old: jnp.sum(1e30 * new.mean), 1),
        (deceptive, 0),
        (lambda new, old: 0 * jnp.sum(new.mean), 0),
    ],
    ids=[
        *("nan everywhere", "nan at candidates", "minus infinity at candidates", "infinite gradient"),
        *("gradient whose square overflows", "never lower", "flat"),
    ],
)
def test_update_returns_the_old_parameters_when_nothing_is_accepted(surrogate, skipped: int) -> None:
    old = jnp.array([0.5, -0.25])
    new, info = update_shift(old, surrogate)
    assert_trees_equal(new, old)
    assert info.accepted == 0 and info.kl == 0
    assert info.skipped == skipped
    assert info.line_search_steps == 15
    np.testing.assert_array_equal(info.loss_after, info.loss_before)


def test_update_through_adaptation_lowers_the_loss_within_the_bound() -> None:
    policy = tiny_policy()
    params = random_like(policy.init, 0)
    support, query = random_experience(1, (3, 1, 4, 5)), random_experience(2, (3, 4, 5))
    weights = maml.query_weights(query)
    data = (support, query, weights)
    predict = through_adaptation(policy, 0.1)
    surrogate = maml.surrogate_loss(query, weights)

    @jax.jit
    def update(params):
        objective = Objective(predict, surrogate, weighted_kl)
        new, info = trpo.trpo_update(params, data, objective, TRPOConfig(max_kl=0.01))
        before, after = predict_all(predict, params, data), predict_all(predict, new, data)
        kl = jnp.sum(jax.vmap(weighted_kl)(before, after, data))
        return new, info, kl, surrogate(after, before), surrogate(before, before)

    new, info, kl, after, before = update(params)
    assert info.accepted == 1 and 1 <= info.line_search_steps <= 15
    assert 0.002 < info.kl <= 0.01
    assert info.loss_after < info.loss_before
    np.testing.assert_allclose(info.kl, kl, rtol=1e-3)
    np.testing.assert_allclose(info.loss_after, after, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(info.loss_before, before, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(new) == jax.tree.structure(params)
