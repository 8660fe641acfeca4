"""The simulator interface: generalised coordinates in, generalised coordinates out."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

full_precision = functools.partial(jax.default_matmul_precision, "highest")
"""Around an engine that computes on the device: an accelerator would otherwise round the factors of its
products to 10 bits or fewer, too few for physics."""

SIMULATORS = (
    "mujoco",
    "mjx",
    "mjx-warp",
    "brax-spring",
    "brax-positional",
    "brax-generalized",
)
"""Physics engines; which of them an environment runs on is in `docs/environments.md`."""


class SimState(NamedTuple):
    """State of one simulated body.

    Attributes:
        qpos: `[nq]` generalised positions (m, rad).
        qvel: `[nv]` generalised velocities (m/s, rad/s).
        internal: whatever else the engine carries from step to step, a pytree of arrays: `[nv]`
            accelerations from which MuJoCo's contact solver starts, with the activations `[na]` of motors
            that have any; Brax's pipeline state.
        sensors: `[ns]` readings of the sensors in the model file, `()` if there are none; see
            `Simulator.sensor`. MuJoCo reads them before it moves, so after a control step they are of the
            state one physics step earlier.
    """

    qpos: jax.Array
    qvel: jax.Array
    internal: Any
    sensors: Any = ()


class ModelParams(NamedTuple):
    """The numbers of a body that a task may change. Everything else stays as in the model file.

    Constants that MuJoCo's compiler derives from them (inverse inertias at the default pose, which
    scale contact softness) stay at the model file's values too, as in the published random-dynamics
    tasks, which overwrite the fields of a compiled model.

    Attributes:
        body_mass: `[nbody]` (kg).
        body_inertia: `[nbody, 3]` diagonal, in the body's inertial frame (kg m^2).
        geom_friction: `[ngeom, 3]` sliding, torsional and rolling coefficients.
        dof_damping: `[nv]` (N s/m, N m s/rad).
    """

    body_mass: jax.Array
    body_inertia: jax.Array
    geom_friction: jax.Array
    dof_damping: jax.Array


class StepFn(Protocol):
    """One control step: `frame_skip` physics steps under constant controls."""

    def __call__(
        self,
        state: SimState,
        ctrl: jax.Array,
        model_params: ModelParams | None = None,
        ended: jax.Array | bool = False,
    ) -> SimState:
        """Advances `state` under `ctrl` `[nu]`, with the file's own body where `model_params` is None.

        Where `ended` is true the result is not used, and an engine may skip the work.
        """
        ...


class Model(NamedTuple):
    """Where each engine finds a body.

    Attributes:
        file: MJCF file: a path, or the name of one of Gymnasium's, `gymnasium:ant.xml` where a file of that
            name in the current folder shall not come first.
        brax: name of the Brax environment with the same joints and motors; empty if there is none.
    """

    file: str | Path
    brax: str = ""


class Source(NamedTuple):
    """What an engine was built from.

    Attributes:
        model: with the absolute path of its file, or the name of one of Gymnasium's.
        digest: of the compiled model.
        frame_skip: physics steps per control step.
        num_threads: host threads.
    """

    model: Model
    digest: str
    frame_skip: int
    num_threads: int


class Simulator(NamedTuple):
    """Physics of one model.

    Attributes:
        name: `mujoco`, `mjx`, ...
        init: `(qpos, qvel) -> SimState`.
        step: `(SimState, ctrl [nu], ModelParams | None) -> SimState`.
        default_params: `() -> ModelParams` of the model file; `None` where the engine cannot change bodies.
        qpos0: default generalised positions, a tuple of length `nq`.
        nv: number of generalised velocities.
        nu: number of controls.
        dt: seconds per control step.
        ctrl_range: lowest and highest value of each control.
        quaternions: where in `qpos` each quaternion of a free or ball joint begins.
        keyframes: name, positions and velocities of each pose in the model file.
        sensors: name, first and last + 1 place in `SimState.sensors` of each sensor in the model file.
        source: from which it can be built again; None where it cannot.
        rebuild: `(name, source) -> Simulator`, in another process.
    """

    name: str
    init: Callable[[jax.Array, jax.Array], SimState]
    step: StepFn
    default_params: Callable[[], ModelParams] | None
    qpos0: tuple[float, ...]
    nv: int
    nu: int
    dt: float
    ctrl_range: tuple[tuple[float, float], ...]
    quaternions: tuple[int, ...] = ()
    keyframes: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = ()
    sensors: tuple[tuple[str, int, int], ...] = ()
    source: Source | None = None
    rebuild: Callable[[str, Source], Any] | None = None

    def sensor(self, state: SimState, name: str) -> jax.Array:
        """Readings `[n]` of one sensor.

        Raises:
            SimulatorError: the model file has none of that name.
        """
        for known, first, last in self.sensors:
            if known == name:
                return state.sensors[first:last]
        accepted = ", ".join(known for known, *_ in self.sensors) or "none, the model has no sensors"
        raise SimulatorError(f"sensor: {name!r} is not in the model; accepted: {accepted}")

    def keyframe(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Positions and velocities of a pose in the model file.

        Raises:
            SimulatorError: there is none of that name.
        """
        for known, qpos, qvel in self.keyframes:
            if known == name:
                return qpos, qvel
        accepted = ", ".join(known for known, *_ in self.keyframes) or "none, the model has no keyframes"
        raise SimulatorError(f"keyframe: {name!r} is not in the model; accepted: {accepted}")

    def __reduce__(self) -> tuple[Callable, tuple]:
        """Engines hold threads and closures; another process builds its own."""
        if self.rebuild is None:
            raise TypeError("a simulator that make_simulator did not build cannot be pickled")
        return self.rebuild, (self.name, self.source)


class SimulatorError(ValueError):
    """A simulator that does not exist or cannot run here."""
