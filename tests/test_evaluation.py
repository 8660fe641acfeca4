"""Meta-test: shapes, the clean cell, pairing by key, and the do-nothing floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal, random_like, tiny_policy

from admrl_jax import attacks
from admrl_jax.attacks import Attack, Budget
from admrl_jax.config import MAMLConfig
from admrl_jax.env_config import NavigationConfig
from admrl_jax.envs import Navigation2D
from admrl_jax.evaluation import EvalResult, do_nothing_returns, evaluate

ENV = Navigation2D(NavigationConfig(horizon=4))
POLICY = tiny_policy()
TASKS = jnp.array([[0.4, 0.3], [-0.2, 0.1], [0.0, -0.5]])
CONFIG = MAMLConfig(num_trajectories=4, num_adapt_steps=2, task_block=0)


@pytest.fixture(scope="module")
def cells():
    """One compiled meta-test for every pair of radii, by attack."""

    @functools.cache
    def compiled(name: str):
        attack: Attack = {"none": attacks.no_attack(), "fgsm": attacks.fgsm(POLICY)}[name]

        def run(support_radius: jax.Array, query_radius: jax.Array) -> EvalResult:
            return evaluate(
                random_like(POLICY.init, 0),
                (),
                jax.random.key(0),
                TASKS,
                env=ENV,
                policy=POLICY,
                attack=attack,
                support_budget=Budget(support_radius),
                query_budget=Budget(query_radius),
                config=CONFIG,
            )

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


def test_radius_zero_equals_no_attack_bitwise(cells) -> None:
    assert_trees_equal(cells("none", 0, 0).returns, cells("fgsm", 0, 0).returns)


def test_do_nothing_returns_golden() -> None:
    # Four steps at distances 0.5, sqrt(0.05) and 0.5 from the goals.
    run = functools.partial(do_nothing_returns, env=ENV, num_trajectories=2)
    floor = jax.jit(run)(jax.random.key(0), TASKS)
    np.testing.assert_allclose(floor, -4 * np.array([[0.5, 0.5], [0.05**0.5] * 2, [0.5, 0.5]]), rtol=1e-6)
