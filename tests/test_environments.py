"""Environments on physics engines: names, sizes, observations, tasks, starts, rewards, endings."""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.adapters import from_model_file
from admrl_jax.envs.ant import AntDirConfig, AntGoalConfig, AntVelConfig, rotation_matrix
from admrl_jax.envs.base import BuiltInConfig, EnvConfig
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig, HalfCheetahVelConfig
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.envs.random_dynamics import HopperParamsConfig, Walker2dParamsConfig
from admrl_jax.envs.reacher import Reacher, ReacherConfig, fingertip
from admrl_jax.envs.registry import ENVS, make_env
from admrl_jax.simulators import SIMULATORS, SimState, SimulatorError
from admrl_jax.simulators.models import load_model
from benchmarks import parity
from benchmarks.common import BUILT_IN
from benchmarks.parity import Case, run_engine

ACTION_SIZES = {
    **{"navigation_2d": 2, "halfcheetah_dir": 6, "halfcheetah_vel": 6, "ant_vel": 8, "ant_dir": 8},
    **{"ant_goal": 8, "reacher": 2, "walker2d_params": 6, "hopper_params": 3},
}


def physics(config: EnvConfig) -> Any:
    """An environment with other numbers, on the C engine."""
    return make_env(config, simulator="mujoco", num_threads=1)


def draw(env: Any, count: int) -> Any:
    """Tasks `[count, ...]`."""
    keys = jax.random.split(jax.random.key(0), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(env.sample_task))(keys))


def state_of(env: PhysicsEnv, **changes: float) -> SimState:
    """The default pose at rest with some entries set: `qpos_2=0.5`."""
    arrays = {"qpos": np.array(env.simulator.qpos0), "qvel": np.zeros(env.simulator.nv)}
    for name, value in changes.items():
        field, index = name.split("_")
        arrays[field][int(index)] = value
    return SimState(*(jnp.asarray(x, jnp.float32) for x in arrays.values()), internal=())


# Sizes and names.


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_name_makes_an_environment(name: str) -> None:
    env, config = make_env(name, simulator="mujoco"), ENVS[name].config()
    assert config.name == name and isinstance(config, BuiltInConfig)
    assert (env.horizon, env.action_size) == (config.horizon, ACTION_SIZES[name])
    hash(env)
    if isinstance(env, PhysicsEnv):
        assert env.config == config and env.simulator.name == "mujoco"
        assert env.config_type is type(config)
    else:
        assert isinstance(config, NavigationConfig) and env == Navigation2D(config)
    assert make_env(dataclasses.replace(config, horizon=7), simulator="mujoco").horizon == 7


def test_which_engines_an_environment_runs_on() -> None:
    without_brax = ("mujoco", "mjx", "mjx-warp")
    for name in BUILT_IN:
        if name == "navigation_2d":
            expected = ()
        else:
            expected = SIMULATORS if name.startswith(("halfcheetah", "ant")) else without_brax
        assert ENVS[name].simulators == tuple(expected), name
    with pytest.raises(
        SimulatorError,
        match=r"^simulator: reacher does not run on 'brax-spring'; accepted: auto, mujoco, mjx, mjx-warp$",
    ):
        make_env("reacher", simulator="brax-spring")
    with pytest.raises(ConfigError, match=r"^env: no environment is built from EnvConfig$"):
        make_env(EnvConfig())


def test_numbers_that_no_environment_can_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^env\.frame_skip: 0 is not accepted; accepted: a whole number"):
        make_env(HalfCheetahDirConfig(frame_skip=0))
    with pytest.raises(ConfigError, match=r"^env\.horizon: 0 is not accepted; accepted: a whole number"):
        from_model_file(
            "swimmer.xml",
            frame_skip=4,
            horizon=0,
            sample_task=lambda key: (),
            reward=lambda state, control, new_state, task: jnp.zeros(()),
        )


SIZES = [
    (HalfCheetahDirConfig(), 20),
    (HalfCheetahVelConfig(torso_position=False), 17),
    (AntVelConfig(), 41),
    (AntDirConfig(observe_xy=False), 39),
    (AntGoalConfig(torso_frame=False), 29),
    (AntVelConfig(torso_frame=False, observe_xy=False), 27),
    (ReacherConfig(), 8),
    (ReacherConfig(visible_target=True), 12),
    (Walker2dParamsConfig(), 17),
    (HopperParamsConfig(), 11),
]


