"""Environments of other makers as task families: functions, Brax, model files; each in a compiled rollout."""

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import TimeStep
from admrl_jax.envs.adapters import FunctionEnv, from_brax, from_model_file
from admrl_jax.sampling import rollout
from admrl_jax.simulators import Model, SimState, SimulatorError
from admrl_jax.simulators.models import model_path


@functools.cache
def player(env: Any) -> Any:
    """Compiled: one episode of a policy that does not look; its parameters are mean and deviation."""
    policy = Policy(
        lambda key: (),
        lambda params, obs: Gaussian(
            *(jnp.full(env.action_size, x) for x in (params[0], jnp.log(params[1])))
        ),
    )
    run = functools.partial(rollout, env=env, policy=policy, attack=no_attack(), budget=Budget(0.0))
    return jax.jit(lambda params, key, task: run(params, (), key, task))


def play(env: Any, task: float, *, action: float = 0.0, std: float = 1.0) -> Any:
    """One episode in NumPy, a `Trajectory`."""
    params = (jnp.float32(action), jnp.float32(std))
    trajectory = player(env)(params, jax.random.key(0), jnp.float32(task))
    horizon = env.horizon
    assert trajectory.obs.shape == (horizon, env.obs_size)
    assert trajectory.action.shape == (horizon, env.action_size)
    assert trajectory.reward.shape == trajectory.mask.shape == (horizon,)
    return jax.tree.map(np.asarray, trajectory)


def draw_target(key: jax.Array) -> jax.Array:
    """A place on a line."""
    return jax.random.uniform(key, (), minval=-1.0, maxval=1.0)


# Pure functions.


def walker_on_a_line(horizon: int = 6) -> FunctionEnv:
    """Moves by the action, pays minus the distance to the task, ends beyond 1; the state is a dictionary."""

    def step(state: dict, action: jax.Array, task: jax.Array) -> tuple[dict, TimeStep]:
        state = {"x": state["x"] + action[0], "steps": state["steps"] + 1}
        obs = jnp.stack([state["x"], state["steps"].astype(jnp.float32)])
        return state, TimeStep(obs, -jnp.abs(state["x"] - task), jnp.abs(state["x"]) > 1)

    return FunctionEnv(
        obs_size=2,
        action_size=1,
        horizon=horizon,
        sample_task=draw_target,
        reset=lambda key, task: ({"x": jnp.zeros(()), "steps": jnp.zeros((), jnp.int32)}, jnp.zeros(2)),
        step=step,
    )


