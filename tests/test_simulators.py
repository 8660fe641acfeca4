"""HalfCheetah's engines: parity with each other and with Gymnasium, batching, threads and errors."""

import concurrent.futures
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import EngineRun, ParityCase

from admrl_jax import envs
from admrl_jax.config import ConfigError, HalfCheetahDirConfig
from admrl_jax.envs import HalfCheetahDir
from admrl_jax.simulators import SimState, SimulatorError, make_simulator
from admrl_jax.simulators.models import gymnasium_model
from admrl_jax.simulators.mujoco import HostEngine

TOLERANCES = {
    "mujoco": {"qpos": 3e-5, "qvel": 7e-4, "obs": 7e-4, "reward": 5e-5},
    "mjx": {"qpos": 6e-4, "qvel": 1.3e-2, "obs": 1.3e-2, "reward": 9e-4},
}
"""Largest difference from Gymnasium over 20 control steps, about five times what was measured.

Gymnasium keeps its state in double precision and warm-starts its contact solver. `mujoco` computes in double
precision as well, but its state passes through float32 between control steps (relative errors of 6e-8, which
contacts amplify) and every control step starts its solver cold: measured 6e-6 in positions, 1.3e-4 in
velocities. `mjx` computes in float32 throughout: measured 1.1e-4 and 2.5e-3.
"""

FIRST_STEP = 4e-6
"""Largest difference of anything after one control step, where nothing has been amplified; measured 8e-7."""


@pytest.fixture(scope="module")
def gymnasium_run(parity_case: ParityCase) -> EngineRun:
    """The same 20 control steps in Gymnasium, with the task's reward: direction +1, control cost 0.05."""
    env: Any = gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05).unwrapped
    env.reset(seed=0)
    env.set_state(parity_case.qpos.astype(np.float64), parity_case.qvel.astype(np.float64))
    records = []
    for action in parity_case.action:
        obs, reward, terminated, _, _ = env.step(np.clip(action.astype(np.float64) / 10, -1, 1))
        assert not terminated
        # Gymnasium's body positions lag the state by one substep; kinematics brings them up to date.
        mujoco.mj_kinematics(env.model, env.data)
        torso = env.data.body("torso").xpos.copy()
        records.append((np.append(obs, torso), env.data.qpos.copy(), env.data.qvel.copy(), reward))
    env.close()
    return EngineRun(*(np.array(x) for x in zip(*records, strict=True)))


@pytest.mark.parametrize("engine", ["mujoco", "mjx"])
def test_engines_agree_with_gymnasium_step_by_step(
    engine: str, gymnasium_run: EngineRun, request: pytest.FixtureRequest
) -> None:
    run: EngineRun = request.getfixturevalue(f"{engine}_run")
    assert run.obs.shape == (20, 20)
    assert np.abs(gymnasium_run.qpos[:, 0]).max() > 0.05, "the case must move"
    for name, a, b in zip(EngineRun._fields, run, gymnasium_run, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCES[engine][name], err_msg=name)
        np.testing.assert_allclose(a[0], b[0], rtol=0, atol=FIRST_STEP, err_msg=name)


def test_engines_agree_with_each_other(mujoco_run: EngineRun, mjx_run: EngineRun) -> None:
    for name, a, b in zip(EngineRun._fields, mujoco_run, mjx_run, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCES["mjx"][name], err_msg=name)