@pytest.mark.parametrize(("config", "size"), SIZES, ids=lambda x: getattr(x, "name", x))
def test_observations_are_as_long_as_they_say(config: EnvConfig, size: int) -> None:
    env = physics(config)
    task = jax.eval_shape(env.sample_task, jax.random.key(0))
    state, obs = jax.eval_shape(env.reset, jax.random.key(0), task)
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
    new_state, new = jax.eval_shape(env.step, state, action, task)
    assert env.obs_size == size
    assert obs.shape == new.obs.shape == (size,)
    assert new.reward.shape == new.terminated.shape == ()
    # Rollouts scan over steps: what goes in must come out.
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), new_state
    )


# What an environment observes.


def random_state(env: PhysicsEnv, seed: int) -> SimState:
    """Any positions and velocities."""
    rng = np.random.default_rng(seed)
    qpos, qvel = rng.normal(size=len(env.simulator.qpos0)), rng.normal(size=env.simulator.nv)
    return SimState(jnp.asarray(qpos, jnp.float32), jnp.asarray(qvel, jnp.float32), ())


def test_flags_leave_numbers_out_and_change_none() -> None:
    cheetah, short = (physics(HalfCheetahDirConfig(torso_position=flag)) for flag in (True, False))
    state, task = random_state(cheetah, 0), jnp.float32(1)
    np.testing.assert_array_equal(short.observe(state, task), cheetah.observe(state, task)[:17])

    ant = physics(AntVelConfig())
    state, full = random_state(ant, 1), np.asarray(ant.observe(random_state(ant, 1), task))
    # 15 positions, 14 velocities, 9 numbers of the rotation matrix, position of the torso.
    np.testing.assert_array_equal(full[:29], np.concatenate([state.qpos, state.qvel]))
    np.testing.assert_array_equal(full[38:], state.qpos[:3])
    for flags, expected in (
        ({"observe_xy": False}, full[2:]),
        ({"torso_frame": False}, full[:29]),
        ({"observe_xy": False, "torso_frame": False}, full[2:29]),
    ):
        np.testing.assert_array_equal(physics(AntVelConfig(**flags)).observe(state, task), expected)


def test_ants_rotation_matrix_is_mujocos() -> None:
    rng = np.random.default_rng(0)
    for quaternion in rng.normal(size=(20, 4)):
        expected, unit = np.zeros(9), quaternion.copy()
        mujoco.mju_normalize4(unit)
        mujoco.mju_quat2Mat(expected, unit)
        matrix = rotation_matrix(jnp.asarray(quaternion, jnp.float32))
        np.testing.assert_allclose(np.ravel(matrix), expected, atol=2e-6)


def test_reachers_fingertip_is_where_mujoco_puts_it() -> None:
    model = load_model(Reacher.model)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    for _ in range(20):
        data.qpos[:] = rng.uniform(-3, 3, model.nq)
        mujoco.mj_kinematics(model, data)
        state = SimState(jnp.asarray(data.qpos, jnp.float32), jnp.zeros(model.nv), ())
        np.testing.assert_allclose(fingertip(state), data.body("fingertip").xpos[:2], atol=2e-7)


def test_reacher_hides_its_target_unless_asked() -> None:
    hidden, visible = (physics(ReacherConfig(visible_target=flag)) for flag in (False, True))
    targets = (jnp.array([0.1, -0.05]), jnp.array([-0.2, 0.2]))
    (state, obs), (_, other) = (hidden.reset(jax.random.key(0), target) for target in targets)
    np.testing.assert_array_equal(obs, other)
    # The target's joints hold the task all the same: the picture is right.
    np.testing.assert_array_equal(state.qpos[2:], targets[0])
    seen = visible.observe(state, targets[0])
    np.testing.assert_array_equal(seen[:8], obs)
    np.testing.assert_array_equal(seen[8:10], targets[0])
    np.testing.assert_allclose(seen[10:], obs[6:8] - targets[0], rtol=1e-6)


# Tasks and starts.


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (HalfCheetahVelConfig(), 0.0, 2.0),
        (HalfCheetahVelConfig(min_velocity=-1.0, max_velocity=0.5), -1.0, 0.5),
        (AntVelConfig(), 0.0, 3.0),
        (AntVelConfig(max_velocity=1.5), 0.0, 1.5),
        (AntGoalConfig(), -3.0, 3.0),
        (ReacherConfig(), -0.2, 0.2),
        (ReacherConfig(target_range=0.1), -0.1, 0.1),
    ],
    ids=str,
)
def test_tasks_are_uniform_in_their_range(config: EnvConfig, low: float, high: float) -> None:
    env = physics(config)
    tasks, size = draw(env, 500), high - low
    assert tasks.shape == ((500, 2) if isinstance(config, AntGoalConfig | ReacherConfig) else (500,))
    assert np.all((low <= tasks) & (tasks <= high))
    # A coordinate's standard deviation is size / sqrt(12); the mean's is that over sqrt(500): 0.013 sizes.
    np.testing.assert_allclose(tasks.mean(0), (low + high) / 2, atol=0.05 * size)
    np.testing.assert_allclose(tasks.std(0), size / np.sqrt(12), rtol=0.1)


