"""Control steps per second with the policy in the loop: `python -m benchmarks.rollout`.

The limit stands beside it: the same engine alone, with the same batch, start states and controls, but open
loop: `mujoco.rollout` with the same threads, all steps in one call, or one scan of the device engine's own
step. Both are timed in turn, so that a drifting machine touches both alike.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from admrl_jax import attacks, envs, networks
from admrl_jax.attacks import Attack, Budget
from admrl_jax.checks import ConfigError
from admrl_jax.env_config import ENV_CONFIGS
from admrl_jax.envs import simulators_of
from admrl_jax.rollout import collect
from admrl_jax.sharding import CPU_DEVICES, choose_num_devices, make_cpu_devices, task_mesh
from admrl_jax.simulators import SimulatorError, resolve
from admrl_jax.simulators.mujoco import available_cores
from benchmarks.common import EACH, SAME, compile_seconds, report, spread, time_in_turn
from benchmarks.limits import draw_starts, open_loop, vector_env_rate


@dataclass(frozen=True)
class Arguments:
    """Closed-loop collection against the engine alone."""

    env: tuple[str, ...] = ()
    """Names of environments, or `all`; by default halfcheetah_dir, with `--simulator all` every one."""
    simulator: tuple[str, ...] = ("mujoco",)
    """Names of simulators, or `all` that an environment runs on here."""
    attack: tuple[str, ...] = ("none", "generator", "fgsm")
    """none, gaussian, generator, fgsm."""
    num_tasks: tuple[int, ...] = (40,)
    num_trajectories: tuple[int, ...] = (20,)
    """Batches to time: one number of tasks and one of trajectories for each."""
    horizon: int = 100
    num_threads: int = 0
    """Threads of the C engine; 0 takes one per core."""
    num_devices: int = 0
    """Devices over which tasks are spread; 0 takes as many as training does."""
    gymnasium: tuple[int, ...] = (2, 8)
    """Also time Gymnasium's AsyncVectorEnv on HalfCheetah-v5, with so many worker processes;
    nothing after the flag leaves it out."""
    gymnasium_steps: int = 1000
    """Control steps of each worker in one timing."""
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


def measure(
    arguments: Arguments, name: str, simulator: str, attack_name: str, num_tasks: int, num_trajectories: int
) -> dict[str, Any]:
    """One row: closed-loop steps/s and, where there is an engine, its open-loop limit."""
    engine = "auto" if simulator == "closed form" else simulator
    env: Any = envs.make(name, simulator=engine, num_threads=arguments.num_threads)
    policy = networks.make_policy(env.obs_size, env.action_size)
    attack = make_attack(attack_name, policy, env.obs_size)
    key = jax.random.key(0)
    params, attack_params = policy.init(key), attack.init(key)
    tasks = jax.vmap(env.sample_task)(jax.random.split(key, num_tasks))
    # As after adaptation: every task has parameters of its own.
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape)), params)
    run = functools.partial(
        collect,
        num_trajectories=num_trajectories,
        env=env,
        policy=policy,
        attack=attack,
        budget=Budget(jnp.float32(0.2)),
        horizon=arguments.horizon,
    )
    inputs = (params, attack_params, jax.random.split(key, num_tasks), tasks)
    episodes = jax.vmap(run, in_axes=(0, None, 0, 0))
    num_devices = arguments.num_devices or choose_num_devices([num_tasks])
    mesh = task_mesh(num_devices) if num_devices > 1 else None
    episodes, inputs = spread(episodes, mesh, (EACH, SAME, EACH, EACH), EACH, inputs)
    seconds, compiled = compile_seconds(episodes, *inputs)
    functions: dict[str, Callable[[], Any]] = {"closed": functools.partial(compiled, *inputs)}
    collected = functions["closed"]()
    if simulator != "closed form":
        starts = draw_starts(env, key, tasks, num_trajectories)
        functions["raw"] = open_loop(env, tasks, *starts, collected.action, arguments.num_threads, mesh)
    timed = time_in_turn(functions, arguments.repeats)
    all_steps = num_tasks * num_trajectories * arguments.horizon
    # The C engine is not handed the robots that have fallen, so their steps are not there to be counted.
    steps = int(collected.mask.sum()) if simulator == "mujoco" else all_steps
    closed, raw = ([n / s for s in timed.get(k, ())] for n, k in ((steps, "closed"), (all_steps, "raw")))
    row: dict[str, Any] = {
        "env": name,
        "simulator": simulator,
        "attack": attack_name,
        "envs": num_tasks * num_trajectories,
        "horizon": arguments.horizon,
        "devices": num_devices,
        "threads": (arguments.num_threads or available_cores()) if simulator == "mujoco" else "-",
        "compile_s": seconds,
        "steps": steps,
        "steps_per_s": median(closed),
        "raw_steps_per_s": "-",
        "ratio": "-",
    }
    if raw:
        row["raw_steps_per_s"] = median(raw)
        row["ratio"] = median(c / r for c, r in zip(closed, raw, strict=True))
    print(
        f"{name}, {simulator}, {attack_name}: {row['steps_per_s']:,.0f} steps/s", file=sys.stderr, flush=True
    )
    return row


def measure_gymnasium(arguments: Arguments, workers: int) -> dict[str, Any]:
    """One row: what one would use without this project."""
    rate = vector_env_rate(workers, num_steps=arguments.gymnasium_steps, repeats=arguments.repeats)
    return {
        "env": "HalfCheetah-v5",
        "simulator": "AsyncVectorEnv",
        "attack": "none",
        "envs": workers,
        "horizon": arguments.gymnasium_steps,
        "devices": "-",
        "threads": "-",
        "compile_s": "-",
        "steps": workers * arguments.gymnasium_steps,
        "steps_per_s": rate,
        "raw_steps_per_s": "-",
        "ratio": "-",
    }


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
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.rollout", description=__doc__)
    make_cpu_devices(arguments.num_devices or CPU_DEVICES)
    sizes = list(zip(arguments.num_tasks, arguments.num_trajectories, strict=True))
    rows = []
    is_default_all = not arguments.env and "all" in arguments.simulator
    names = ENV_CONFIGS if is_default_all or "all" in arguments.env else arguments.env or ("halfcheetah_dir",)
    for name in names:
        if name not in ENV_CONFIGS:
            raise ConfigError(f"env: {name!r} is not known; accepted: all, {', '.join(ENV_CONFIGS)}")
        for simulator in engines(name, arguments.simulator):
            for attack in arguments.attack:
                rows += [measure(arguments, name, simulator, attack, *size) for size in sizes]
    rows += [measure_gymnasium(arguments, workers) for workers in arguments.gymnasium]
    if arguments.gymnasium:
        best = max(row["steps_per_s"] for row in rows[-len(arguments.gymnasium) :])
        rows = [row | {"times_gymnasium": row["steps_per_s"] / best} for row in rows]
    report(
        "Collection with the policy in the loop (control steps per second)",
        rows,
        arguments.json,
        bars=("steps_per_s", "raw_steps_per_s"),
        labels=("env", "simulator", "attack", "envs"),
        unit="control steps per second",
    )


if __name__ == "__main__":
    main()
