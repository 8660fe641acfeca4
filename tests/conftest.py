"""Fixtures: double precision where a test asks for it, and the few expensive programs, built once."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirConfig
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.protocol.command_line import main
from admrl_jax.simulators import make_simulator
from benchmarks.parity import Case, Run, make_case, make_env, run_engine, run_gymnasium
from experiments import navigation_2d
from faults.toy_runs import TOY

# Compilation is most of the suite's time and its programs are tiny.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as in earnest.
IS_OPTIMIZED = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0"
jax.config.update("jax_disable_most_optimizations", not IS_OPTIMIZED)
# Fake devices over which tasks are spread.
jax.config.update("jax_num_cpu_devices", 8)

TOY_STRENGTHS = ("--eval.strengths", "0.1", "0.2")
"""Two strengths, so that attackers are lanes beside each other."""


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep compiled programs that others compile again."""
    return tmp_path_factory.mktemp("cache")


@contextmanager
def programs_kept_in(folder: Path) -> Iterator[None]:
    """Turns on JAX's persistent compilation cache for a while."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache_module.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache_module.reset_cache()


@pytest.fixture(scope="module")
def compilation_cache(cache_folder: Path) -> Iterator[None]:
    """Keeps compiled programs for tests whose runs compile the same ones again and again."""
    with programs_kept_in(cache_folder):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Path:
    """An uninterrupted toy run of 2D navigation, the most expensive thing that several tests share."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    argv = [*TOY, *TOY_STRENGTHS, f"--run-dir={directory}"]
    with programs_kept_in(cache_folder):
        assert main("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 0
    return directory


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
    """Every environment and engine runs once: MJX's compilations are the most expensive things here."""

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
