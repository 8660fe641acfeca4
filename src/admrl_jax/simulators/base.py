"""The simulator interface: generalised coordinates in, generalised coordinates out."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class SimState(NamedTuple):
    """State of one simulated body.

    Attributes:
        qpos: `[nq]` generalised positions (m, rad).
        qvel: `[nv]` generalised velocities (m/s, rad/s).
        warmstart: `[nv]` accelerations from which the contact solver starts (m/s^2, rad/s^2).
    """

    qpos: jax.Array
    qvel: jax.Array
    warmstart: jax.Array


class Simulator(NamedTuple):
    """Physics of one model.

    Attributes:
        name: `mujoco`, `mjx`, ...
        init: `(qpos, qvel) -> SimState`.
        step: `(SimState, ctrl [nu]) -> SimState`, one control step of `frame_skip` substeps.
        qpos0: default generalised positions, a tuple of length `nq`.
        nv: number of generalised velocities.
        nu: number of controls.
        dt: seconds per control step.
    """

    name: str
    init: Callable[[jax.Array, jax.Array], SimState]
    step: Callable[[SimState, jax.Array], SimState]
    qpos0: tuple[float, ...]
    nv: int
    nu: int
    dt: float


class SimulatorError(ValueError):
    """A simulator that does not exist or cannot run here."""
