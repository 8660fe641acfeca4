"""Control steps per second with the policy in the loop: `python -m benchmarks.rollout`.

The limit stands beside it: the same engine alone, with the same batch, start states and controls, but open
loop: `mujoco.rollout` with the same threads, all steps in one call, or one scan of the device engine's own
step. Both are timed in turn, so that a drifting machine touches both alike.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from admrl_jax.attacks.registry import ATTACKS, make_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.networks import make_policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Params, Task, Trajectory
from admrl_jax.envs.registry import ENVS, make_env
from admrl_jax.runs.devices import CPU_DEVICES, SAME, Devices, choose_num_devices, tasks_at
from admrl_jax.sampling import collect_tasks
from admrl_jax.simulators import SimulatorError, resolve
from admrl_jax.simulators.mujoco import available_cores
from admrl_jax.victims import make_victim
from benchmarks.common import BUILT_IN, compile_spread, report, start, time_in_turn, write_rows
from benchmarks.limits import draw_starts, open_loop, vector_env_rate

TITLE = "Collection with the policy in the loop (control steps per second)"
RADIUS = 0.2
"""Of every attack's budget."""


@dataclass(frozen=True)
class Arguments:
    """Closed-loop collection against the engine alone."""

    env: tuple[str, ...] = ()
    """Names of environments, or `all`; by default halfcheetah_dir, with `--simulator all` every one."""
    simulator: tuple[str, ...] = ("mujoco",)
    """Names of simulators, or `all` that an environment runs on here."""
    attack: tuple[str, ...] = ("none", "adgan", "fgsm")
    """Names of attacks; one that learns is as its training starts."""
    num_tasks: tuple[int, ...] = (40,)
    num_trajectories: tuple[int, ...] = (20,)
    """Batches to time: one number of tasks and one of trajectories for each."""
    horizon: tuple[int, ...] = (100,)
    """Control steps of an episode: one for each batch, or one for all."""
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


def measure(
    arguments: Arguments,
    name: str,
    simulator: str,
    attack_name: str,
    num_tasks: int,
    num_trajectories: int,
    horizon: int,
) -> dict[str, Any]:
    """One row: closed-loop steps/s and, where there is an engine, its open-loop limit."""
    engine = "auto" if simulator == "closed form" else simulator
    config = replace(ENVS[name].config(), horizon=horizon)
    env: Any = make_env(config, simulator=engine, num_threads=arguments.num_threads)
    policy = make_policy(env.obs_size, env.action_size)
    attack = make_attack(attack_name, make_victim(env, policy))
    key = jax.random.key(0)
    params, attack_params = policy.init(key), attack.init(key)
    tasks = jax.vmap(env.sample_task)(jax.random.split(key, num_tasks))
    # As after adaptation: every task has parameters of its own.
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape)), params)
    num_devices = arguments.num_devices or choose_num_devices([num_tasks])
    devices = Devices(num_devices)

    def episodes(params: Params, attack_params: Params, key: jax.Array, tasks: Task) -> Trajectory:
        radius = jnp.full(jax.tree.leaves(tasks)[0].shape[0], RADIUS)
        return collect_tasks(
            params,
            attack_params,
            key,
            tasks,
            Budget(radius),
            num_trajectories=num_trajectories,
            env=env,
            policy=policy,
            attack=attack,
            is_query=True,
            axis=devices.axis,
        )

    each = tasks_at(0)
    inputs = (params, attack_params, key, tasks)
    seconds, closed_loop = compile_spread(devices, episodes, (each, SAME, SAME, each), each, *inputs)
    functions: dict[str, Callable[[], Any]] = {"closed": closed_loop}
    collected: Trajectory = jax.device_get(closed_loop())
    if simulator != "closed form":
        starts = draw_starts(env, key, tasks, num_trajectories)
        functions["raw"] = open_loop(env, tasks, *starts, collected.action, arguments.num_threads, devices)
    timed = time_in_turn(functions, arguments.repeats)
    all_steps = num_tasks * num_trajectories * horizon
    # The C engine is not handed the robots that have fallen, so their steps are not there to be counted.
    steps = int(collected.mask.sum()) if simulator == "mujoco" else all_steps
    closed, raw = ([n / s for s in timed.get(k, ())] for n, k in ((steps, "closed"), (all_steps, "raw")))
    row: dict[str, Any] = {
        "env": name,
        "simulator": simulator,
        "attack": attack_name,
        "envs": num_tasks * num_trajectories,
        "horizon": horizon,
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
    known = ENVS[name].simulators
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
    start(arguments.num_devices or CPU_DEVICES)
    horizons = arguments.horizon
    horizons = horizons * len(arguments.num_tasks) if len(horizons) == 1 else horizons
    sizes = list(zip(arguments.num_tasks, arguments.num_trajectories, horizons, strict=True))
    rows = []
    is_default_all = not arguments.env and "all" in arguments.simulator
    names = BUILT_IN if is_default_all or "all" in arguments.env else arguments.env or ("halfcheetah_dir",)
    for attack in arguments.attack:
        if attack not in ATTACKS:
            raise ConfigError(f"attack: {attack!r} is not known; accepted: {', '.join(ATTACKS)}")
    for name in names:
        if name not in BUILT_IN:
            raise ConfigError(f"env: {name!r} is not known; accepted: all, {', '.join(BUILT_IN)}")
        for simulator in engines(name, arguments.simulator):
            for attack in arguments.attack:
                for size in sizes:
                    rows.append(measure(arguments, name, simulator, attack, *size))
                    write_rows(TITLE, rows, arguments.json)
    rows += [measure_gymnasium(arguments, workers) for workers in arguments.gymnasium]
    if arguments.gymnasium:
        best = max(row["steps_per_s"] for row in rows[-len(arguments.gymnasium) :])
        rows = [row | {"times_gymnasium": row["steps_per_s"] / best} for row in rows]
    report(
        TITLE,
        rows,
        arguments.json,
        bars=("steps_per_s", "raw_steps_per_s"),
        labels=("env", "simulator", "attack", "envs"),
        unit="control steps per second",
    )


if __name__ == "__main__":
    main()
