"""Physics engines behind one interface: `mujoco` on the host, `mjx` and Brax's on the device."""

import importlib.util
import threading

import jax

from admrl_jax.simulators.base import (
    SIMULATORS,
    Model,
    ModelParams,
    SimState,
    Simulator,
    SimulatorError,
    Source,
)

__all__ = [
    "SIMULATORS",
    "Model",
    "ModelParams",
    "SimState",
    "Simulator",
    "SimulatorError",
    "make_simulator",
    "resolve",
]

# What each engine imports, and the package that provides it.
_PACKAGES = {
    "mujoco": (("mujoco", "mujoco"),),
    "mjx": (("mujoco", "mujoco"), ("mujoco.mjx", "mujoco-mjx")),
    "mjx-warp": (("mujoco", "mujoco"), ("mujoco.mjx", "mujoco-mjx"), ("warp", "warp-lang")),
    **{name: (("brax", "brax"),) for name in SIMULATORS if name.startswith("brax-")},
}


def resolve(name: str) -> str:
    """Turns `auto` into this machine's default and refuses what cannot run.

    Raises:
        SimulatorError: the name is unknown, its package is not installed, or it needs another device.
    """
    if name == "auto":
        name = "mujoco" if jax.default_backend() == "cpu" else "mjx"
    if name not in SIMULATORS:
        raise SimulatorError(
            f"simulator: {name!r} is not known; accepted: {', '.join(('auto', *SIMULATORS))}"
        )
    for package, wheel in _PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            raise SimulatorError(f"simulator: {name!r} needs the package {wheel}, which is not installed")
    if name == "mjx-warp" and jax.default_backend() != "gpu":
        raise SimulatorError(
            f"simulator: 'mjx-warp' needs a CUDA device, and this machine's default is "
            f"{jax.default_backend()}; accepted here: auto, mujoco, mjx, brax-*"
        )
    return name


SIMULATORS_KEPT = 32
_kept: dict[tuple, Simulator] = {}
_keeping = threading.Lock()


def make_simulator(name: str, model: Model, frame_skip: int, num_threads: int = 0) -> Simulator:
    """Builds one engine for one model; repeated calls return the same object while the file stays the same.

    Args:
        name: `auto` or one of `SIMULATORS`.
        model: where the engines find the body.
        frame_skip: physics steps per control step.
        num_threads: host threads of `mujoco`; 0 takes one per available core.

    Raises:
        SimulatorError: this engine cannot run here, or has no such body.
    """
    name = resolve(name)
    from admrl_jax.simulators.models import absolute, digest, load_model

    source = Source(absolute(model), digest(load_model(model)), frame_skip, num_threads)
    # Where a file lies makes no other engine.
    key = (name, source._replace(model=Model("", model.brax)))
    with _keeping:
        if key not in _kept:
            if len(_kept) == SIMULATORS_KEPT:
                del _kept[next(iter(_kept))]
            built = _build(name, model, frame_skip, num_threads)
            _kept[key] = built._replace(source=source, rebuild=rebuild)
        return _kept[key]


def rebuild(name: str, source: Source) -> Simulator:
    """An engine that was pickled, in another process.

    Raises:
        SimulatorError: its model file is gone or has changed.
    """
    simulator = make_simulator(name, source.model, source.frame_skip, source.num_threads)
    if simulator.source is None or simulator.source.digest != source.digest:
        raise SimulatorError(f"model: {source.model.file} is another one than when it was pickled")
    return simulator


def _build(name: str, model: Model, frame_skip: int, num_threads: int) -> Simulator:
    if name == "mujoco":
        from admrl_jax.simulators.mujoco import make_mujoco

        return make_mujoco(model, frame_skip, num_threads)
    if name.startswith("mjx"):
        from admrl_jax.simulators.mjx import make_mjx

        return make_mjx(model, frame_skip, "warp" if name == "mjx-warp" else "jax")
    from admrl_jax.simulators.brax import make_brax

    return make_brax(model, frame_skip, name.removeprefix("brax-"))
