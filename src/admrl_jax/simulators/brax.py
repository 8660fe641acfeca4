"""Brax's own engines (`spring`, `positional`, `generalized`) with Brax's own model files.

These are other dynamics than MuJoCo's: the joints and motors are the same, contacts, inertias and
motor strengths are Brax's. Returns do not compare with those of `mujoco` and `mjx`.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
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
from admrl_jax.simulators.models import load_model, quiet_loading


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keeps Brax from announcing, on import, what it does not find and that its training code is not ours."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def unwrap(env: Any) -> Any:
    """An environment without Brax's wrappers for training, which end, restart and batch episodes.

    Raises:
        SimulatorError: one is below a wrapper of another maker, repeats actions, or batches episodes.
    """
    with quiet_imports():
        from brax.envs.base import Wrapper
        from brax.envs.wrappers import training
    while isinstance(env, training.AutoResetWrapper | training.EpisodeWrapper):
        if getattr(env, "action_repeat", 1) != 1:
            raise SimulatorError(f"env: action_repeat {env.action_repeat} is not accepted; accepted: 1")
        env = env.env
    inner = env
    while isinstance(inner, Wrapper):
        if type(inner).__module__ == training.__name__:
            raise SimulatorError(
                f"env: the wrapper {type(inner).__name__} is not accepted; pass what it wraps"
            )
        inner = inner.env
    return env


def make_brax(model: Model, frame_skip: int, backend: str) -> Simulator:
    """One of Brax's engines for a model.

    A control step lasts as long as in MuJoCo; how many of Brax's physics steps that takes is
    Brax's choice of time step.

    Args:
        model: names the Brax environment that holds the body.
        frame_skip: physics steps per control step of MuJoCo's model.
        backend: `spring`, `positional` or `generalized`.

    Raises:
        SimulatorError: Brax has no such body, or its time step does not divide the control step.
    """
    if not model.brax:
        raise SimulatorError(f"simulator: Brax has no body for {model.file}; accepted: auto, mujoco, mjx")
    with quiet_loading(), quiet_imports():
        # Only here: importing Brax's environments takes seconds.
        from brax import envs as brax_envs

        env: Any = brax_envs.get_environment(model.brax, backend=backend)
    dt = float(load_model(model).opt.timestep) * frame_skip
    timestep = float(env.sys.opt.timestep)
    num_frames = round(dt / timestep)
    if num_frames < 1 or abs(num_frames * timestep - dt) > 1e-6:
        raise SimulatorError(
            f"simulator: Brax's time step of {timestep:g} s does not divide the control step of {dt:g} s; "
            "choose another env.frame_skip"
        )
    env._n_frames = num_frames

    def init(qpos: jax.Array, qvel: jax.Array) -> SimState:
        with full_precision():
            state = env.pipeline_init(qpos, qvel)
        return SimState(state.q, state.qd, state)

    def step(
        state: SimState,
        ctrl: jax.Array,
        model_params: ModelParams | None = None,
        ended: jax.Array | bool = False,
    ) -> SimState:
        del ended  # every member of a batch costs the same
        if model_params is not None:
            raise SimulatorError("simulator: Brax cannot change the body per task; accepted: mujoco, mjx")
        with full_precision():
            new = env.pipeline_step(state.internal, ctrl)
        return SimState(new.q, new.qd, new)

    return Simulator(
        name=f"brax-{backend}",
        init=init,
        step=step,
        default_params=None,
        qpos0=tuple(float(x) for x in env.sys.init_q),
        nv=env.sys.qd_size(),
        nu=env.sys.act_size(),
        dt=dt,
        ctrl_range=tuple((float(low), float(high)) for low, high in env.sys.actuator.ctrl_range),
    )
