"""What each choice in the trust-region step brings: `python -m benchmarks.fisher`.

The same step direction, ten Fisher products on the same episodes, is computed in several ways, timed in
turn. `cosine` compares each direction with the one that training takes: ways that only compute it
differently agree to rounding, which conjugate gradients amplify; that of fewer samples is another one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

from admrl_jax import mapped_axis
from admrl_jax.blocks import map_blocks
from admrl_jax.gaussian import Gaussian
from admrl_jax.maml import adapt_and_predict, query_weights, surrogate_loss
from admrl_jax.networks import Policy
from admrl_jax.sharding import TASKS, make_cpu_devices, replicate, spread_tasks, task_mesh
from admrl_jax.training import MetaBatch
from admrl_jax.trpo import conjugate_gradient, fisher_product, mean_kl
from admrl_jax.types import Params
from benchmarks.common import compile_seconds, report, time_in_turn
from benchmarks.outer_step import sample_batch

DAMPING = 0.1
"""Enough that ten products come near the solution, whose directions can then be compared."""


@dataclass(frozen=True)
class Arguments:
    """Seconds of a step direction, computed in several ways."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    num_tasks: int = 0
    """Tasks; 0 takes the paper's (20 in 2D navigation, 40 elsewhere)."""
    num_trajectories: int = 20
    hidden_sizes: tuple[int, ...] = (64, 64)
    products: int = 10
    """Fisher products."""
    num_devices: int = 2
    """CPU devices over which tasks are spread in one of the ways; 1 leaves it out."""
    repeats: int = 5
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def fisher_apart(
    predict: Callable[[Params], Gaussian], params: Params, weights: jax.Array
) -> Callable[[Params], Params]:
    """The Fisher product of a map that is linearised as it is.

    Every intermediate value is kept, and all tasks are pushed before any is pulled.
    """
    outputs, push = jax.linearize(predict, params)
    pull = jax.linear_transpose(push, params)
    kl_gradient = jax.grad(lambda new: mean_kl(outputs, new, weights))
    return lambda vector: pull(jax.jvp(kl_gradient, (outputs,), (push(vector),))[1])[0]


def direction(
    params: Params,
    batch: MetaBatch,
    *,
    policy: Policy,
    products: int,
    way: str = "linearised once",
    task_block: int = 1,
    part: int = 1,
    precision: str = "highest",
    axis_name: str | None = None,
) -> jax.Array:
    """The flat step direction `[P]`.

    Args:
        params: meta-parameters.
        batch: episodes of all tasks.
        policy: Gaussian policy.
        products: Fisher products.
        way: `linearised once`, `everything kept` when linearised, `linearised again` for every product, or
            `hessian` of the divergence.
        task_block: tasks computed together.
        part: the Fisher matrix takes one of so many query episodes.
        precision: of matrix products, as in `jax.default_matmul_precision`.
        axis_name: mapped axis over which tasks are spread.
    """
    with jax.default_matmul_precision(precision):
        predict = functools.partial(adapt_and_predict, policy=policy, inner_lr=0.1, num_adapt_steps=1)
        linearise = functools.partial(fisher_product, predict, params, block=task_block)
        data, weights = (batch.support, batch.query), query_weights(batch.query, axis_name)
        old, pull, shared = linearise(data, weights)
        surrogate = surrogate_loss(batch.query, weights)
        gradient, unravel = ravel_pytree(pull(jax.grad(surrogate)(old, old)))
        if part > 1:
            few = jax.tree.map(lambda x: x[:, ::part], batch.query)
            _, _, shared = linearise((batch.support, few), query_weights(few, axis_name))

        def predict_all(params: Params) -> Gaussian:
            return map_blocks(lambda task: predict(params, task), data, task_block)

        products_of: dict[str, Callable[[Params], Params]] = {
            "linearised once": shared,
            "everything kept": fisher_apart(predict_all, params, weights),
            "linearised again": lambda vector: linearise(data, weights)[2](vector),
            "hessian": lambda vector: jax.jvp(
                jax.grad(lambda p: mean_kl(old, predict_all(p), weights)), (params,), (vector,)
            )[1],
        }

        def damped(vector: jax.Array) -> jax.Array:
            local = ravel_pytree(products_of[way](unravel(vector)))[0]
            return mapped_axis.total(local, axis_name) + DAMPING * vector

        return conjugate_gradient(damped, mapped_axis.total(gradient, axis_name), iterations=products)[0]


def measure(name: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per way."""
    policy, params, batch = sample_batch(
        name, arguments.num_tasks, arguments.num_trajectories, arguments.hidden_sizes
    )
    num_tasks = batch.query.advantage.shape[0]
    solve = functools.partial(direction, policy=policy, products=arguments.products)
    ways: dict[str, Callable] = {
        "linearised once, task by task (what training does on a CPU)": solve,
        "linearised once, all tasks together": functools.partial(solve, task_block=num_tasks),
        "everything kept, pushed and pulled apart, task by task": functools.partial(
            solve, way="everything kept"
        ),
        "linearised again for every product, task by task": functools.partial(solve, way="linearised again"),
        "Hessian of the divergence, task by task": functools.partial(solve, way="hessian"),
        "Hessian of the divergence, all tasks together": functools.partial(
            solve, way="hessian", task_block=num_tasks
        ),
        "Fisher matrix of a quarter of the query episodes": functools.partial(solve, part=4),
    }
    if jax.default_backend() != "cpu":  # a CPU's products are always those of float32
        for precision in ("tensorfloat32", "bfloat16"):
            ways[f"linearised once, all tasks together, products in {precision}"] = functools.partial(
                solve, task_block=num_tasks, precision=precision
            )
    inputs: dict[str, Any] = dict.fromkeys(ways, (params, batch))
    if arguments.num_devices > 1:
        mesh = task_mesh(arguments.num_devices)
        name_of_way = f"over {arguments.num_devices} CPU devices, task by task"
        ways[name_of_way] = spread_tasks(
            lambda params, batch: solve(params, mapped_axis.share(batch, TASKS), axis_name=TASKS), mesh
        )
        inputs[name_of_way] = replicate((params, batch), mesh)
    compiled = {way: compile_seconds(function, *inputs[way]) for way, function in ways.items()}
    runs = {way: functools.partial(run, *inputs[way]) for way, (_, run) in compiled.items()}
    timed = time_in_turn(runs, arguments.repeats)
    first = next(iter(ways))
    reference = np.asarray(runs[first]())
    rows = []
    for way, (seconds, _) in compiled.items():
        found = np.asarray(runs[way]())
        cosine = np.vdot(found, reference) / (np.linalg.norm(found) * np.linalg.norm(reference))
        rows.append(
            {
                "env": name,
                "tasks": num_tasks,
                "samples": int(batch.query.advantage.size),
                "way": way,
                "compile_s": seconds,
                "seconds": median(timed[way]),
                "relative": median(s / r for s, r in zip(timed[way], timed[first], strict=True)),
                "cosine": float(cosine),
            }
        )
    return rows


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.fisher", description=__doc__)
    make_cpu_devices(arguments.num_devices)
    rows = [row for name in arguments.env for row in measure(name, arguments)]
    report(
        "A trust-region direction in several ways",
        rows,
        arguments.json,
        bars=("seconds",),
        labels=("env", "way"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
