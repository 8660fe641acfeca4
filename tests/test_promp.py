"""ProMP: its inner step beside MAML's, its clipped surrogate by hand, and what its Adam steps promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_no_leaf_is_zero,
    assert_trees_close,
    assert_trees_equal,
    random_experience,
    random_like,
    tiny_policy,
)

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.types import Experience, MetaBatch, Params
from admrl_jax.learners.base import Learner, LearnerState
from admrl_jax.learners.maml import query_weights, surrogate_loss
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo, predict_query
from admrl_jax.learners.promp import ProMPConfig, clipped_loss, make_promp

POLICY = tiny_policy(hidden=(3,))
CONFIG = ProMPConfig(inner_lr=0.1, outer_lr=0.01, num_epochs=4)


def collected(params: Params, experience: Experience) -> Experience:
    """With the log densities of the policy that took its actions."""
    taken = experience.trajectory
    log_prob = gaussian.log_prob(POLICY.apply(params, taken.perturbed_obs), taken.action)
    return experience._replace(trajectory=taken._replace(log_prob=log_prob))


def meta_batch(learner: Learner, params: Params) -> MetaBatch:
    """Random data of three tasks, as if the policy before and after adaptation had collected them."""
    support = collected(params, random_experience(2, (3, 1, 4, 5)))
    adapted = jax.vmap(lambda s: learner.adapt(params, s))(support)
    query = jax.vmap(collected)(adapted, random_experience(3, (3, 4, 5)))
    return MetaBatch(support, query, adapted)


@pytest.fixture(scope="module")
def run():
    """One compiled update for any batch and KL weight, from one start."""

    @jax.jit
    def update(state: LearnerState, batch: MetaBatch, kl_weight: jax.Array):
        config = ProMPConfig(inner_lr=0.1, outer_lr=0.01, num_epochs=4, kl_weight=kl_weight)
        return make_promp(POLICY, config).update(state, jax.random.key(0), batch)

    learner = make_promp(POLICY, CONFIG)
    state = learner.init(jax.random.key(0)).replace(meta_params=random_like(POLICY.init, 0))
    batch = jax.jit(lambda params: meta_batch(learner, params))(state.meta_params)
    default = CONFIG.kl_weight
    return learner, state, batch, lambda s, b, w=default: update(s, b, jnp.float32(w))


def test_the_inner_step_is_mamls_at_the_behaviour_policy_but_not_its_derivative(x64: None) -> None:
    params = random_like(POLICY.init, 0, dtype=jnp.float64)
    experience = collected(params, random_experience(1, (3, 4), dtype=np.float64))
    promp = make_promp(POLICY, ProMPConfig(inner_lr=0.3))
    maml = make_maml_trpo(POLICY, MAMLTRPOConfig(inner_lr=0.3))

    def adapted(learner: Learner, params: Params) -> Params:
        return learner.adapt_step(params, params, experience)

    ours, theirs = (jax.jit(functools.partial(adapted, x))(params) for x in (promp, maml))
    assert_trees_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert_no_leaf_is_zero(jax.tree.map(lambda a, b: a - b, ours, params))
    # Through the step they differ: the ratio's second derivative keeps the square of the score, which the
    # plain score function leaves out.
    size = lambda learner, params: sum(jnp.sum(x**2) for x in jax.tree.leaves(adapted(learner, params)))  # noqa: E731
    through = [jax.jit(jax.grad(functools.partial(size, x)))(params) for x in (promp, maml)]
    differs = jax.tree.map(lambda a, b: np.abs(a - b).max(), *through)
    assert min(jax.tree.leaves(differs)) > 1e-3


def test_clipped_loss_golden() -> None:
    # Ratios 1, 2, 1/2, 2, 1/2 with a clip of 0.2; the learner earns min(ratio A, clip(ratio) A):
    #   1,  1: 1;   2,  1: min(2, 1.2) = 1.2;   1/2, 1: min(0.5, 0.8) = 0.5
    #   2, -1: min(-2, -1.2) = -2;   1/2, -1: min(-0.5, -0.8) = -0.8.
    query = random_experience(0, (1, 1, 5), action_size=1)
    new = Gaussian(jnp.zeros((1, 5, 1)), jnp.zeros((1, 1, 1)))
    action = jnp.zeros((1, 1, 5, 1))
    log_prob = gaussian.log_prob(Gaussian(action, jnp.zeros(1)), action)
    ratio = jnp.array([[[1.0, 2.0, 0.5, 2.0, 0.5]]])
    query = Experience(
        query.trajectory._replace(action=action, log_prob=log_prob - jnp.log(ratio)),
        jnp.array([[[1.0, 1.0, 1.0, -1.0, -1.0]]]),
    )
    weights = jnp.full((1, 5), 0.2)
    loss = clipped_loss(new, query, weights, 0.2)
    np.testing.assert_allclose(loss, -(1 + 1.2 + 0.5 - 2 - 0.8) / 5, rtol=1e-5)


def surrogate_return(learner: Learner, params: Params, batch: MetaBatch) -> jax.Array:
    """Unclipped surrogate of the outer objective: what a step should raise."""
    predict = functools.partial(predict_query, learner, POLICY)
    new = jax.vmap(lambda *task: predict(params, task))(batch.support, batch.query)
    obs = batch.query.trajectory.perturbed_obs
    old = jax.vmap(POLICY.apply)(batch.adapted_params, obs.reshape(3, -1, 2))
    old = old._replace(log_std=old.log_std[:, None])
    return -surrogate_loss(batch.query, query_weights(batch.query))(new, old)


def test_the_loss_after_an_update_is_that_of_the_new_policy(run) -> None:
    _, state, batch, update = run
    new, metrics = update(state, batch, 0.0)
    _, again = update(new, batch, 0.0)
    np.testing.assert_allclose(metrics["train/loss_after"], again["train/loss_before"], rtol=1e-5)


def test_an_update_raises_the_surrogate_return_and_moves_adam(run) -> None:
    learner, state, batch, update = run
    new, metrics = update(state, batch)
    before, after = (
        jax.jit(functools.partial(surrogate_return, learner))(s.meta_params, batch) for s in (state, new)
    )
    assert after > before + 1e-3
    assert metrics["train/loss_after"] < metrics["train/loss_before"] - 1e-3
    # At the policies that collected the data every ratio is 1 and the KL divergence 0.
    np.testing.assert_allclose(metrics["train/loss_before"], -before, rtol=1e-4, atol=1e-6)
    assert set(metrics) == {
        f"train/{name}" for name in ("loss_before", "loss_after", "gradient_norm", "skipped", "std")
    }
    assert metrics["train/skipped"] == 0 and metrics["train/gradient_norm"] > 0
    assert_no_leaf_is_zero(jax.tree.map(lambda a, b: a - b, new.meta_params, state.meta_params))
    # Adam's moments stay in the state from batch to batch.
    assert new.opt_state[0].count == CONFIG.num_epochs
    assert_no_leaf_is_zero(new.opt_state[0].mu)
    onwards, _ = update(new, batch)
    afresh, _ = update(new.replace(opt_state=state.opt_state), batch)
    assert onwards.opt_state[0].count == 2 * CONFIG.num_epochs
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), onwards.meta_params, afresh.meta_params)
    assert all(jax.tree.leaves(differs))


def test_a_larger_kl_weight_keeps_the_policy_nearer(run) -> None:
    _, state, batch, update = run
    obs = batch.support.trajectory.perturbed_obs

    def moved(weight: float) -> float:
        new, _ = update(state, batch, weight)
        divergence = gaussian.kl(POLICY.apply(state.meta_params, obs), POLICY.apply(new.meta_params, obs))
        return float(divergence.mean())

    assert moved(100.0) < 0.7 * moved(0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_not_finite_change_nothing(bad: float, run) -> None:
    _, state, batch, update = run
    advantage = batch.query.advantage.at[1, 0, 0].set(bad)
    mask = batch.query.trajectory.mask.at[1, 0, 0].set(1.0)
    query = Experience(batch.query.trajectory._replace(mask=mask), advantage)
    new, metrics = update(state, batch._replace(query=query))
    assert_trees_equal(new, state)
    assert metrics["train/skipped"] == 1
