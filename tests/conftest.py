"""Fixtures: double precision where a test asks for it, and the few expensive programs, built once."""

import fcntl
import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from admrl_jax.commands.experiment import main
from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirConfig
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.report import figures
from admrl_jax.runs.devices import compile_fast
from admrl_jax.simulators import make_simulator
from benchmarks.parity import Case, Run, make_case, make_env, run_engine, run_gymnasium
from experiments import navigation_2d
from faults.toy_runs import TOY

# Compilation is most of the suite's time and its programs are tiny.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as in earnest.
IS_OPTIMIZED = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0"
if not IS_OPTIMIZED:
    compile_fast()
    # Programs in many pieces, for machines with many cores, take an eighth longer here.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1"
# Fake devices over which tasks are spread.
jax.config.update("jax_num_cpu_devices", 8)
# Nobody looks at the figures, and drawing them large is a tenth of a toy run.
figures.DPI = 50
# What tracing leaves behind is looked through again and again, for nothing.
gc.freeze()
gc.set_threshold(20_000, 50, 100)

TOY_STRENGTHS = ("--eval.strengths", "0.1", "0.2")
"""Two strengths, so that attackers are lanes beside each other."""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def keep_programs(folder: Path) -> None:
    """Turns on JAX's persistent compilation cache."""
    if jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir == str(folder):
        return
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache_module.reset_cache()


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(shared_folder: Path) -> Path:
    """Keeps compiled programs: many tests compile the same ones, in several processes."""
    folder = shared_folder / "xla"
    keep_programs(folder)
    return folder


@pytest.fixture(autouse=True)
def compilation_cache_after_others(compilation_cache: Path) -> None:
    """Turns it on again after a test that turned it off."""
    keep_programs(compilation_cache)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the long toy run come last: then one process makes it while the other has something to do."""
    items.sort(key=lambda item: "finished" in getattr(item, "fixturenames", ()))


ToyRun = Callable[..., Path]
"""`(name, *flags)` -> run directory; a name stands for its flags."""


@pytest.fixture(scope="session")
def toy_run(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    """Toy runs of 2D navigation, each made once for all processes."""

    @functools.cache
    def run(name: str, *flags: str) -> Path:
        made, mine = shared_folder / name, tmp_path_factory.mktemp("runs") / name
        with (shared_folder / f"{name}.lock").open("w") as lock:
            # The first process makes it, the others wait and take copies.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (made / "report.md").exists():
                argv = [*TOY, *TOY_STRENGTHS, *flags, f"--run-dir={made}"]
                assert main("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 0
        shutil.copytree(made, mine)
        return mine

    return run


@pytest.fixture(scope="session")
def finished(toy_run: ToyRun) -> Path:
    """An uninterrupted toy run, the most expensive thing that several tests share."""
    return toy_run("whole")


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
