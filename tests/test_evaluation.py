"""Meta-test: shapes, the clean cell, pairing by key, and the do-nothing floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal, random_experience, random_like, tiny_policy

from admrl_jax.attacks.base import Victim, memoryless
from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.registry import make_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import MetaBatch
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.evaluation import (
    EvalResult,
    attacked_decisions,
    do_nothing_returns,
    evaluate,
    observation_units,
)
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.sampling import SamplingConfig, expose
from admrl_jax.training import Setup

ENV = Navigation2D(NavigationConfig(horizon=4))
POLICY = tiny_policy()
TASKS = jnp.array([[0.4, 0.3], [-0.2, 0.1], [0.0, -0.5]])
SETUP = Setup(ENV, POLICY, make_maml_trpo(POLICY), SamplingConfig(num_trajectories=4, num_adapt_steps=2))


@pytest.fixture(scope="module")
def cells():
    """One compiled meta-test for every pair of radii, by attack."""

    @functools.cache
    def compiled(name: str):
        attack = make_attack(name, Victim(POLICY, 2, 2))

        def run(support_radius: jax.Array, query_radius: jax.Array) -> EvalResult:
            exposure = expose(attack, (), Budget(support_radius), Budget(query_radius), num_tasks=3)
            params = random_like(POLICY.init, 0)
            return evaluate(params, jax.random.key(0), TASKS, exposure, setup=SETUP)

        return jax.jit(run)

    return lambda name, support, query: compiled(name)(jnp.float32(support), jnp.float32(query))


def test_shapes_and_the_four_cells(cells) -> None:
    # Support {clean, attacked} x query {clean, attacked}; the radii are arguments of one program.
    clean, query, support, both = (
        cells("fgsm", *radii) for radii in ((0, 0), (0, 0.5), (0.5, 0), (0.5, 0.5))
    )
    for result, size in ((clean, 0), (query, 0.5), (support, 0), (both, 0.5)):
        assert result.returns.shape == (3, 3, 4)  # tasks, stages of adaptation, episodes
        assert np.all(result.returns < 0)
        np.testing.assert_allclose(result.attack_size, size, rtol=1e-5)
        assert result.budget_excess == 0
    # The same key pairs the cells: until the last adaptation only the support budget matters.
    assert_trees_equal(clean.returns[:, :-1], query.returns[:, :-1])
    assert_trees_equal(support.returns[:, :-1], both.returns[:, :-1])
    assert np.any(clean.returns[:, 0] != support.returns[:, 0])
    assert np.any(clean.returns[:, -1] != query.returns[:, -1])


def test_radius_zero_equals_no_attack(cells) -> None:
    # Another program, in which the compiler may round otherwise.
    none, still = cells("none", 0, 0), cells("fgsm", 0, 0)
    np.testing.assert_allclose(none.returns, still.returns, rtol=1e-5)
    assert still.attack_size == 0


def test_do_nothing_returns_golden() -> None:
    # Four steps at distances 0.5, sqrt(0.05) and 0.5 from the goals.
    run = functools.partial(do_nothing_returns, env=ENV, num_trajectories=2)
    floor = jax.jit(run)(jax.random.key(0), TASKS)
    np.testing.assert_allclose(floor, -4 * np.array([[0.5, 0.5], [0.05**0.5] * 2, [0.5, 0.5]]), rtol=1e-6)


def test_observation_units_are_those_of_valid_steps() -> None:
    # True observations, not the perturbed ones; what hardly varies has scale 0, which keeps attacks off it.
    support, query = (
        random_experience(0, (3, 1, 2, 5), obs_size=3),
        random_experience(1, (3, 2, 5), obs_size=3),
    )
    support, query = (
        x._replace(trajectory=x.trajectory._replace(obs=x.trajectory.obs.at[..., 2].set(7.0)))
        for x in (support, query)
    )
    units = observation_units(MetaBatch(support, query, ()))
    taken = (support.trajectory, query.trajectory)
    valid = np.concatenate([np.asarray(x.obs)[np.asarray(x.mask) == 1] for x in taken])
    assert len(valid) < 60
    np.testing.assert_allclose(units.centre, valid.mean(0), atol=1e-5)
    np.testing.assert_allclose(units.scale, [*valid.std(0)[:2], 0], rtol=1e-5)


def test_one_attacked_decision_costs_what_it_does() -> None:
    # Heads for a point and does not adapt: a step to the wrong side is a detour.
    goal = jnp.array([0.4, 0.3])
    feedback = Policy(
        lambda key: goal, lambda params, obs: Gaussian(10 * (params - obs), jnp.full((2,), -9.0))
    )
    env = Navigation2D(NavigationConfig(horizon=4))
    learner = make_maml_trpo(feedback)._replace(
        policy_params=lambda meta_params: meta_params, adapt_step=lambda meta_params, params, batch: params
    )
    setup = Setup(env, feedback, learner, SamplingConfig(num_trajectories=16))
    beyond = memoryless(lambda params, key, obs, scene, budget: obs + budget.radius, no_attack().threat)

    def changes(radius: float) -> np.ndarray:
        key, tasks = jax.random.key(0), goal[None]
        return np.asarray(attacked_decisions(goal, key, tasks, beyond, (), Budget(radius), setup=setup))[0]

    # Shown a place beyond its goal it goes back. The sooner, the more it costs; all four steps matter.
    away = changes(10.0)
    assert away.shape == (16,) and np.all(away < 0) and len(set(away.round(2))) == 4
    assert np.all(away > -4 * 0.2 * 2**0.5), "a move is at most 0.1 in each direction"
    assert np.all(changes(0.0) == 0)
