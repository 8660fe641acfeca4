"""MuJoCo's C engine, called from inside jit: a whole batch per call, threads inside.

Every control step of a rollout is one `host_call`. Under `vmap` it gets the whole batch (tasks x
trajectories x seeds), which `mujoco.rollout` spreads over its threads.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import copy
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout as mujoco_rollout

from admrl_jax.simulators.base import Model, ModelParams, SimState, Simulator
from admrl_jax.simulators.host_call import host_call
from admrl_jax.simulators.models import (
    default_params,
    describe,
    digest,
    load_model,
    refuse_what_is_not_carried,
    rest_of_state,
)


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


CHUNKS_PER_THREAD = 6
"""With few chunks all wait for the slowest thread; each further one costs a hop between threads. In trials on
two cores a rollout took 1 to 3 % longer with 16."""


BATCHES_KEPT = 8
"""Batches of differing bodies for which models are kept; those of several devices alternate."""


ENGINES_KEPT = 8
"""Engines whose memory is kept; one that was not used for longer takes it anew when it is."""


class Workers:
    """Threads that the engines of a process share. One batch at a time: each keeps all of them busy.

    Two concurrent rollouts of one `MjModel` would crash the process, too.
    """

    def __init__(self, num_threads: int):
        # The calling thread only waits, so a pool of one would add a hop for nothing.
        self.pool = mujoco_rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        self.lock = threading.Lock()
        self._recent: dict[int, HostEngine] = {}

    def serve(self, engine: "HostEngine") -> None:
        """Notes that an engine is used now, and lets go what the least recent one holds."""
        self._recent.pop(id(engine), None)
        self._recent[id(engine)] = engine
        if len(self._recent) > ENGINES_KEPT:
            self._recent.pop(next(iter(self._recent))).release()


workers = functools.cache(Workers)
"""By the number of threads."""


class HostEngine:
    """One model and reusable buffers; safe to call from any thread."""

    def __init__(self, model: mujoco.MjModel, frame_skip: int, num_threads: int):
        self.model = model
        self.frame_skip = frame_skip
        self.num_threads = num_threads or available_cores()
        state = mujoco.mjtState
        self._state_size = mujoco.mj_stateSize(model, state.mjSTATE_FULLPHYSICS.value)
        time_size = mujoco.mj_stateSize(model, state.mjSTATE_TIME.value)
        ends = np.cumsum([time_size, model.nq, model.nv, model.na])
        self._qpos, self._qvel, self._act = (slice(*pair) for pair in itertools.pairwise(ends))
        self._control_spec = state.mjSTATE_CTRL.value
        self._workers = workers(self.num_threads)
        self.release()

    def release(self) -> None:
        """Lets go of what can be made again."""
        self._data: list[mujoco.MjData] = []
        self._buffers: list[np.ndarray] = []
        self._capacity = 0
        # Bodies that differ from task to task: one model each, kept for the next steps of their batch.
        self._variants: dict[bytes, list[mujoco.MjModel]] = {}

    @property
    def name(self) -> str:
        """Identifies this engine in compiled programs: equal engines, equal names."""
        return f"mujoco-{digest(self.model)}-{self.frame_skip}-{self.num_threads}"

    def step(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Advances a batch by one control step.

        Args:
            inputs: positions `[..., nq]`, velocities `[..., nv]`, accelerations `[..., nv]` from which
                the contact solver starts, activations `[..., na]` of motors that have any, readings
                `[..., ns]` of sensors if there are any, controls `[..., nu]`, whether the episode has ended
                `[...]`; then, where bodies differ, the fields of `ModelParams`, each `[..., *shape]`.
            outputs: the same after the step, down to the readings. The engine does not hand out its own
                warm start; the last substep's change of velocity is as good a start and costs nothing.
                Ended bodies stay as they are.
        """
        count = len(outputs) + 1
        arrays, ended, model_params = inputs[:count], inputs[count], inputs[count + 1 :]
        given, results = ([x.reshape(ended.size, -1) for x in xs] for xs in (arrays, outputs))
        # The engine would warn of each broken state in every step, on the screen and in a log file.
        broken = _broken(*given)
        rows: slice | np.ndarray = slice(None)
        if broken.size or ended.any():
            running = ~ended.ravel()
            running[broken] = False
            rows = np.flatnonzero(running)
            for result, value in zip(results, given, strict=False):
                result[:] = value
                result[broken] = np.nan
        with self._workers.lock:
            self._workers.serve(self)
            models = self._models_for(ended.size, [x.reshape(ended.size, -1) for x in model_params])
            if not isinstance(rows, slice):
                models = [models[row] for row in rows]
            if models:
                self._advance(models, [x[rows] for x in given], results, rows)

    def sense(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Readings `[..., ns]` of the sensors at positions `[..., nq]` and velocities `[..., nv]`."""
        (readings,) = outputs
        rows = [x.reshape(-1, x.shape[-1]) for x in (*inputs, readings)]
        data = mujoco.MjData(self.model)
        for qpos, qvel, reading in zip(*rows, strict=True):
            if _broken(qpos[None], qvel[None]).size:
                reading[:] = np.nan
                continue
            mujoco.mj_resetData(self.model, data)
            data.qpos[:], data.qvel[:] = qpos, qvel
            mujoco.mj_forward(self.model, data)
            reading[:] = data.sensordata

    def _advance(
        self,
        models: list[mujoco.MjModel],
        given: list[np.ndarray],
        results: list[np.ndarray],
        rows: slice | np.ndarray,
    ) -> None:
        """Steps one body per model from healthy numbers `[len(models), ...]` into `rows` of `results`."""
        size = len(models)
        qpos, qvel, warmstart, *more, ctrl = given
        initial, start, control, states, *sensors = self._buffers_for(size)
        initial[:, self._qpos] = qpos
        initial[:, self._qvel] = qvel
        if self.model.na:
            initial[:, self._act] = more[0]
        start[:] = warmstart
        control[:] = ctrl[:, None]
        self._workers.pool.rollout(
            models,
            self._data,
            initial,
            control,
            control_spec=self._control_spec,
            skip_checks=True,
            nstep=self.frame_skip,
            initial_warmstart=start,
            state=states,
            sensordata=sensors[0] if sensors else None,
            chunk_size=max(1, size // (self.num_threads * CHUNKS_PER_THREAD)),
        )
        last = states[:, -1]
        last[_broken(last)] = np.nan
        before = states[:, -2] if self.frame_skip > 1 else initial
        new_qpos, new_qvel, acceleration, *more = results
        if self.model.na:
            more[0][rows] = last[:, self._act]
        if sensors:
            more[-1][rows] = sensors[0][:, -1]
        new_qpos[rows] = last[:, self._qpos]
        new_qvel[rows] = last[:, self._qvel]
        acceleration[rows] = (last[:, self._qvel] - before[:, self._qvel]) / self.model.opt.timestep

    def _models_for(self, size: int, fields: list[np.ndarray]) -> list[mujoco.MjModel]:
        """One model per environment, built when a batch of bodies is new."""
        if not fields:
            return [self.model] * size
        params = np.concatenate(fields, axis=1)
        key = params.tobytes()
        if key not in self._variants:
            if len(self._variants) == BATCHES_KEPT:
                del self._variants[next(iter(self._variants))]
            rows, which = np.unique(params, axis=0, return_inverse=True)
            splits = np.cumsum([field.shape[1] for field in fields])[:-1]
            variants = [with_params(self.model, np.split(row, splits)) for row in rows]
            self._variants[key] = [variants[i] for i in which.ravel()]
        return self._variants[key]

    def _buffers_for(self, size: int) -> list[np.ndarray]:
        """States before, warm starts, controls, states after and readings, for `size` bodies."""
        if not self._data:
            self._data = [mujoco.MjData(self.model) for _ in range(self.num_threads)]
        if size > self._capacity:
            self._capacity = size
            shapes = (
                (self._state_size,),
                (self.model.nv,),
                (self.frame_skip, self.model.nu),
                (self.frame_skip, self._state_size),
                *(((self.frame_skip, self.model.nsensordata),) if self.model.nsensordata else ()),
            )
            self._buffers = [np.zeros((size, *shape)) for shape in shapes]
        return [buffer[:size] for buffer in self._buffers]


def _broken(*arrays: np.ndarray) -> np.ndarray:
    """Indices of the rows in which any number is not finite or beyond what the engine takes."""
    limit = mujoco.mjMAXVAL
    # Comparisons with NaN are false.
    if all(x.max() < limit and x.min() > -limit for x in arrays):
        return np.zeros(0, np.intp)
    rows = [np.all(np.abs(x) < limit, axis=tuple(range(1, x.ndim))) for x in arrays]
    return np.flatnonzero(~np.all(rows, axis=0))


def with_params(model: mujoco.MjModel, params: Sequence[Any]) -> mujoco.MjModel:
    """A copy of a model with the fields of `ModelParams` replaced, each of any shape."""
    variant = copy.copy(model)
    for name, values in zip(ModelParams._fields, params, strict=True):
        target = getattr(variant, name)
        target[:] = values.reshape(target.shape)
    # The engine places centres of mass by the masses of subtrees.
    mass = variant.body_mass.copy()
    for body in range(variant.nbody - 1, 0, -1):
        mass[variant.body_parentid[body]] += mass[body]
    variant.body_subtreemass[:] = mass
    return variant


def make_mujoco(model: Model, frame_skip: int, num_threads: int = 0) -> Simulator:
    """The C engine for one model. `num_threads` 0 takes one per available core."""
    mj_model = load_model(model)
    refuse_what_is_not_carried(mj_model)
    # An unstable state must come back as it is: reset to the default pose it would look healthy.
    mj_model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    engine = HostEngine(mj_model, frame_skip, num_threads)
    name = engine.name

    def init(qpos: jax.Array, qvel: jax.Array) -> SimState:
        sensors: Any = ()
        if mj_model.nsensordata:
            shape = jax.ShapeDtypeStruct((mj_model.nsensordata,), qpos.dtype)
            (sensors,) = host_call(engine.sense, f"{name}-sense", (shape,), qpos, qvel)
        return SimState(qpos, qvel, rest_of_state(mj_model, qvel), sensors)

    def step(
        state: SimState,
        ctrl: jax.Array,
        model_params: ModelParams | None = None,
        ended: jax.Array | bool = False,
    ) -> SimState:
        arrays, structure = jax.tree.flatten(state)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        inputs = (*arrays, ctrl, jnp.asarray(ended), *(() if model_params is None else model_params))
        return jax.tree.unflatten(structure, host_call(engine.step, name, shapes, *inputs))

    return Simulator(
        name="mujoco",
        init=init,
        step=step,
        default_params=functools.partial(default_params, mj_model),
        dt=float(mj_model.opt.timestep) * frame_skip,
        **describe(mj_model),
    )
