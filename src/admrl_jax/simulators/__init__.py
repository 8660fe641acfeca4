"""Physics engines behind one interface: `mujoco` on the host, `mjx` on the device."""

import functools
import importlib.util
from pathlib import Path

import jax

from admrl_jax.simulators.base import SimState, Simulator, SimulatorError

SIMULATORS = ("mujoco", "mjx")

__all__ = ["SIMULATORS", "SimState", "Simulator", "SimulatorError", "make_simulator", "resolve"]


def resolve(name: str) -> str:
    """Turns `auto` into this machine's default and refuses what cannot run.

    Raises:
        SimulatorError: the name is unknown, or its package is not installed.
    """
    if name == "auto":
        name = "mujoco" if jax.default_backend() == "cpu" else "mjx"
    if name not in SIMULATORS:
        raise SimulatorError(
            f"simulator: {name!r} is not known; accepted: {', '.join(('auto', *SIMULATORS))}"
        )
    package = "mujoco.mjx" if name == "mjx" else "mujoco"
    if importlib.util.find_spec("mujoco") is None or importlib.util.find_spec(package) is None:
        wheel = "mujoco-mjx" if name == "mjx" else "mujoco"
        raise SimulatorError(f"simulator: {name!r} needs the package {wheel}, which is not installed")
    return name


@functools.cache
def make_simulator(name: str, model_path: Path, frame_skip: int, num_threads: int = 0) -> Simulator:
    """Builds one engine for one model; repeated calls return the same object.

    Args:
        name: `auto`, `mujoco` or `mjx`.
        model_path: MJCF file.
        frame_skip: physics substeps per control step.
        num_threads: host threads of `mujoco`; 0 takes one per available core.
    """
    name = resolve(name)
    if name == "mujoco":
        from admrl_jax.simulators.mujoco import make_mujoco

        return make_mujoco(model_path, frame_skip, num_threads)
    from admrl_jax.simulators.mjx import make_mjx

    return make_mjx(model_path, frame_skip)
