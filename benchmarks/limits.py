"""What a rollout is compared with: the engine alone, and what one would use without this project."""

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout as mujoco_rollout

from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.runs.devices import Devices, tasks_at
from admrl_jax.simulators import ModelParams
from admrl_jax.simulators.models import load_model, quiet_loading
from admrl_jax.simulators.mujoco import CHUNKS_PER_THREAD, available_cores, with_params
from benchmarks.common import compile_spread


def draw_starts(
    env: PhysicsEnv, key: jax.Array, tasks: Any, num_trajectories: int
) -> tuple[jax.Array, jax.Array]:
    """Start states `[N, K, nq]` and `[N, K, nv]` of tasks `[N, ...]`."""
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    keys = jax.random.split(key, (num_tasks, num_trajectories))
    return jax.jit(jax.vmap(jax.vmap(env.start, in_axes=(0, None))))(keys, tasks)


def open_loop(
    env: PhysicsEnv,
    tasks: Any,
    qpos: jax.Array,
    qvel: jax.Array,
    action: jax.Array | np.ndarray,
    num_threads: int = 0,
    devices: Devices | None = None,
) -> Callable[[], Any]:
    """A function that steps the environment's engine alone: same batch, starts and controls, no policy.

    `mujoco` is run by `mujoco.rollout`, all steps in one call; other engines by one scan of their own step
    on the device.

    Args:
        env: task family.
        tasks: `[N, ...]`.
        qpos: `[N, K, nq]` start.
        qvel: `[N, K, nv]` start.
        action: `[N, K, H, A]` raw actions.
        num_threads: of the C engine; 0 takes one per core.
        devices: over which tasks are spread, where the engine runs on them; one by default.
    """
    low, high = jnp.asarray(env.simulator.ctrl_range).T
    control = jnp.clip(action / env.config.action_scale, low, high)
    if env.simulator.name == "mujoco":
        return _mujoco_alone(env, tasks, qpos, qvel, control, num_threads or available_cores())
    return device_alone(env, tasks, qpos, qvel, control, devices)


@contextlib.contextmanager
def engine_clock() -> Iterator[list[float]]:
    """Notes the seconds of each call of the C engine. Calls come one at a time: their sum is wall time."""
    seconds: list[float] = []
    step = mujoco_rollout.Rollout.rollout

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = step(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    mujoco_rollout.Rollout.rollout = timed
    try:
        yield seconds
    finally:
        mujoco_rollout.Rollout.rollout = step


def _mujoco_alone(
    env: PhysicsEnv, tasks: Any, qpos: jax.Array, qvel: jax.Array, ctrl: jax.Array, threads: int
) -> Callable[[], None]:
    model = load_model(env.model)
    data = [getattr(mujoco, "MjData")(model) for _ in range(threads)]  # noqa: B009
    pool = mujoco_rollout.Rollout(nthread=threads if threads > 1 else 0)
    num_tasks, num_trajectories, horizon, _ = ctrl.shape
    size = num_tasks * num_trajectories
    control = np.asarray(ctrl, np.float64).reshape(size, horizon, -1)
    control = np.ascontiguousarray(np.repeat(control, env.config.frame_skip, axis=1))
    start = [np.asarray(x, np.float64).reshape(size, -1) for x in (qpos, qvel)]
    initial = np.concatenate([np.zeros((size, 1)), *start], axis=1)
    states = np.zeros((size, control.shape[1], initial.shape[1]))
    models = [model] * size
    if isinstance(tasks, ModelParams):
        bodies = [with_params(model, [np.asarray(x[i]) for x in tasks]) for i in range(num_tasks)]
        models = [body for body in bodies for _ in range(num_trajectories)]

    def run() -> None:
        pool.rollout(
            models,
            data,
            initial,
            control,
            skip_checks=True,
            nstep=control.shape[1],
            state=states,
            chunk_size=max(1, size // (threads * CHUNKS_PER_THREAD)),
        )

    return run


def device_alone(
    env: PhysicsEnv,
    tasks: Any,
    qpos: jax.Array,
    qvel: jax.Array,
    ctrl: jax.Array,
    devices: Devices | None = None,
) -> Callable[[], Any]:
    """A function that scans the environment's own step over controls `[N, K, H, A]`."""

    def one(task, qpos, qvel, ctrl):
        def step(state, ctrl):
            return env.simulator.step(state, ctrl, env.body(task)), None

        last = jax.lax.scan(step, env.simulator.init(qpos, qvel), ctrl)[0]
        return last.qpos, last.qvel

    episodes = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0, 0)))
    each = tasks_at(0)
    return compile_spread(devices or Devices(), episodes, (each,) * 4, each, tasks, qpos, qvel, ctrl)[1]


def _make_cheetah() -> gymnasium.Env:
    with quiet_loading():
        return gymnasium.make("HalfCheetah-v5")


def vector_env_rate(num_envs: int, *, num_steps: int, repeats: int) -> float:
    """Control steps per second of `gymnasium.vector.AsyncVectorEnv` on HalfCheetah-v5.

    The policy is the same tanh 64x64 Gaussian, in NumPy, for all sub-environments at once; each of
    these is a process of its own.

    Args:
        num_envs: sub-environments, so worker processes.
        num_steps: control steps of each in one timing.
        repeats: timings, of which the median is taken.
    """
    rng = np.random.default_rng(0)
    envs = gymnasium.vector.AsyncVectorEnv([_make_cheetah] * num_envs, context="spawn")
    obs, _ = envs.reset(seed=0)
    action_size = envs.action_space.shape[-1]  # pyright: ignore[reportOptionalSubscript]
    sizes = (obs.shape[-1], 64, 64, action_size)
    layers = [rng.uniform(-1, 1, (i, o)) * np.sqrt(6 / (i + o)) for i, o in pairwise(sizes)]

    def run(obs: np.ndarray) -> np.ndarray:
        for _ in range(num_steps):
            hidden = np.tanh(np.tanh(obs @ layers[0]) @ layers[1])
            action = hidden @ layers[2] + rng.normal(size=(num_envs, action_size))
            obs, *_ = envs.step(np.clip(action / 10, -1, 1).astype(np.float32))
        return obs

    obs = run(obs)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        obs = run(obs)
        seconds.append(time.perf_counter() - start)
    envs.close()
    return num_envs * num_steps / median(seconds)
