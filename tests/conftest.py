"""Fixtures: double precision where a test asks for it, and the few expensive programs, built once."""

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirConfig
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.simulators import make_simulator
from benchmarks.parity import Case, Run, make_case, make_env, run_engine, run_gymnasium

# Compilation is most of the suite's time and its programs are tiny.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as in earnest.
IS_OPTIMIZED = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0"
jax.config.update("jax_disable_most_optimizations", not IS_OPTIMIZED)
# Fake devices over which tasks are spread.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps compiled programs for tests whose runs compile the same ones again and again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    compilation_cache_module.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache_module.reset_cache()


@pytest.fixture
def optimizations() -> Iterator[None]:
    """Programs of one test compiled as in earnest."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", not IS_OPTIMIZED)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


class Parity(NamedTuple):
    """20 control steps of one environment on one engine, and in Gymnasium."""

    env: PhysicsEnv
    case: Case
    run: Run
    gymnasium: Run


class ParityFactory(Protocol):
    """Runs an environment on an engine, once per session."""

    def __call__(self, name: str, simulator: str, seed: int = 0) -> Parity:
        """The run of a name in `ENVS` on one of `SIMULATORS`."""
        ...


@pytest.fixture(scope="session")
def parity() -> ParityFactory:
    """Every environment and engine runs once: MJX's compilations are the most expensive thing in the suite."""

    @functools.cache
    def run(name: str, simulator: str, seed: int = 0) -> Parity:
        env = make_env(name, simulator)
        case = make_case(env, seed)
        return Parity(env, case, run_engine(env, case), run_gymnasium(env, case))

    return run


@pytest.fixture(scope="session")
def cheetah_simulators() -> dict[int, Any]:
    """The C engine with one and with two threads."""
    skip = HalfCheetahDirConfig().frame_skip
    return {threads: make_simulator("mujoco", HalfCheetahDir.model, skip, threads) for threads in (1, 2)}