def random_batch(seed: int, *lead: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random `(qpos, qvel, ctrl)` with leading axes."""
    rng = np.random.default_rng(seed)
    draw = lambda size: jnp.asarray(0.3 * rng.normal(size=(*lead, size)), jnp.float32)  # noqa: E731
    return draw(9), draw(9), draw(6)


def stepper(simulator: Any):
    """One control step from positions, velocities and controls."""

    def step(qpos: jax.Array, qvel: jax.Array, ctrl: jax.Array) -> SimState:
        return simulator.step(simulator.init(qpos, qvel), ctrl)

    return step


def test_batches_equal_single_calls_bitwise(cheetah_simulators: dict[int, Any]) -> None:
    step = stepper(cheetah_simulators[1])
    data = random_batch(0, 2, 3)
    nested = jax.jit(jax.vmap(jax.vmap(step)))(*data)
    assert nested.qpos.shape == (2, 3, 9) and nested.qvel.shape == (2, 3, 9)
    single = jax.jit(step)
    for i, j in np.ndindex(2, 3):
        alone = single(*(x[i, j] for x in data))
        np.testing.assert_array_equal(nested.qpos[i, j], alone.qpos)
        np.testing.assert_array_equal(nested.qvel[i, j], alone.qvel)


def test_unbatched_controls_are_broadcast(cheetah_simulators: dict[int, Any]) -> None:
    step = stepper(cheetah_simulators[1])
    qpos, qvel, ctrl = random_batch(1, 3)
    shared = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(qpos, qvel, ctrl[0])
    repeated = jax.jit(jax.vmap(step))(qpos, qvel, jnp.broadcast_to(ctrl[0], ctrl.shape))
    np.testing.assert_array_equal(shared.qpos, repeated.qpos)


def test_number_of_threads_changes_no_bit(cheetah_simulators: dict[int, Any]) -> None:
    data = random_batch(2, 50)
    one, two = (jax.jit(jax.vmap(stepper(cheetah_simulators[n])))(*data) for n in (1, 2))
    np.testing.assert_array_equal(one.qpos, two.qpos)
    np.testing.assert_array_equal(one.qvel, two.qvel)


def test_concurrent_calls_agree_with_calls_in_turn() -> None:
    model = mujoco.MjModel.from_xml_path(str(gymnasium_model("half_cheetah.xml")))
    engine = HostEngine(model, frame_skip=5, num_threads=2)
    batches = [tuple(map(np.asarray, random_batch(seed, 4 + seed % 3))) for seed in range(24)]

    def step(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        qpos, qvel, ctrl = batch
        return engine.step(qpos, qvel, np.zeros_like(qvel), ctrl)

    in_turn = [step(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(step, batches))
    for expected, got in zip(in_turn, together, strict=True):
        np.testing.assert_array_equal(expected[0], got[0])
        np.testing.assert_array_equal(expected[1], got[1])


@pytest.mark.parametrize("broken", [np.nan, 1e12], ids=["nan", "huge"])
def test_an_unstable_state_does_not_come_back_finite(
    broken: float, cheetah_simulators: dict[int, Any]
) -> None:
    qpos, qvel, ctrl = random_batch(3, 2)
    new = jax.jit(jax.vmap(stepper(cheetah_simulators[1])))(qpos, qvel.at[0, 4].set(broken), ctrl)
    assert np.all(np.isfinite(new.qpos[1])), "the neighbour is not harmed"
    assert not np.all(np.isfinite(new.qpos[0]))


def test_halfcheetah_observation_and_reward(mujoco_run: EngineRun, parity_case: ParityCase) -> None:
    # Observation: positions without the root's x, velocities, torso (x, 0, z), z = root z + 0.7.
    np.testing.assert_array_equal(mujoco_run.obs[:, :8], mujoco_run.qpos[:, 1:])
    np.testing.assert_array_equal(mujoco_run.obs[:, 8:17], mujoco_run.qvel)
    np.testing.assert_array_equal(mujoco_run.obs[:, 17], mujoco_run.qpos[:, 0])
    np.testing.assert_array_equal(mujoco_run.obs[:, 18], 0)
    np.testing.assert_allclose(mujoco_run.obs[:, 19], mujoco_run.qpos[:, 1] + 0.7, rtol=1e-6)
    # Reward: velocity over 0.05 s less 0.05 * sum of squared controls, after scaling and clipping.
    x = np.append(parity_case.qpos[0], mujoco_run.qpos[:, 0])
    ctrl = np.clip(parity_case.action / 10, -1, 1)
    expected = np.diff(x) / 0.05 - 0.05 * (ctrl**2).sum(-1)
    np.testing.assert_allclose(mujoco_run.reward, expected, atol=1e-5)


def test_halfcheetah_tasks_and_reset(cheetah_simulators: dict[int, Any]) -> None:
    env = HalfCheetahDir(cheetah_simulators[1])
    assert (env.obs_size, env.action_size, env.horizon) == (20, 6, 100)
    keys = jax.random.split(jax.random.key(0), 64)
    tasks = np.asarray(jax.jit(jax.vmap(env.sample_task))(keys))
    assert set(tasks) == {-1.0, 1.0}
    state, obs = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, 1.0)
    assert obs.shape == (64, 20)
    # Uniform in +-0.1 around the default pose; normal velocities of standard deviation 0.1.
    assert 0.09 < np.abs(state.qpos).max() <= 0.1
    np.testing.assert_allclose(np.std(state.qvel), 0.1, rtol=0.15)


def test_direction_turns_the_reward(cheetah_simulators: dict[int, Any]) -> None:
    env = HalfCheetahDir(cheetah_simulators[1], HalfCheetahDirConfig(control_cost=0.0))
    qpos, qvel, _ = random_batch(4)
    step = jax.jit(lambda task: env.step(SimState(qpos, qvel, jnp.zeros_like(qvel)), jnp.zeros(6), task)[1])
    forward, backward = step(1.0), step(-1.0)
    assert forward.reward == -backward.reward != 0
    assert not forward.terminated


def test_wrong_names_are_told_what_is_accepted() -> None:
    with pytest.raises(ConfigError, match=r"env: 'walker'.*accepted: navigation_2d, halfcheetah_dir"):
        envs.make("walker")
    with pytest.raises(SimulatorError, match=r"simulator: 'bullet'.*accepted: auto, mujoco, mjx"):
        envs.make("halfcheetah_dir", simulator="bullet")


def test_auto_takes_the_host_engine_on_a_cpu_and_engines_are_shared() -> None:
    path = gymnasium_model("half_cheetah.xml")
    if jax.default_backend() == "cpu":
        assert make_simulator("auto", path, 5, 1).name == "mujoco"
    assert make_simulator("mujoco", path, 5, 1) is make_simulator("mujoco", path, 5, 1)