def test_functions_become_a_task_family() -> None:
    # Steps of exactly 0.4: at 0.4, 0.8, 1.2, where the episode ends; the task is at 0.5.
    trajectory = play(walker_on_a_line(), 0.5, action=0.4, std=1e-12)
    np.testing.assert_allclose(trajectory.reward, [-0.1, -0.3, -0.7, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(trajectory.obs[:, 0], [0, 0.4, 0.8, 1.2, 1.2, 1.2], atol=1e-6)
    np.testing.assert_array_equal(trajectory.obs[:, 1], [0, 1, 2, 3, 3, 3])


# Brax.


ACTION_SCALE = 2.0
PENDULUM_HORIZON = 60


@pytest.fixture(scope="module")
def pendulum() -> FunctionEnv:
    """Brax's cheapest environment; the task is where the cart should be."""
    from brax import envs as brax_envs

    return from_brax(
        brax_envs.get_environment("inverted_pendulum", backend="spring"),
        sample_task=draw_target,
        reward=lambda state, ctrl, new, task: -jnp.abs(new.obs[0] - task) - 10 * jnp.sum(ctrl) ** 2,
        horizon=PENDULUM_HORIZON,
        action_scale=ACTION_SCALE,
    )


def test_a_brax_environment_becomes_a_task_family(pendulum: FunctionEnv) -> None:
    assert (pendulum.obs_size, pendulum.action_size, pendulum.horizon) == (4, 1, PENDULUM_HORIZON)
    trajectory = play(pendulum, 0.7, action=1.0, std=1.5)
    assert np.all(np.isfinite(trajectory.obs))
    # The pole falls: Brax ends the episode beyond 0.2 rad, and the rest is masked and stands still.
    length = int(trajectory.mask.sum())
    assert 4 <= length < PENDULUM_HORIZON - 1
    np.testing.assert_array_equal(trajectory.mask, np.arange(PENDULUM_HORIZON) < length)
    assert np.all(np.abs(trajectory.obs[:length, 1]) <= 0.2) and abs(trajectory.obs[length, 1]) > 0.2
    assert np.all(trajectory.obs[length:] == trajectory.obs[length]) and not trajectory.reward[length:].any()
    # The reward is ours (Brax's own is 1), on controls that are scaled, then clipped to +-1.
    ctrl = np.clip(trajectory.action[:, 0] / ACTION_SCALE, -1, 1)
    assert np.any(np.abs(ctrl[:length]) == 1) and np.any(np.abs(ctrl[:length]) < 1)
    place = trajectory.obs[1 : length + 1, 0]
    expected = -np.abs(place - 0.7) - 10 * ctrl[:length] ** 2
    np.testing.assert_allclose(trajectory.reward[:length], expected, rtol=1e-5, atol=1e-6)


def test_brax_gets_the_control_and_not_the_raw_action(pendulum: FunctionEnv) -> None:
    # Beyond the clip, a larger raw action changes nothing; below it, it does.
    at_limit, beyond, half = (
        play(pendulum, 0.0, action=x * ACTION_SCALE, std=1e-9) for x in (1.0, 50.0, 0.5)
    )
    np.testing.assert_array_equal(at_limit.obs, beyond.obs)
    np.testing.assert_array_equal(at_limit.reward, beyond.reward)
    assert np.abs(at_limit.obs[1] - half.obs[1]).max() > 1e-3


def test_brax_wrappers_that_end_and_restart_episodes_are_taken_off(pendulum: FunctionEnv) -> None:
    from brax import envs as brax_envs
    from brax.envs.base import Wrapper

    create = functools.partial(brax_envs.create, "inverted_pendulum", backend="spring")
    settings: dict[str, Any] = {"sample_task": draw_target, "reward": lambda *args: jnp.zeros(())}
    wrapped = from_brax(create(episode_length=3), horizon=PENDULUM_HORIZON, **settings)
    plain, longer = play(pendulum, 0.7, action=1.0, std=1.5), play(wrapped, 0.7, action=4.0, std=1e-9)
    # It ends where the pole falls and stays there: not after three steps, and not at a new start.
    length = int(longer.mask.sum())
    assert 3 < length < PENDULUM_HORIZON - 1 and plain.obs.shape == longer.obs.shape
    assert abs(longer.obs[length, 1]) > 0.2 and np.all(longer.obs[length:] == longer.obs[length])
    for env, words in (
        (create(batch_size=2), "the wrapper VmapWrapper is not accepted"),
        (create(action_repeat=2), "action_repeat 2 is not accepted; accepted: 1"),
        (Wrapper(create()), "the wrapper AutoResetWrapper is not accepted; pass what it wraps"),
    ):
        with pytest.raises(SimulatorError, match=words):
            from_brax(env, **settings)


def test_brax_environments_with_other_observations_are_refused() -> None:
    class Reset(NamedTuple):
        obs: Any

    class Camera:
        def __init__(self, obs: Any):
            self.obs = obs

        def reset(self, key: jax.Array) -> Reset:
            return Reset(self.obs)

    for obs in ({"pixels": jnp.zeros(3)}, jnp.zeros((4, 4))):
        with pytest.raises(ConfigError, match=r"^env: observations of Camera are .*; accepted: float\[O\]$"):
            from_brax(Camera(obs), sample_task=draw_target, reward=lambda *args: jnp.zeros(()))


# Model files.


def swimmer(**changes: Any) -> Any:
    """Swimmer: the task is a direction, the reward its velocity in it less the square of its controls."""
    settings: dict[str, Any] = {
        "frame_skip": 4,
        "sample_task": lambda key: jax.random.rademacher(key, (), dtype=jnp.float32),
        "reward": lambda state, ctrl, new, task: (
            task * (new.qpos[0] - state.qpos[0]) / 0.04 - jnp.sum(jnp.square(ctrl))
        ),
        "horizon": 8,
        "action_scale": 2.0,
        "num_threads": 1,
    }
    path = changes.pop("path", "swimmer.xml")
    return from_model_file(path, **(settings | changes))


def test_a_model_file_becomes_a_task_family() -> None:
    env = swimmer()
    # Five joints: positions and velocities. Two motors, clipped to the file's +-1.
    assert (env.obs_size, env.action_size, env.horizon) == (10, 2, 8)
    np.testing.assert_allclose(env.simulator.dt, 0.04)
    assert set(np.asarray(jax.vmap(env.sample_task)(jax.random.split(jax.random.key(0), 16)))) == {-1.0, 1.0}
    forward, backward = (play(env, task, std=2.0) for task in (1, -1))
    np.testing.assert_array_equal(forward.mask, 1)
    # The task is in the reward alone.
    np.testing.assert_array_equal(forward.obs, backward.obs)
    ctrl = np.clip(forward.action / 2, -1, 1)
    assert np.any(np.abs(ctrl) == 1) and np.any(np.abs(ctrl) < 1)
    cost = np.sum(ctrl**2, axis=-1)
    velocity = np.diff(forward.obs[:, 0]) / 0.04
    for trajectory, task in ((forward, 1), (backward, -1)):
        expected = task * velocity - cost[:-1]
        np.testing.assert_allclose(trajectory.reward[:-1], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(velocity).max() > 0.01


def test_observation_ending_and_noise_can_be_given() -> None:
    env = swimmer(
        observe=lambda state, task: jnp.stack([state.qvel[3], task]),
        ended=lambda state: jnp.abs(state.qvel[3]) > 1.0,
        reset_noise=0.0,
    )
    trajectory = play(env, 1, action=2.0, std=1e-9)
    assert env.obs_size == 2
    # No noise: it starts at rest. Full thrust soon bends its joint faster than 1 rad/s: the end.
    speed, length = np.abs(trajectory.obs[:, 0]), int(trajectory.mask.sum())
    np.testing.assert_array_equal(trajectory.obs[0], [0, 1])
    assert 1 < length < env.horizon - 1
    assert np.all(speed[:length] <= 1) and np.all(speed[length:] == speed[length]) and speed[length] > 1
    # Without an ending of its own it never ends.
    assert play(swimmer(reset_noise=0.0), 1, action=2.0).mask.all()


def test_model_files_anywhere(tmp_path: Path) -> None:
    copied = tmp_path / "mine.xml"
    shutil.copy(model_path(Model("swimmer.xml")), copied)
    own, theirs = (play(swimmer(path=path), 1) for path in (copied, "swimmer.xml"))
    assert_trees_close(own, theirs, rtol=0)
    for missing in ("no_such_body.xml", tmp_path / "gone.xml"):
        with pytest.raises(SimulatorError, match=r"^model: there is no file /.*(no_such_body|gone)\.xml$"):
            swimmer(path=missing)
    with pytest.raises(
        SimulatorError, match=r"Brax has no body for swimmer.xml; accepted: auto, mujoco, mjx$"
    ):
        swimmer(simulator="brax-spring")


def test_rewards_of_model_files_see_engine_states() -> None:
    seen = []

    def reward(state: SimState, ctrl: jax.Array, new: SimState, task: jax.Array) -> jax.Array:
        seen.append((type(state), state.qvel.shape, ctrl.shape, type(new)))
        return new.qvel[0] * task

    env = swimmer(reward=reward, horizon=2)
    play(env, 1)
    assert set(seen) == {(SimState, (5,), (2,), SimState)}
