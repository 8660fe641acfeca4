"""What bounding MJX's contact solver costs and saves: `python -m benchmarks.mjx_solver`.

States are those that a trained policy visits on the C engine. From each, one control step is taken
on `mjx` with bounded solver and line-search iterations and on the C engine with its own; the same
policy's return is measured on both.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core import gaussian
from admrl_jax.core.types import Params, Task
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.evaluation import evaluate
from admrl_jax.runs.artefact import load_policy
from admrl_jax.sampling import Exposure, collect_meta_batch, expose
from admrl_jax.simulators import SimState
from admrl_jax.simulators.mjx import make_mjx
from admrl_jax.training import Setup
from benchmarks.common import compile_and_time, report, start


@dataclass(frozen=True)
class Arguments:
    """One-step error, speed and return of MJX under bounded solver iterations."""

    run_dir: tuple[Path, ...] = (Path("results/halfcheetah_dir"),)
    """Runs with a trained policy."""
    method: str = "pretrain"
    """One of the run's, or pretrain."""
    iterations: tuple[int, ...] = (100, 8, 4, 2, 1)
    """Bounds on the solver's iterations."""
    line_search: tuple[int, ...] = (50, 8, 6, 4, 4)
    """Bounds on its line search, one for each of `iterations`."""
    states: int = 512
    """Visited states from which a step is taken."""
    episodes: int = 0
    """Episodes per task whose returns are compared; 0 leaves returns out (slow on a CPU)."""
    repeats: int = 3
    json: Path | None = None
    """Also write the figures here."""


TASKS = 8


def clean() -> Exposure:
    """No attack on any of the tasks."""
    return expose(no_attack(), (), Budget(0.0), num_tasks=TASKS)


def visited(setup: Setup, params: Params, count: int) -> tuple[SimState, jax.Array, Task]:
    """States, controls and tasks `[count, ...]` of adapted policies on the C engine, before they fall."""
    env: Any = setup.env
    tasks = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(7), TASKS))
    low, high = jnp.asarray(env.simulator.ctrl_range).T

    def episode(params: Params, key: jax.Array, task: Task) -> Any:
        state, obs = env.reset(key, task)

        def step(carry: Any, key: jax.Array) -> Any:
            state, obs, ended = carry
            action = gaussian.sample(setup.policy.apply(params, obs), key)
            new, seen = env.step(state, action, task)
            ctrl = jnp.clip(action / env.config.action_scale, low, high)
            return (new, seen.obs, ended | seen.terminated), (state, ctrl, task, ended)

        start = (state, obs, jnp.array(False))
        return jax.lax.scan(step, start, jax.random.split(key, env.horizon))[1]

    @jax.jit
    def run(params: Params) -> Any:
        batch = collect_meta_batch(
            params,
            jax.random.key(8),
            tasks,
            clean(),
            env=env,
            policy=setup.policy,
            learner=setup.learner,
            config=setup.sampling,
        )
        return jax.vmap(episode)(batch.adapted_params, jax.random.split(jax.random.key(9), TASKS), tasks)

    *found, ended = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), run(params))
    pick = np.random.default_rng(0).permutation(np.flatnonzero(~np.asarray(ended)))[:count]
    states, ctrl, tasks = jax.tree.map(lambda x: x[pick], found)
    return states, ctrl, tasks


def one_step(env: PhysicsEnv) -> Callable[[SimState, jax.Array, Task], SimState]:
    """A control step of the task's body."""
    return lambda state, ctrl, task: env.simulator.step(state, ctrl, env.body(task))


def returns(setup: Setup, params: Params) -> tuple[float, float]:
    """Mean return after adaptation and its standard error over tasks."""
    tasks = jax.vmap(setup.env.sample_task)(jax.random.split(jax.random.key(1), TASKS))
    run = jax.jit(lambda params, key, tasks: evaluate(params, key, tasks, clean(), setup=setup).returns)
    post = np.asarray(run(params, jax.random.key(2), tasks)[:, -1].mean(-1))
    return float(post.mean()), float(post.std(ddof=1) / TASKS**0.5)


def measure(run_dir: Path, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per bound, and one for the C engine if returns are compared."""
    trained = load_policy(run_dir, arguments.method, simulator="mujoco")
    config, env = trained.config, trained.env
    assert isinstance(env, PhysicsEnv)
    setup = Setup(env, trained.policy, trained.learner, config.sampling)
    params = jax.tree.map(lambda x: x[0], trained.params)
    states, ctrl, tasks = visited(setup, params, arguments.states)
    truth = jax.jit(jax.vmap(one_step(env)))(states, ctrl, tasks)

    def compared(env: PhysicsEnv) -> dict[str, Any]:
        if not arguments.episodes:
            return {}
        sampling = replace(config.sampling, num_trajectories=arguments.episodes)
        mean, error = returns(setup._replace(env=env, sampling=sampling), params)
        return {"return": mean, "s.e.": error}

    nothing = dict.fromkeys(("compile_s", "steps_per_s", "qvel error, median", "99 %", "largest"), "-")
    named: dict[str, Any] = {"env": config.env.name}
    rows = [named | {"engine": "mujoco", "iterations": "-", "line search": "-"} | nothing | compared(env)]
    for iterations, line_search in zip(arguments.iterations, arguments.line_search, strict=True):
        engine = make_mjx(
            env.model, env.config.frame_skip, solver_iterations=iterations, line_search_iterations=line_search
        )
        mjx_env = type(env)(engine, env.config)
        compile_seconds, seconds, new = compile_and_time(
            jax.vmap(one_step(mjx_env)), states, ctrl, tasks, repeats=arguments.repeats
        )
        error = np.abs(np.asarray(new.qvel) - np.asarray(truth.qvel)).max(axis=-1)
        bounded: dict[str, Any] = {
            "engine": "mjx",
            "iterations": iterations,
            "line search": line_search,
            "compile_s": compile_seconds,
            "steps_per_s": ctrl.shape[0] / seconds,
            "qvel error, median": float(np.median(error)),
            "99 %": float(np.quantile(error, 0.99)),
            "largest": float(error.max()),
        }
        rows.append(named | bounded | compared(mjx_env))
        print(f"{config.env.name}, {iterations} iterations: done", file=sys.stderr, flush=True)
    return rows if arguments.episodes else rows[1:]


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.mjx_solver", description=__doc__)
    start()
    rows = [row for run_dir in arguments.run_dir for row in measure(run_dir, arguments)]
    report("MJX with bounded solver iterations against the C engine, one control step", rows, arguments.json)


if __name__ == "__main__":
    main()