def test_directions_of_an_ant() -> None:
    tasks = draw(physics(AntDirConfig()), 64)
    assert {tuple(task) for task in tasks.tolist()} == {(1.0, 0.0), (-1.0, 0.0)}
    tasks = draw(physics(AntDirConfig(directions="circle")), 500)
    np.testing.assert_allclose(np.linalg.norm(tasks, axis=-1), 1, rtol=1e-6)
    # A coordinate's standard deviation is sqrt(1/2), its mean's 0.032; a quadrant's share is 1/4 +- 0.02.
    np.testing.assert_allclose(tasks.mean(0), 0, atol=0.1)
    quadrants = np.bincount((tasks[:, 0] > 0) + 2 * (tasks[:, 1] > 0), minlength=4) / 500
    np.testing.assert_allclose(quadrants, 0.25, atol=0.06)


def test_goals_on_a_disk_are_uniform_in_area() -> None:
    goals = draw(physics(AntGoalConfig(goal_shape="disk", goal_range=2.0)), 2000)
    radius = np.linalg.norm(goals, axis=-1)
    assert 1.95 < radius.max() <= 2.0 + 1e-6
    # Half of the area is within 2 / sqrt(2), a quarter within 1 (standard deviation of the share: 0.011).
    # Were the radius uniform, the shares would be 0.71 and 0.5.
    np.testing.assert_allclose(np.mean(radius < np.sqrt(2)), 0.5, atol=0.035)
    np.testing.assert_allclose(np.mean(radius < 1), 0.25, atol=0.035)
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.1)


STARTS = {
    # Half width on positions; then uniform velocities of that half width, or normal ones of that deviation.
    "halfcheetah_vel": (HalfCheetahVelConfig(), 0.1, "normal", 0.1),
    "ant_vel": (AntVelConfig(), 0.1, "normal", 0.1),
    "ant_dir": (AntDirConfig(reset_noise=0.02), 0.02, "normal", 0.02),
    "walker2d_params": (Walker2dParamsConfig(), 0.005, "uniform", 0.005),
    "hopper_params": (HopperParamsConfig(reset_noise=0.01), 0.01, "uniform", 0.01),
    "reacher": (ReacherConfig(), 0.1, "uniform", 0.005),
}


