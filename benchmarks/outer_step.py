"""The trust-region step beside its own matrix products alone: `python -m benchmarks.outer_step`.

The limit is read off the step itself: every matrix product in its program, with its shape and how
often it runs, is executed on its own in the same process. What the step takes beyond that is
activations, memory traffic and bookkeeping.
"""

import collections
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.core.types import MetaBatch
from admrl_jax.defences.fixed import no_defence
from admrl_jax.envs.registry import make_env
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.runs.devices import Devices
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import Setup, TrainState, collect_step, init_train_state, learn_step
from benchmarks.common import compile_and_time, preset_of, report, start


@dataclass(frozen=True)
class Arguments:
    """The TRPO step's time against the time of its matrix products."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    """Environments whose shapes to use."""
    num_tasks: int = 0
    """Tasks; 0 takes the preset's."""
    num_trajectories: int = 20
    hidden_sizes: tuple[int, ...] = (64, 64)
    task_block: tuple[int, ...] = (0,)
    """Tasks computed together, 0 as training does here; several values are compared."""
    repeats: int = 5
    json: Path | None = None
    """Also write the figures here."""


def count_products(jaxpr: Any, times: int, while_trips: int) -> collections.Counter:
    """How often each matrix product runs: `{(shapes, dimension numbers): count}`.

    Args:
        jaxpr: program.
        times: how often this (sub)program runs.
        while_trips: iterations assumed of loops whose length is only known at run time.
    """
    counts: collections.Counter[Any] = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shapes = tuple(v.aval.shape for v in equation.invars)
            counts[shapes, equation.params["dimension_numbers"]] += times
        inner = times
        if equation.primitive.name == "scan":
            inner = times * equation.params["length"]
        if equation.primitive.name == "while":
            inner = times * while_trips
        for value in equation.params.values():
            for sub in value if isinstance(value, (tuple, list)) else (value,):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    counts += count_products(sub, inner, while_trips)
    return counts


def products_alone(counts: collections.Counter) -> Any:
    """A program that runs the counted products and nothing else worth mentioning."""

    def run(operands: list) -> jax.Array:
        total = jnp.zeros(())
        for (left, right), (dimension_numbers, count) in zip(operands, signatures, strict=True):

            def body(_, carry, left=left, right=right, dimension_numbers=dimension_numbers):
                # The operand depends on the carry, so no iteration can be skipped or hoisted.
                smaller = jax.lax.optimization_barrier((carry, left, right))
                product = jax.lax.dot_general(smaller[1], smaller[2], dimension_numbers)
                return smaller[0] + product.reshape(-1)[0]

            total = jax.lax.fori_loop(0, count, body, total)
        return total

    signatures = [(dimensions, count) for (_, dimensions), count in counts.items()]
    key = jax.random.key(0)
    operands = [(jax.random.normal(key, left), jax.random.normal(key, right)) for (left, right), _ in counts]
    return run, operands


def sample_batch(
    name: str, num_tasks: int, num_trajectories: int, hidden_sizes: tuple[int, ...]
) -> tuple[Setup, TrainState, MetaBatch]:
    """A fresh learner and clean episodes of it, `num_tasks` 0 taking the preset's number."""
    env = make_env(name)
    policy = make_policy(env.obs_size, env.action_size, PolicyConfig(hidden_sizes=hidden_sizes))
    num_tasks = num_tasks or preset_of(name, "paper").sampling.num_tasks
    sampling = SamplingConfig(num_tasks=num_tasks, num_trajectories=num_trajectories)
    setup = Setup(env, policy, make_maml_trpo(policy), sampling)
    state = init_train_state(jax.random.key(0), setup)
    batch, _ = jax.jit(lambda state: collect_step(state, setup=setup, defence=no_defence()))(state)
    return setup, state, jax.block_until_ready(batch)


def measure(name: str, arguments: Arguments, task_block: int) -> dict[str, Any]:
    """One row: the step, its products, and their ratio."""
    setup, state, batch = sample_batch(
        name, arguments.num_tasks, arguments.num_trajectories, arguments.hidden_sizes
    )
    num_tasks, axis = setup.sampling.num_tasks, Devices(1, task_block).axis

    def step(state: TrainState, batch: MetaBatch) -> Any:
        return learn_step(state.learner, state.key, state.step, batch, learner=setup.learner, axis=axis)

    compile_seconds, seconds, (_, metrics) = compile_and_time(step, state, batch, repeats=arguments.repeats)
    tried = int(metrics["train/line_search_steps"])
    counts = count_products(jax.make_jaxpr(step)(state, batch).jaxpr, 1, tried)
    _, limit, _ = compile_and_time(*products_alone(counts), repeats=arguments.repeats)
    return {
        "env": name,
        "tasks": num_tasks,
        "samples": int(batch.query.advantage.size),
        "hidden": "x".join(map(str, arguments.hidden_sizes)),
        "task_block": axis.block or num_tasks,
        "line_search_steps": tried,
        "products": sum(counts.values()),
        "compile_s": compile_seconds,
        "step_s": seconds,
        "products_s": limit,
        "ratio": seconds / limit,
    }


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.outer_step")
    start(1)
    rows = [measure(name, arguments, block) for name in arguments.env for block in arguments.task_block]
    report(
        "TRPO step against its matrix products alone",
        rows,
        arguments.json,
        bars=("step_s", "products_s"),
        labels=("env", "tasks", "hidden", "task_block"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
