"""MJX: MuJoCo's dynamics in JAX, everything on the device.

Only positions, velocities and the solver's warm start are carried; the rest of `mjx.Data` is
rebuilt inside each control step, which keeps the scan's carry small.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path

import jax
import jax.numpy as jnp
from mujoco import mjx

from admrl_jax.simulators.base import SimState, Simulator
from admrl_jax.simulators.models import load_model


def make_mjx(model_path: Path, frame_skip: int) -> Simulator:
    """MJX for one model file."""
    model = load_model(model_path)
    mjx_model = mjx.put_model(model)

    def init(qpos: jax.Array, qvel: jax.Array) -> SimState:
        return SimState(qpos, qvel, jnp.zeros_like(qvel))

    def step(state: SimState, ctrl: jax.Array) -> SimState:
        data = mjx.make_data(mjx_model)
        data = data.replace(qpos=state.qpos, qvel=state.qvel, ctrl=ctrl, qacc_warmstart=state.warmstart)

        def substep(data, _):
            return mjx.step(mjx_model, data), None

        data, _ = jax.lax.scan(substep, data, None, length=frame_skip)
        return SimState(data.qpos, data.qvel, data.qacc_warmstart)

    return Simulator(
        name="mjx",
        init=init,
        step=step,
        qpos0=tuple(float(x) for x in model.qpos0),
        nv=model.nv,
        nu=model.nu,
        dt=float(model.opt.timestep) * frame_skip,
    )
