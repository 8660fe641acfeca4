"""Fixtures: double precision where a test asks for it, and the few expensive programs, built once."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax import envs
from admrl_jax.config import HalfCheetahDirConfig
from admrl_jax.envs import HalfCheetahDir
from admrl_jax.simulators import make_simulator
from admrl_jax.simulators.models import gymnasium_model

# Compilation is most of the suite's time and its programs are tiny.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as in earnest.
jax.config.update(
    "jax_disable_most_optimizations", os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0"
)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


class EngineRun(NamedTuple):
    """What an engine makes of one start and one sequence of controls; fields `[H, ...]`."""

    obs: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray
    reward: np.ndarray


class ParityCase(NamedTuple):
    """A start near the default pose and 20 raw actions for HalfCheetah."""

    qpos: np.ndarray
    qvel: np.ndarray
    action: np.ndarray


@pytest.fixture(scope="session")
def parity_case() -> ParityCase:
    """Actions up to 15 before scaling by 1/10, so some controls are clipped."""
    rng = np.random.default_rng(7)
    return ParityCase(
        qpos=rng.uniform(-0.1, 0.1, 9).astype(np.float32),
        qvel=(0.1 * rng.normal(size=9)).astype(np.float32),
        action=rng.uniform(-15, 15, (20, 6)).astype(np.float32),
    )


def _run_engine(name: str, case: ParityCase) -> EngineRun:
    env = envs.make("halfcheetah_dir", simulator=name, num_threads=1)
    assert isinstance(env, HalfCheetahDir)

    @jax.jit
    def run(qpos: jax.Array, qvel: jax.Array, actions: jax.Array) -> EngineRun:
        def step(state: Any, action: jax.Array):
            state, new = env.step(state, action, jnp.float32(1.0))
            return state, EngineRun(new.obs, state.qpos, state.qvel, new.reward)

        return jax.lax.scan(step, env.simulator.init(qpos, qvel), actions)[1]

    return EngineRun(*(np.asarray(x) for x in run(*case)))


@pytest.fixture(scope="session")
def mujoco_run(parity_case: ParityCase) -> EngineRun:
    """20 control steps of the C engine inside jit."""
    return _run_engine("mujoco", parity_case)


@pytest.fixture(scope="session")
def mjx_run(parity_case: ParityCase) -> EngineRun:
    """20 control steps of MJX; its compilation is the dearest thing in the suite."""
    return _run_engine("mjx", parity_case)


@pytest.fixture(scope="session")
def cheetah_simulators() -> dict[int, Any]:
    """The C engine with one and with two threads."""
    path, skip = gymnasium_model("half_cheetah.xml"), HalfCheetahDirConfig().frame_skip
    return {threads: make_simulator("mujoco", path, skip, threads) for threads in (1, 2)}
