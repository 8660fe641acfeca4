"""MuJoCo's C engine, called from inside jit: a whole batch per call, threads inside.

Every control step of a rollout is one `pure_callback`. Under `vmap` JAX hands the callback the
whole batch (tasks x trajectories x seeds), which `mujoco.rollout` spreads over its threads.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout as mujoco_rollout

from admrl_jax.simulators.base import SimState, Simulator
from admrl_jax.simulators.models import load_model


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


CHUNKS_PER_THREAD = 40


class HostEngine:
    """One model, its worker threads and reusable buffers; safe to call from any thread.

    Two concurrent rollouts that share an `MjModel` crash the process, so a lock admits one call
    at a time; the threads inside the call keep all cores busy.
    """

    def __init__(self, model: mujoco.MjModel, frame_skip: int, num_threads: int):
        self.model = model
        self.frame_skip = frame_skip
        self.num_threads = num_threads or available_cores()
        state = mujoco.mjtState
        self._state_size = mujoco.mj_stateSize(model, state.mjSTATE_FULLPHYSICS.value)
        time_size = mujoco.mj_stateSize(model, state.mjSTATE_TIME.value)
        self._qpos = slice(time_size, time_size + model.nq)
        self._qvel = slice(time_size + model.nq, time_size + model.nq + model.nv)
        self._control_spec = state.mjSTATE_CTRL.value
        # The calling thread only waits, so a pool of one would add a hop for nothing.
        self._pool = mujoco_rollout.Rollout(nthread=self.num_threads if self.num_threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(self.num_threads)]
        self._lock = threading.Lock()
        self._buffers: dict[int, tuple] = {}

    def step(self, qpos: np.ndarray, qvel: np.ndarray, warmstart: np.ndarray, ctrl: np.ndarray):
        """Advances a batch by one control step.

        Args:
            qpos: `[..., nq]`.
            qvel: `[..., nv]`.
            warmstart: `[..., nv]` accelerations from which the contact solver starts.
            ctrl: `[..., nu]`.

        Returns:
            `(qpos, qvel, warmstart)` after the step. The engine does not hand out its own warm
            start; the last substep's change of velocity is as good a start and costs nothing.
        """
        qpos, qvel = np.asarray(qpos), np.asarray(qvel)
        warmstart, ctrl = np.asarray(warmstart), np.asarray(ctrl)
        batch_shape = qpos.shape[:-1]
        size = int(np.prod(batch_shape, dtype=np.int64))
        with self._lock:
            models, initial, start, control, states = self._buffers_for(size)
            initial[:, self._qpos] = qpos.reshape(size, -1)
            initial[:, self._qvel] = qvel.reshape(size, -1)
            start[:] = warmstart.reshape(size, -1)
            control[:] = ctrl.reshape(size, 1, -1)
            self._pool.rollout(
                models,
                self._data,
                initial,
                control,
                control_spec=self._control_spec,
                skip_checks=True,
                nstep=self.frame_skip,
                initial_warmstart=start,
                state=states,
                # Small, so that no thread waits long for the last chunk of another.
                chunk_size=max(1, size // (self.num_threads * CHUNKS_PER_THREAD)),
            )
            last = states[:, -1]
            unstable = ~np.all(np.abs(last) < mujoco.mjMAXVAL, axis=-1)
            if unstable.any():
                last[unstable] = np.nan
            before = states[:, -2] if self.frame_skip > 1 else initial
            acceleration = (last[:, self._qvel] - before[:, self._qvel]) / self.model.opt.timestep
            return (
                last[:, self._qpos].astype(qpos.dtype).reshape(qpos.shape),
                last[:, self._qvel].astype(qvel.dtype).reshape(qvel.shape),
                acceleration.astype(qvel.dtype).reshape(qvel.shape),
            )

    def _buffers_for(self, size: int) -> tuple:
        if size not in self._buffers:
            self._buffers[size] = (
                [self.model] * size,
                np.zeros((size, self._state_size)),
                np.zeros((size, self.model.nv)),
                np.zeros((size, self.frame_skip, self.model.nu)),
                np.zeros((size, self.frame_skip, self._state_size)),
            )
        return self._buffers[size]


def make_mujoco(model_path: Path, frame_skip: int, num_threads: int = 0) -> Simulator:
    """The C engine for one model file. `num_threads` 0 takes one per available core."""
    model = load_model(model_path)
    # An unstable state must come back as it is: reset to the default pose it would look healthy.
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    engine = HostEngine(model, frame_skip, num_threads)

    def init(qpos: jax.Array, qvel: jax.Array) -> SimState:
        return SimState(qpos, qvel, jnp.zeros_like(qvel))

    def step(state: SimState, ctrl: jax.Array) -> SimState:
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in state)
        return SimState(*jax.pure_callback(engine.step, shapes, *state, ctrl, vmap_method="broadcast_all"))

    return Simulator(
        name="mujoco",
        init=init,
        step=step,
        qpos0=tuple(float(x) for x in model.qpos0),
        nv=model.nv,
        nu=model.nu,
        dt=float(model.opt.timestep) * frame_skip,
    )
