"""Engines: agreement, batching, threads, unstable states, Brax's dynamics, and errors."""

import concurrent.futures
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ParityFactory
from helpers import engine_step

from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirConfig
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.envs.registry import make_env
from admrl_jax.simulators import Model, ModelParams, SimState, SimulatorError, make_simulator
from admrl_jax.simulators.models import load_model
from admrl_jax.simulators.mujoco import HostEngine
from benchmarks.parity import differences


def test_engines_agree_with_each_other(parity: ParityFactory) -> None:
    # How far each is from Gymnasium, and why, is in test_parity.py.
    tolerances = {"qpos": 3e-3, "qvel": 9e-2, "obs": 9e-2, "reward": 1.4e-2, "ended": 0}
    mujoco, mjx = (parity("halfcheetah_dir", engine).run for engine in ("mujoco", "mjx"))
    for name, difference in differences(mujoco, mjx).items():
        assert difference <= tolerances[name], name


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


@pytest.mark.parametrize("engine", ["mjx", "brax-spring"])
def test_physics_is_multiplied_in_float32(engine: str) -> None:
    # On a GPU, JAX's own default would round the factors to ten bits. A CPU knows one way only.
    simulator = make_simulator(engine, HalfCheetahDir.model, 5)
    step = stepper(simulator)
    shapes = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in (9, 9, 6)]
    with jax.default_matmul_precision("bfloat16"):
        program = jax.jit(step).lower(*shapes).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


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
    engine = HostEngine(load_model(HalfCheetahDir.model), frame_skip=5, num_threads=2)
    batches = [tuple(map(np.asarray, random_batch(seed, 4 + seed % 3))) for seed in range(24)]

    def step(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        qpos, qvel, ctrl = batch
        return engine_step(engine, qpos, qvel, np.zeros_like(qvel), ctrl)

    in_turn = [step(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(step, batches))
    for expected, got in zip(in_turn, together, strict=True):
        np.testing.assert_array_equal(expected[0], got[0])
        np.testing.assert_array_equal(expected[1], got[1])


def test_ended_bodies_stay_as_they_are_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HostEngine(load_model(HalfCheetahDir.model), frame_skip=5, num_threads=2)
    qpos, qvel, ctrl = map(np.array, random_batch(5, 6))
    batch = (qpos, qvel, np.ones_like(qvel), ctrl)
    everyone = engine_step(engine, *batch)
    stepped = []
    monkeypatch.setattr(
        engine,
        "_advance",
        lambda models, *rest, step=engine._advance: (stepped.append(len(models)), step(models, *rest)),
    )
    ended = np.array([False, True, False, False, True, False])
    nobody = engine_step(engine, *batch, ended=np.ones(6, bool))
    batch[0][2] = np.nan
    some = engine_step(engine, *batch, ended=ended)
    for before, after, full, still in zip(batch, some, everyone, nobody, strict=False):
        np.testing.assert_array_equal(after[[0, 3, 5]], full[[0, 3, 5]])
        np.testing.assert_array_equal(after[ended], before[ended])
        assert np.isnan(after[2]).all()
        np.testing.assert_array_equal(np.delete(still, 2, 0), np.delete(before, 2, 0))
    assert stepped == [3]


@pytest.mark.parametrize("broken", [np.nan, 1e12], ids=["nan", "huge"])
@pytest.mark.parametrize("where", ["velocity", "control"])
def test_an_unstable_state_does_not_come_back_finite(
    broken: float,
    where: str,
    cheetah_simulators: dict[int, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    qpos, qvel, ctrl = random_batch(3, 2)
    if where == "velocity":
        qvel = qvel.at[0, 4].set(broken)
    else:
        ctrl = ctrl.at[0, 2].set(broken)
    new = jax.jit(jax.vmap(stepper(cheetah_simulators[1])))(qpos, qvel, ctrl)
    assert np.all(np.isfinite(new.qpos[1])), "the neighbour is not harmed"
    assert not np.all(np.isfinite(new.qpos[0]))
    # The engine writes a line per broken state and step to the screen and into MUJOCO_LOG.TXT.
    assert not any(tmp_path.iterdir())
    assert "WARNING" not in "".join(capfd.readouterr())


def test_halfcheetah_observation_and_reward(parity: ParityFactory) -> None:
    _, case, run, _ = parity("halfcheetah_dir", "mujoco")
    # Observation: positions without the root's x, velocities, torso (x, 0, z), z = root z + 0.7.
    np.testing.assert_array_equal(run.obs[:, :8], run.qpos[:, 1:])
    np.testing.assert_array_equal(run.obs[:, 8:17], run.qvel)
    np.testing.assert_array_equal(run.obs[:, 17], run.qpos[:, 0])
    np.testing.assert_array_equal(run.obs[:, 18], 0)
    np.testing.assert_allclose(run.obs[:, 19], run.qpos[:, 1] + 0.7, rtol=1e-6)
    # Reward: velocity over 0.05 s less 0.05 * sum of squared controls, after scaling and clipping.
    x = np.append(case.qpos[0], run.qpos[:, 0])
    ctrl = np.clip(case.actions / 10, -1, 1)
    expected = case.task * np.diff(x) / 0.05 - 0.05 * (ctrl**2).sum(-1)
    np.testing.assert_allclose(run.reward, expected, atol=1e-5)


def test_halfcheetah_tasks_and_reset(cheetah_simulators: dict[int, Any]) -> None:
    env = HalfCheetahDir(cheetah_simulators[1], HalfCheetahDirConfig())
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
    with pytest.raises(ConfigError, match=r"env: 'walker'.*accepted: navigation_2d, halfcheetah_dir, "):
        make_env("walker")
    with pytest.raises(SimulatorError, match=r"simulator: 'bullet'.*accepted: auto, mujoco, mjx, "):
        make_env("halfcheetah_dir", simulator="bullet")


def test_auto_takes_the_host_engine_on_a_cpu_and_engines_are_shared() -> None:
    model = HalfCheetahDir.model
    if jax.default_backend() == "cpu":
        assert make_simulator("auto", model, 5, 1).name == "mujoco"
    assert make_simulator("mujoco", model, 5, 1) is make_simulator("mujoco", model, 5, 1)
    assert make_simulator("mujoco", model, 5, 1) is not make_simulator("mujoco", model, 4, 1)


def test_missing_packages_and_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            SimulatorError, match=r"^simulator: 'mjx-warp' needs the package mujoco, which is not"
        ):
            make_simulator("mjx-warp", HalfCheetahDir.model, 5)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    if jax.default_backend() == "cpu":
        with pytest.raises(
            SimulatorError,
            match=r"^simulator: 'mjx-warp' needs a CUDA device.*cpu; accepted here: auto, mujoco",
        ):
            make_simulator("mjx-warp", HalfCheetahDir.model, 5)


def test_missing_model_files_are_named() -> None:
    for file in ("no_such_body.xml", "/nowhere/no_such_body.xml"):
        with pytest.raises(SimulatorError, match=r"^model: there is no file /.*no_such_body\.xml$"):
            make_simulator("mujoco", Model(file), 5)


BRAX_STEPS = 3


@pytest.fixture(scope="module")
def brax_run() -> tuple[Any, Any, Any]:
    """HalfCheetah on Brax's cheapest engine: the same start and actions for both directions `[2, H, ...]`."""
    env = make_env("halfcheetah_dir", simulator="brax-spring")
    actions = 7.0 * jax.random.normal(jax.random.key(1), (BRAX_STEPS, env.action_size))

    def run(task: jax.Array):
        def step(state: Any, action: jax.Array):
            state, new = env.step(state, action, task)
            return state, (state._replace(internal=()), new)

        return jax.lax.scan(step, env.reset(jax.random.key(0), task)[0], actions)[1]

    state, new = jax.jit(jax.vmap(run))(jnp.array([1.0, -1.0]))
    return env, state, (actions, new)


def test_brax_runs_the_same_environment(brax_run: Any) -> None:
    env, state, (actions, new) = brax_run
    assert env.simulator.name == "brax-spring"
    # Control steps last as long as in MuJoCo: 16 of Brax's of 0.003125 s.
    np.testing.assert_allclose(env.simulator.dt, 0.05, rtol=1e-6)
    assert new.obs.shape == (2, BRAX_STEPS, env.obs_size) == (2, BRAX_STEPS, 20)
    assert np.all(np.isfinite(new.obs)) and np.all(np.isfinite(new.reward))
    np.testing.assert_array_equal(new.obs[..., :8], state.qpos[..., 1:])
    np.testing.assert_array_equal(new.obs[..., 8:17], state.qvel)
    assert np.abs(np.diff(new.obs[0], axis=0)).max() > 0.1, "the body must move"
    # The direction changes the reward alone, and there the velocity alone: what the two share is the
    # control cost, -0.05 * sum of squares of the scaled, clipped controls.
    np.testing.assert_array_equal(new.obs[0], new.obs[1])
    cost = 0.05 * np.sum(np.clip(np.asarray(actions) / 10, -1, 1) ** 2, axis=-1)
    np.testing.assert_allclose((new.reward[0] + new.reward[1]) / 2, -cost, rtol=1e-4, atol=1e-5)
    velocity = np.diff(np.asarray(state.qpos[0, :, 0], np.float64)) / 0.05
    np.testing.assert_allclose((new.reward[0] - new.reward[1])[1:] / 2, velocity, rtol=1e-3, atol=1e-4)
    assert np.all(np.abs(velocity) > 0.01)


@pytest.mark.parametrize("engine", ["spring", "positional", "generalized"])
def test_brax_has_an_ant(engine: str) -> None:
    env = make_env("ant_vel", simulator=f"brax-{engine}")
    assert isinstance(env, PhysicsEnv)
    assert (env.simulator.name, env.obs_size, env.action_size) == (f"brax-{engine}", 41, 8)
    np.testing.assert_allclose(env.simulator.dt, 0.05, rtol=1e-6)
    task = jnp.float32(1.0)
    state, obs = jax.eval_shape(env.reset, jax.random.key(0), task)
    _, new = jax.eval_shape(env.step, state, jnp.zeros(8), task)
    assert obs.shape == new.obs.shape == (41,)


def test_brax_refuses_what_it_cannot_do(cheetah_simulators: dict[int, Any]) -> None:
    with pytest.raises(
        SimulatorError, match=r"^simulator: Brax has no body for reacher.xml; accepted: auto, "
    ):
        make_simulator("brax-spring", Model("reacher.xml"), 2)
    # A control step of 0.01 s is 3.2 of Brax's steps.
    with pytest.raises(SimulatorError, match=r"0.003125 s does not divide the control step of 0.01 s"):
        make_simulator("brax-spring", HalfCheetahDir.model, 1)
    simulator = make_simulator("brax-spring", HalfCheetahDir.model, 5)
    body = cheetah_simulators[1].default_params()
    assert isinstance(body, ModelParams) and simulator.default_params is None
    state = SimState(jnp.zeros(9), jnp.zeros(9), ())
    with pytest.raises(SimulatorError, match=r"cannot change the body per task; accepted: mujoco, mjx"):
        simulator.step(state, jnp.zeros(6), body)


def test_importing_mjx_prints_nothing() -> None:
    code = "import admrl_jax.simulators.mjx"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == ""
