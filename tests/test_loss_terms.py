"""Loss terms through both learners, by the smoothness regulariser: its value, gradient, weights, shifts."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_no_leaf_is_zero,
    assert_trees_close,
    assert_trees_equal,
    finite_differences,
    random_experience,
    random_like,
    tiny_policy,
)
from jax.flatten_util import ravel_pytree

from admrl_jax.attacks.base import Victim
from admrl_jax.core import gaussian
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Params, flatten_steps
from admrl_jax.defences.registry import DEFENCES
from admrl_jax.defences.smooth import Shifted, SmoothConfig, smooth_term, worst_shift
from admrl_jax.learners.base import Learner, LearnerState
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo, outer_objective
from admrl_jax.learners.promp import ProMPConfig, make_promp
from admrl_jax.learners.trpo import TRPOConfig, linearise

POLICY = tiny_policy(hidden=(3,))
VICTIM = Victim(POLICY, 2, 2)
KEY = jax.random.key(7)
LEARNERS: dict[str, Callable[[], Learner]] = {
    "maml_trpo": lambda: make_maml_trpo(
        POLICY, MAMLTRPOConfig(inner_lr=0.3, trpo=TRPOConfig(cg_iterations=5, cg_damping=0.1))
    ),
    "promp": lambda: make_promp(POLICY, ProMPConfig(inner_lr=0.3, outer_lr=0.01, num_epochs=5)),
}


def start() -> Params:
    """Meta-parameters, in double precision."""
    return random_like(POLICY.init, 0, dtype=jnp.float64)


def learner_state(learner: Learner) -> LearnerState:
    """At those parameters, its optimiser in double precision too."""
    opt_state = jax.tree.map(
        lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, learner.init(KEY).opt_state
    )
    return LearnerState(start(), opt_state)


def meta_batch(learner: Learner) -> MetaBatch:
    """Random data of two tasks with the log densities of the policies that would have collected them."""

    def collected(params: Params, experience: Experience) -> Experience:
        taken = experience.trajectory
        log_prob = gaussian.log_prob(POLICY.apply(params, taken.perturbed_obs), taken.action)
        return experience._replace(trajectory=taken._replace(log_prob=log_prob))

    params = start()
    support = collected(params, random_experience(2, (2, 1, 3, 4), dtype=np.float64))
    adapted = jax.vmap(lambda s: learner.adapt(params, s))(support)
    query = jax.vmap(collected)(adapted, random_experience(3, (2, 3, 4), dtype=np.float64))
    return MetaBatch(support, query, adapted)


SIDES = ("support", "query")


def smoothness(
    learner: Learner,
    params: Params,
    batch: MetaBatch,
    shifts: dict[str, Shifted],
    *,
    holds_std: bool = True,
):
    """Mean over tasks of both KL divergences `[2]` at given shifts, task by task and step by step.

    With the standard deviations of the start, if they are held.
    """

    def here_and_there(old, now, obs, shift):
        std_of = old if holds_std else now
        return [now(x)._replace(log_std=std_of(x).log_std) for x in (obs, obs + shift)]

    return divergences(learner, params, batch, shifts, here_and_there)


def moved_there(learner: Learner, params: Params, batch: MetaBatch, shifts: dict[str, Shifted]):
    """The same of the policies at the start and at `params`, at shifted observations."""
    return divergences(
        learner, params, batch, shifts, lambda old, now, obs, shift: [old(obs + shift), now(obs + shift)]
    )


def divergences(learner, params, batch, shifts, pair) -> jax.Array:
    total = jnp.zeros(2)
    for task in range(2):
        pick = functools.partial(jax.tree.map, lambda x, task=task: x[task])
        adapted = learner.adapt(params, pick(batch.support))
        first = jax.tree.map(lambda x: x[0], pick(batch.support))
        sides = ((start(), params, first), (pick(batch.adapted_params), adapted, pick(batch.query)))
        for index, (side, (old, now, experience)) in enumerate(zip(SIDES, sides, strict=True)):
            taken = flatten_steps(experience).trajectory
            policies = (functools.partial(POLICY.apply, policy_params) for policy_params in (old, now))
            before, after = pair(*policies, taken.obs, shifts[side].shift[task])
            mean = jnp.sum(gaussian.kl(before, after) * taken.mask) / jnp.sum(taken.mask)
            total = total.at[index].add(mean / 2)
    return total


def test_some_episodes_are_shifted_as_if_they_were_all(x64: None) -> None:
    learner = LEARNERS["maml_trpo"]()
    batch = meta_batch(learner)
    task = jax.tree.map(lambda x: x[0], (batch.adapted_params, batch.support, batch.query))

    def shifted(num_episodes: int, take: int) -> dict[str, Shifted]:
        adapted, support, query = task
        support = jax.tree.map(lambda x: x[:, :take], support)
        query = jax.tree.map(lambda x: x[:take], query)
        term = smooth_term(VICTIM, SmoothConfig(num_episodes=num_episodes))
        return term.prepare(KEY, start(), adapted, support, query)

    # Of three episodes of four steps.
    assert_trees_equal(shifted(2, 3), shifted(0, 2))
    assert shifted(2, 3)["query"].obs.shape == (8, 2) and shifted(0, 3)["query"].obs.shape == (12, 2)
    np.testing.assert_allclose(jnp.sum(shifted(2, 3)["support"].weight), 1)
    assert_trees_equal(shifted(5, 3), shifted(0, 3))


@pytest.mark.parametrize(("is_bounded", "holds_std"), [(False, True), (True, False)])
def test_gradient_of_the_smoothness_term_through_the_adaptation(
    is_bounded: bool, holds_std: bool, x64: None
) -> None:
    learner = LEARNERS["maml_trpo"]()
    batch = jax.jit(lambda: meta_batch(learner))()
    config = SmoothConfig(
        query_weight=3, support_weight=2, radius=0.5, holds_std=holds_std, is_bounded=is_bounded
    )
    term = smooth_term(VICTIM, config)
    state = learner_state(learner)
    flat, unravel = ravel_pytree(start())

    @jax.jit
    def gradients():
        data, objective = outer_objective(learner, POLICY, state, KEY, batch, term, TaskAxis())
        plain, without = outer_objective(learner, POLICY, state, KEY, batch, None, TaskAxis())

        def pulled(data, objective):
            outputs, pull, product = linearise(start(), data, objective)
            value, cotangent = jax.value_and_grad(objective.loss)(outputs, outputs)
            return value, pull(cotangent), ravel_pytree(product(unravel(jnp.ones_like(flat))))[0]

        return pulled(data, objective), pulled(plain, without), data[3]

    (value, gradient, fisher), (plain_value, plain_gradient, plain_fisher), shifts = gradients()
    own = jax.tree.map(lambda a, b: a - b, gradient, plain_gradient)
    weights = jnp.array([2.0, 3.0])

    def loss(v: jax.Array) -> jax.Array:
        return weights @ smoothness(learner, unravel(v), batch, shifts, holds_std=holds_std)

    np.testing.assert_allclose(value - plain_value, loss(flat), rtol=1e-8)
    np.testing.assert_allclose(ravel_pytree(own)[0], finite_differences(loss, flat), atol=1e-7)
    # Through the adaptation the standard deviation has a gradient in any case.
    assert_no_leaf_is_zero(own)
    # The bound may also be on what the policy does at shifted observations.
    hessian = jax.hessian(lambda v: weights @ moved_there(learner, unravel(v), batch, shifts))(flat)
    wider = hessian @ jnp.ones_like(flat) if is_bounded else jnp.zeros_like(flat)
    np.testing.assert_allclose(fisher - plain_fisher, wider, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LEARNERS)
def test_weights_of_zero_change_nothing_and_large_ones_smooth(name: str, x64: None) -> None:
    learner = LEARNERS[name]()
    batch = jax.jit(lambda: meta_batch(learner))()
    state = learner_state(learner)

    @functools.partial(jax.jit, static_argnames="block")
    def update(weight: jax.Array, block: int = 0):
        config = SmoothConfig(query_weight=weight, support_weight=weight, radius=0.5)
        return learner.update(state, KEY, batch, loss_term=smooth_term(VICTIM, config), axis=TaskAxis(block))

    plain, _ = jax.jit(lambda: learner.update(state, KEY, batch))()
    zero, _ = update(0.0)
    assert_trees_close(zero.meta_params, plain.meta_params, rtol=1e-6, atol=1e-9)
    large, metrics = update(100.0)
    assert metrics["train/skipped"] == 0
    assert metrics["train/loss_after"] < metrics["train/loss_before"]
    blocked, _ = update(100.0, block=1)
    assert_trees_close(large.meta_params, blocked.meta_params, rtol=1e-5, atol=1e-7)

    @jax.jit
    def measure(params: Params) -> jax.Array:
        term = smooth_term(VICTIM, SmoothConfig(radius=0.5))
        shifts = outer_objective(learner, POLICY, state, KEY, batch, term, TaskAxis())[0][3]
        return smoothness(learner, params, batch, shifts)

    before, after = measure(state.meta_params), measure(large.meta_params)
    assert np.all(after < 0.98 * before)
    assert np.sum(after) < np.sum(measure(plain.meta_params))


def test_the_term_depends_on_true_observations_and_on_its_key(x64: None) -> None:
    learner = LEARNERS["maml_trpo"]()
    batch = jax.jit(lambda: meta_batch(learner))()
    term = smooth_term(VICTIM, SmoothConfig(radius=0.5))

    @jax.jit
    def shifts(key: jax.Array, query: Experience) -> dict[str, Shifted]:
        one = jax.tree.map(lambda x: x[0], (batch.adapted_params, batch.support, query))
        return term.prepare(key, start(), *one)

    query = batch.query
    blind = query._replace(
        trajectory=query.trajectory._replace(perturbed_obs=query.trajectory.perturbed_obs + 1)
    )
    assert_trees_close(shifts(KEY, query), shifts(KEY, blind), rtol=0)
    np.testing.assert_array_equal(shifts(KEY, query)["query"].obs, query.trajectory.obs[0].reshape(-1, 2))
    other = shifts(jax.random.key(8), query)
    for side in SIDES:
        # Random starts; many of them climb to the same side.
        assert np.any(np.abs(shifts(KEY, query)[side].shift - other[side].shift) > 1e-3)
        np.testing.assert_allclose(jnp.sum(other[side].weight), 1, rtol=1e-6)


def test_a_side_without_weight_is_left_out(x64: None) -> None:
    batch = jax.jit(lambda: meta_batch(LEARNERS["maml_trpo"]()))()
    one = jax.tree.map(lambda x: x[0], (batch.adapted_params, batch.support, batch.query))

    def found(**weights: float) -> tuple[dict[str, Shifted], jax.Array]:
        term = smooth_term(VICTIM, SmoothConfig(**weights, radius=0.5))
        shifts = term.prepare(KEY, start(), *one)
        return shifts, term.loss(term.predict(start(), one[0], shifts))

    both, total = found(support_weight=2.0, query_weight=3.0)
    parts = [found(support_weight=2.0, query_weight=0.0), found(support_weight=0.0, query_weight=3.0)]
    for side, (shifts, _) in zip(SIDES, parts, strict=True):
        assert_trees_equal(shifts, {side: both[side]})
    np.testing.assert_allclose(parts[0][1] + parts[1][1], total, rtol=1e-8)
    nothing = DEFENCES["smooth"].make(SmoothConfig(support_weight=0.0, query_weight=0.0), VICTIM)
    assert nothing.loss_term is None


def test_shifts_are_as_long_as_the_ball_allows_and_worse_than_random_ones() -> None:
    params = random_like(POLICY.init, 0)
    obs = jax.random.normal(jax.random.key(1), (200, 2))

    def divergence(shift: jax.Array) -> float:
        return float(jnp.mean(gaussian.kl(POLICY.apply(params, obs), POLICY.apply(params, obs + shift))))

    found = {}
    for steps in (1, 3):
        config = SmoothConfig(radius=0.3, ascent_steps=steps)
        shift = jax.jit(lambda config=config: worst_shift(VICTIM, params, KEY, obs, config))()
        assert np.linalg.norm(shift, axis=-1).max() <= 0.3 * (1 + 1e-5)
        found[steps] = divergence(shift)
    random = jax.random.normal(jax.random.key(2), obs.shape)
    random = 0.3 * random / jnp.linalg.norm(random, axis=-1, keepdims=True)
    assert found[3] > found[1] > 1.2 * divergence(random)


def test_nothing_is_shifted_that_no_attack_can_move() -> None:
    obs, half = jax.random.normal(jax.random.key(1), (20, 2)), VICTIM._replace(attackable=(1.0, 0.0))
    shift = worst_shift(half, random_like(POLICY.init, 0), KEY, obs, SmoothConfig(radius=0.3))
    np.testing.assert_allclose(jnp.abs(shift[:, 0]), 0.3, rtol=1e-5)
    np.testing.assert_array_equal(shift[:, 1], 0)