@pytest.mark.parametrize("name", STARTS)
def test_reset_noise(name: str) -> None:
    config, width, kind, speed = STARTS[name]
    env = physics(config)
    task = env.sample_task(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 400)
    state, obs = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, task)
    assert obs.shape == (400, env.obs_size)
    default = np.array(env.simulator.qpos0)
    qpos, qvel = np.asarray(state.qpos), np.asarray(state.qvel)
    if name == "reacher":
        np.testing.assert_array_equal(qpos[:, 2:], np.broadcast_to(task, (400, 2)))
        np.testing.assert_array_equal(qvel[:, 2:], 0)
        default, qpos, qvel = default[:2], qpos[:, :2], qvel[:, :2]
    noise = qpos - default
    assert np.abs(noise).max() <= width * (1 + 1e-4) + 1e-6
    np.testing.assert_allclose(noise.std(0), width / np.sqrt(3), rtol=0.15)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.15 * width)
    deviation = speed / np.sqrt(3) if kind == "uniform" else speed
    np.testing.assert_allclose(qvel.std(0), deviation, rtol=0.15)
    # Uniform velocities have an end, normal ones go beyond two deviations.
    assert (np.abs(qvel).max() <= speed) == (kind == "uniform")
    # No two numbers share their noise.
    correlation = np.corrcoef(np.concatenate([noise, qvel], axis=1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.3


# Rewards and endings.


@pytest.mark.parametrize(
    ("config", "task", "expected"),
    [
        # Over 0.05 s the root moves by (0.1, -0.2): velocity (2, -4) m/s. Eight controls of 0.5: 0.005 * 2.
        (AntVelConfig(), 1.5, 1 + 0.05 - 0.5 - 0.01),
        (AntVelConfig(task_bonus=0.0, alive_bonus=1.0, control_cost=0.5), 2.5, 1 - 0.5 - 1.0),
        (AntDirConfig(), [-1.0, 0.0], -2 + 0.05 - 0.01),
        # Along (0.6, -0.8): 1.2 + 3.2.
        (AntDirConfig(directions="circle", alive_bonus=0.0), [0.6, -0.8], 4.4 - 0.01),
        # From the new place (0.1, -0.2) to (3, 1): 2.9 + 1.2 along the axes.
        (AntGoalConfig(), [3.0, 1.0], 4 + 0.05 - 4.1 - 0.01),
        # HalfCheetah's six controls of 0.5: 0.05 * 1.5 = 0.075.
        (HalfCheetahDirConfig(), -1.0, -2 - 0.075),
        (HalfCheetahVelConfig(), 0.5, -1.5 - 0.075),
        (HalfCheetahVelConfig(control_cost=0.0), 3.0, -1.0),
    ],
    ids=str,
)
def test_rewards_by_hand(config: EnvConfig, task: Any, expected: float) -> None:
    env = physics(config)
    state, new = state_of(env), state_of(env, qpos_0=0.1, qpos_1=-0.2)
    ctrl = jnp.full(env.action_size, 0.5)
    reward = env.reward(state, 999 * ctrl, ctrl, new, jnp.asarray(task))
    np.testing.assert_allclose(reward, expected, rtol=1e-5)


def test_reacher_pays_for_the_raw_action() -> None:
    # Stretched along x, the fingertip is at (0.21, 0); the target (0.18, 0.04) is 0.05 away.
    env = physics(ReacherConfig())
    action, target = jnp.array([3.0, -1.0]), jnp.array([0.18, 0.04])
    reward = env.reward(state_of(env), action, jnp.clip(action, -1, 1), state_of(env), target)
    np.testing.assert_allclose(reward, -0.05 - 10, rtol=1e-6)


ANT, WALKER, HOPPER = AntVelConfig(), Walker2dParamsConfig(), HopperParamsConfig()
ENDS: list[tuple[EnvConfig, str, dict[float, bool]]] = [
    # An entry of the state, and whether the episode ends at some of its values.
    (ANT, "qpos_2", {0.19: True, 0.21: False, 0.99: False, 1.01: True}),
    (AntDirConfig(min_height=0.3, max_height=0.8), "qpos_2", {0.29: True, 0.31: False, 0.81: True}),
    (AntGoalConfig(ends_early=False), "qpos_2", {0.1: False, 1.5: False}),
    (WALKER, "qpos_1", {0.79: True, 0.81: False, 1.99: False, 2.01: True}),
    (WALKER, "qpos_2", {-1.01: True, -0.99: False, 0.99: False, 1.01: True}),
    (HOPPER, "qpos_1", {0.69: True, 0.71: False, 5.0: False}),
    (HOPPER, "qpos_2", {-0.21: True, -0.19: False, 0.19: False, 0.21: True}),
    (HOPPER, "qpos_5", {-101: True, -99: False, 99: False}),
    (HOPPER, "qvel_0", {99: False, 101: True, -101: True}),
    # Far along the track is no reason to end.
    *((config, "qpos_0", {150.0: False}) for config in (ANT, WALKER, HOPPER, HalfCheetahDirConfig())),
    (ReacherConfig(), "qvel_0", {500.0: False}),
]


@pytest.mark.parametrize(("config", "entry", "ends"), ENDS, ids=lambda x: getattr(x, "name", None))
def test_where_episodes_end(config: EnvConfig, entry: str, ends: dict[float, bool]) -> None:
    env = physics(config)
    for value, expected in ends.items():
        assert bool(env.ended(state_of(env, **{entry: value}))) == expected, value


def test_the_step_reports_the_end_of_the_new_state() -> None:
    env = parity.make_env("ant_vel", "mujoco")
    low = state_of(env, qpos_2=0.9, qvel_2=3.0)._replace(internal=jnp.zeros(env.simulator.nv))
    case = Case(np.float32(0), np.asarray(low.qpos), np.asarray(low.qvel), np.zeros((1, 8), np.float32))
    run = run_engine(env, case)
    # 0.9 m and 3 m/s up: 1.04 m after 0.05 s.
    assert run.ended[0] and run.qpos[0, 2] > 1.0
    np.testing.assert_array_equal(run.obs[0, :15], run.qpos[0])
