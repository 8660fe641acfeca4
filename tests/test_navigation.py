"""2D navigation: one step by hand, termination, clipping, and the do-nothing floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.evaluation import do_nothing_returns

ENV = Navigation2D()


def test_sizes_and_reset() -> None:
    assert (ENV.obs_size, ENV.action_size, ENV.horizon) == (2, 2, 100)
    state, obs = ENV.reset(jax.random.key(0), jnp.array([0.3, 0.4]))
    np.testing.assert_array_equal(state, [0, 0])
    np.testing.assert_array_equal(obs, [0, 0])


@pytest.mark.parametrize(
    ("action", "position"),
    [
        ([0.5, -0.2], [0.05, -0.02]),  # divided by the action scale 10
        ([3.0, -50.0], [0.1, -0.1]),  # 0.3 and -5 are clipped to +-0.1 per axis
    ],
)
def test_moves_are_scaled_then_clipped(action: list[float], position: list[float]) -> None:
    state, new = ENV.step(jnp.zeros(2), jnp.array(action), jnp.array([0.3, 0.4]))
    np.testing.assert_allclose(state, position, rtol=1e-6)
    np.testing.assert_array_equal(new.obs, state)
    assert not new.terminated


def test_reward_is_the_distance_after_the_move() -> None:
    # From (0, 0.4) by (0.1, 0) to (0.1, 0.4); the goal (0.4, 0) is (0.3, -0.4) away: -0.5.
    _, new = ENV.step(jnp.array([0.0, 0.4]), jnp.array([1.0, 0.0]), jnp.array([0.4, 0.0]))
    np.testing.assert_allclose(new.reward, -0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("offset", "ends"), [([0.009, -0.009], True), ([0.009, 0.011], False), ([-0.011, 0.0], False)]
)
def test_ends_within_the_goal_radius_in_both_axes(offset: list[float], ends: bool) -> None:
    goal = jnp.array([0.2, -0.1])
    _, new = ENV.step(goal + jnp.array(offset), jnp.zeros(2), goal)
    assert bool(new.terminated) == ends


def test_config_reaches_the_dynamics() -> None:
    env = make_env(NavigationConfig(action_scale=1.0, max_move=0.3, goal_range=2.0))
    state, _ = env.step(jnp.zeros(2), jnp.array([0.2, 0.9]), jnp.ones(2))
    np.testing.assert_allclose(state, [0.2, 0.3], rtol=1e-6)
    goals = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(0), 500))
    assert 1.9 < np.abs(goals).max() <= 2.0


def test_do_nothing_return() -> None:
    # The mean distance of a uniform point of [-1/2, 1/2]^2 from the centre is
    # (sqrt(2) + asinh(1)) / 6 = 0.382598, so 100 steps cost 38.2598. Its second moment is 1/6, so the
    # return's standard deviation over goals is 100 * sqrt(1/6 - 0.146381) = 14.24. (Of the goals, 0.04 %
    # end the episode at once: 0.02 at most.)
    num_tasks = 4000
    tasks = jax.vmap(ENV.sample_task)(jax.random.split(jax.random.key(0), num_tasks))
    floor = jax.jit(lambda: do_nothing_returns(jax.random.key(1), tasks, env=ENV, num_trajectories=1))()
    assert floor.shape == (num_tasks, 1)
    assert abs(floor.mean() + 38.2598) < 3 * 14.24 / num_tasks**0.5 + 0.02
    # Exactly: 100 times the distance of each goal.
    distance = np.linalg.norm(tasks, axis=-1)
    far = np.abs(np.asarray(tasks)).max(-1) >= 0.01
    np.testing.assert_allclose(floor[far, 0], -100 * distance[far], rtol=1e-4)
