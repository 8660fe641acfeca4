"""Control steps per second with the policy in the loop: `python -m benchmarks.rollout`.

For the `mujoco` simulator the limit stands beside it: `mujoco.rollout` on the same model, with the
same threads, batch, start states and controls, but open loop, all steps in one call. Both are
timed in turn, so that a drifting machine touches both alike.
"""

import copy
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from mujoco import rollout as mujoco_rollout

from admrl_jax import attacks, envs, networks
from admrl_jax.attacks import Attack, Budget
from admrl_jax.checks import ConfigError
from admrl_jax.env_config import ENV_CONFIGS
from admrl_jax.envs import PhysicsEnv, simulators_of
from admrl_jax.rollout import collect
from admrl_jax.simulators import ModelParams, SimulatorError, resolve
from admrl_jax.simulators.models import load_model
from benchmarks.common import report


@dataclass(frozen=True)
class Arguments:
    """Closed-loop collection against the engine alone."""

    env: tuple[str, ...] = ("halfcheetah_dir",)
    """Names of environments, or `all`."""
    simulator: tuple[str, ...] = ("mujoco",)
    """Names of simulators, or `all` that an environment runs on here."""
    attack: tuple[str, ...] = ("none", "generator", "fgsm")
    """none, gaussian, generator, fgsm."""
    num_tasks: int = 40
    num_trajectories: int = 20
    horizon: int = 100
    num_threads: int = 0
    """Threads of the C engine; 0 takes one per core."""
    repeats: int = 5
    json: Path | None = None
    """Also write the figures here."""


def make_attack(name: str, policy: networks.Policy, obs_size: int) -> Attack:
    """An attack by name."""
    if name == "fgsm":
        return attacks.fgsm(policy)
    if name == "generator":
        return attacks.generator_attack(networks.make_generator(obs_size))
    return {"none": attacks.no_attack, "gaussian": attacks.gaussian_noise}[name]()


def open_loop(
    env: PhysicsEnv, tasks: Any, qpos: jax.Array, qvel: jax.Array, action: jax.Array, threads: int
) -> Callable[[], None]:
    """A function that runs the C engine alone over the same batch, starts and controls.

    Args:
        env: task family.
        tasks: `[N, ...]`.
        qpos: `[N, K, nq]` start.
        qvel: `[N, K, nv]` start.
        action: `[N, K, H, A]` raw actions.
        threads: of the engine.
    """
    model = load_model(env.model)
    data = [getattr(mujoco, "MjData")(model) for _ in range(threads)]  # noqa: B009
    pool = mujoco_rollout.Rollout(nthread=threads if threads > 1 else 0)
    num_tasks, num_trajectories, horizon, _ = action.shape
    size = num_tasks * num_trajectories
    control = np.asarray(action, np.float64).reshape(size, horizon, -1)
    control = np.clip(control / env.config.action_scale, -1, 1)
    control = np.ascontiguousarray(np.repeat(control, env.config.frame_skip, axis=1))
    start = [np.asarray(x, np.float64).reshape(size, -1) for x in (qpos, qvel)]
    initial = np.concatenate([np.zeros((size, 1)), *start], axis=1)
    states = np.zeros((size, control.shape[1], initial.shape[1]))
    models = [model] * size
    if isinstance(tasks, ModelParams):
        bodies = [copy.copy(model) for _ in range(num_tasks)]
        for i, body in enumerate(bodies):
            for name, values in tasks._asdict().items():
                getattr(body, name)[:] = values[i]
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
            chunk_size=max(1, size // (threads * 8)),
        )

    return run


def measure(arguments: Arguments, name: str, simulator: str, attack_name: str) -> dict[str, Any]:
    """One row: closed-loop steps/s and, for the C engine, the open-loop limit."""
    engine = "auto" if simulator == "closed form" else simulator
    env: Any = envs.make(name, simulator=engine, num_threads=arguments.num_threads)
    policy = networks.make_policy(env.obs_size, env.action_size)
    attack = make_attack(attack_name, policy, env.obs_size)
    key = jax.random.key(0)
    params, attack_params = policy.init(key), attack.init(key)
    tasks = jax.vmap(env.sample_task)(jax.random.split(key, arguments.num_tasks))
    # As after adaptation: every task has parameters of its own.
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (arguments.num_tasks, *x.shape)), params)
    run = functools.partial(
        collect,
        num_trajectories=arguments.num_trajectories,
        env=env,
        policy=policy,
        attack=attack,
        budget=Budget(jnp.float32(0.2)),
        horizon=arguments.horizon,
    )
    keys = jax.random.split(key, arguments.num_tasks)
    start = time.perf_counter()
    compiled = (
        jax.jit(jax.vmap(run, in_axes=(0, None, 0, 0))).lower(params, attack_params, keys, tasks).compile()
    )
    compile_seconds = time.perf_counter() - start
    closed = functools.partial(compiled, params, attack_params, keys, tasks)
    trajectory = jax.block_until_ready(closed())
    raw = None
    threads = arguments.num_threads
    if simulator == "mujoco":
        from admrl_jax.simulators.mujoco import available_cores

        threads = threads or available_cores()
        starts = jax.vmap(
            lambda key, task: jax.vmap(lambda key: env.start(jax.random.split(key, 3)[0], task))(
                jax.random.split(key, arguments.num_trajectories)
            )
        )
        qpos, qvel = jax.jit(starts)(keys, tasks)
        raw = open_loop(env, tasks, qpos, qvel, trajectory.action, threads)
        raw()
    closed_seconds, raw_seconds = [], []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        jax.block_until_ready(closed())
        closed_seconds.append(time.perf_counter() - start)
        if raw is not None:
            start = time.perf_counter()
            raw()
            raw_seconds.append(time.perf_counter() - start)
    steps = arguments.num_tasks * arguments.num_trajectories * arguments.horizon
    row: dict[str, Any] = {
        "env": name,
        "simulator": simulator,
        "attack": attack_name,
        "envs": arguments.num_tasks * arguments.num_trajectories,
        "horizon": arguments.horizon,
        "threads": threads,
        "compile_s": compile_seconds,
        "steps_per_s": steps / statistics.median(closed_seconds),
        "raw_steps_per_s": "-",
        "ratio": "-",
    }
    if raw is not None:
        row["raw_steps_per_s"] = steps / statistics.median(raw_seconds)
        pairs = [r / c for r, c in zip(raw_seconds, closed_seconds, strict=True)]
        row["ratio"] = statistics.median(pairs)
    return row


def engines(name: str, wanted: tuple[str, ...]) -> list[str]:
    """The engines to time for an environment; of `all`, those that run here."""
    known = simulators_of(ENV_CONFIGS[name]())
    if not known:
        return ["closed form"]
    if "all" not in wanted:
        return list(wanted)
    found = []
    for simulator in known:
        try:
            found.append(resolve(simulator))
        except SimulatorError as error:
            print(f"left out: {error}")
    return found


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.rollout")
    rows = []
    for name in ENV_CONFIGS if "all" in arguments.env else arguments.env:
        if name not in ENV_CONFIGS:
            raise ConfigError(f"env: {name!r} is not known; accepted: all, {', '.join(ENV_CONFIGS)}")
        for simulator in engines(name, arguments.simulator):
            for attack in arguments.attack:
                rows.append(measure(arguments, name, simulator, attack))
    report(
        "Collection with the policy in the loop (control steps per second)",
        rows,
        arguments.json,
        bars=("steps_per_s", "raw_steps_per_s"),
        labels=("env", "simulator", "attack"),
        unit="control steps per second",
    )


if __name__ == "__main__":
    main()
