"""MJX: MuJoCo's dynamics in JAX, everything on the device.

Only positions, velocities, activations and the solver's warm start are carried; the rest of `mjx.Data`
is rebuilt inside each control step, which keeps the scan's carry small.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import contextlib
import functools
import io
from typing import Any

import jax

from admrl_jax.simulators.base import (
    Model,
    ModelParams,
    SimState,
    Simulator,
    SimulatorError,
    full_precision,
)
from admrl_jax.simulators.models import (
    default_params,
    describe,
    load_model,
    refuse_what_is_not_carried,
    rest_of_state,
)

# Where Warp is missing, which is no fault here, importing MJX prints so.
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

SOLVER_ITERATIONS = 8
LINE_SEARCH_ITERATIONS = 8
"""MuJoCo's own bounds are 100 and 50, and a batch waits for its slowest member. From states that trained
policies visit, these change no digit of a control step's error against the C engine and are three times as
fast; 4 and 6 change Ant's (`benchmarks.mjx_solver`)."""


def make_mjx(
    model: Model,
    frame_skip: int,
    implementation: str = "jax",
    *,
    solver_iterations: int = SOLVER_ITERATIONS,
    line_search_iterations: int = LINE_SEARCH_ITERATIONS,
) -> Simulator:
    """MJX for one model.

    Args:
        model: where the model file is.
        frame_skip: physics steps per control step.
        implementation: `jax`, or `warp` for the kernels of MuJoCo Warp (CUDA devices).
        solver_iterations: upper bound on the contact solver's iterations, and
        line_search_iterations: on those of its line search; a batch waits for its slowest member.
    """
    mj_model = load_model(model)
    mj_model.opt.iterations = min(mj_model.opt.iterations, solver_iterations)
    mj_model.opt.ls_iterations = min(mj_model.opt.ls_iterations, line_search_iterations)
    refuse_what_is_not_carried(mj_model)
    if mj_model.nplugin:
        raise SimulatorError("simulator: MJX has no plugins, which this model uses; accepted: mujoco")
    try:
        mjx_model = mjx.put_model(mj_model, impl=implementation)
    except NotImplementedError as error:
        raise SimulatorError(f"simulator: MJX cannot run this model: {error}; accepted: mujoco") from error

    def init(qpos: jax.Array, qvel: jax.Array) -> SimState:
        sensors: Any = ()
        if mj_model.nsensordata:
            data = mjx.make_data(mjx_model, impl=implementation).replace(qpos=qpos, qvel=qvel)
            with full_precision():
                sensors = mjx.forward(mjx_model, data).sensordata
        return SimState(qpos, qvel, rest_of_state(mj_model, qvel), sensors)

    def step(
        state: SimState,
        ctrl: jax.Array,
        model_params: ModelParams | None = None,
        ended: jax.Array | bool = False,
    ) -> SimState:
        del ended  # a batch takes as long as its slowest member
        changes = {} if model_params is None else model_params._asdict()
        body = mjx_model.replace(**changes)
        warmstart, *act = state.internal if mj_model.na else (state.internal,)
        data = mjx.make_data(mjx_model, impl=implementation).replace(
            qpos=state.qpos, qvel=state.qvel, ctrl=ctrl, qacc_warmstart=warmstart
        )
        if act:
            data = data.replace(act=act[0])

        def substep(data, _):
            return mjx.step(body, data), None

        with full_precision():
            data, _ = jax.lax.scan(substep, data, None, length=frame_skip)
        rest = (data.qacc_warmstart, data.act) if act else data.qacc_warmstart
        return SimState(data.qpos, data.qvel, rest, data.sensordata if mj_model.nsensordata else ())

    return Simulator(
        name="mjx" if implementation == "jax" else f"mjx-{implementation}",
        init=init,
        step=step,
        default_params=functools.partial(default_params, mj_model),
        dt=float(mj_model.opt.timestep) * frame_skip,
        **describe(mj_model),
    )
