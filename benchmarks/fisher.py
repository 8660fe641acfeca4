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
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

from admrl_jax.core.linalg import conjugate_gradient
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Params
from admrl_jax.learners.base import LearnerState
from admrl_jax.learners.maml_trpo import outer_objective
from admrl_jax.learners.trpo import Objective, linearise
from admrl_jax.runs.devices import SAME, Devices, tasks_at
from admrl_jax.training import Setup
from benchmarks.common import compile_spread, report, start, time_in_turn
from benchmarks.outer_step import sample_batch

DAMPING = 0.1
"""Enough that ten products come near the solution, whose directions can then be compared."""


@dataclass(frozen=True)
class Arguments:
    """Seconds of a step direction, computed in several ways."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    num_tasks: int = 0
    """Tasks; 0 takes the preset's."""
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
    predict: Callable[[Params], Any], params: Params, kl: Callable[[Any, Any], jax.Array]
) -> Callable[[Params], Params]:
    """The Fisher product of a map that is linearised as it is.

    Every intermediate value is kept, and all tasks are pushed before any is pulled.
    """
    outputs, push = jax.linearize(predict, params)
    pull = jax.linear_transpose(push, params)
    kl_gradient = jax.grad(lambda new: kl(outputs, new))
    return lambda vector: pull(jax.jvp(kl_gradient, (outputs,), (push(vector),))[1])[0]


def direction(
    params: Params,
    batch: MetaBatch,
    *,
    setup: Setup,
    products: int,
    way: str = "linearised once",
    part: int = 1,
    precision: str = "highest",
    axis: TaskAxis = TaskAxis(1),
) -> jax.Array:
    """The flat step direction `[P]`.

    Args:
        params: meta-parameters.
        batch: episodes of this device's tasks.
        setup: policy and learner.
        products: Fisher products.
        way: `linearised once`, `everything kept` when linearised, `linearised again` for every product, or
            `hessian` of the divergence.
        part: the Fisher matrix takes one of so many query episodes.
        precision: of matrix products, as in `jax.default_matmul_precision`.
        axis: how tasks are computed.
    """

    def objective_of(batch: MetaBatch) -> tuple[Any, Objective]:
        state, key = LearnerState(params, ()), jax.random.key(0)
        return outer_objective(setup.learner, setup.policy, state, key, batch, None, axis)

    with jax.default_matmul_precision(precision):
        data, objective = objective_of(batch)
        old, pull, shared = linearise(params, data, objective, axis)
        gradient, unravel = ravel_pytree(pull(jax.grad(objective.loss)(old, old)))
        if part > 1:
            few = jax.tree.map(lambda x: x[:, ::part], batch.query)
            shared = linearise(params, *objective_of(batch._replace(query=few)), axis).product

        def predict_all(params: Params) -> Any:
            return axis.map(lambda group: objective.predict(params, group), data)

        def kl(old: Any, new: Any) -> jax.Array:
            return jnp.sum(jax.vmap(objective.kl)(old, new, data))

        products_of: dict[str, Callable[[Params], Params]] = {
            "linearised once": shared,
            "everything kept": fisher_apart(predict_all, params, kl),
            "linearised again": lambda vector: linearise(params, data, objective, axis).product(vector),
            "hessian": lambda vector: jax.jvp(
                jax.grad(lambda p: kl(old, predict_all(p))), (params,), (vector,)
            )[1],
        }

        def damped(vector: jax.Array) -> jax.Array:
            local = ravel_pytree(products_of[way](unravel(vector)))[0]
            return axis.total(local) + DAMPING * vector

        return conjugate_gradient(damped, axis.total(gradient), iterations=products)[0]


def measure(name: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per way."""
    setup, state, batch = sample_batch(
        name, arguments.num_tasks, arguments.num_trajectories, arguments.hidden_sizes
    )
    params, together = state.learner.meta_params, TaskAxis()
    solve = functools.partial(direction, setup=setup, products=arguments.products)
    ways: dict[str, Callable] = {
        "linearised once, task by task (what training does on a CPU)": solve,
        "linearised once, all tasks together": functools.partial(solve, axis=together),
        "everything kept, pushed and pulled apart, task by task": functools.partial(
            solve, way="everything kept"
        ),
        "linearised again for every product, task by task": functools.partial(solve, way="linearised again"),
        "Hessian of the divergence, task by task": functools.partial(solve, way="hessian"),
        "Hessian of the divergence, all tasks together": functools.partial(
            solve, way="hessian", axis=together
        ),
        "Fisher matrix of a quarter of the query episodes": functools.partial(solve, part=4),
    }
    if jax.default_backend() != "cpu":  # a CPU's products are always those of float32
        for precision in ("TF32_TF32_F32", "BF16_BF16_F32"):
            ways[f"linearised once, all tasks together, products in {precision}"] = functools.partial(
                solve, axis=together, precision=precision
            )
    where = dict.fromkeys(ways, Devices())
    if arguments.num_devices > 1:
        several = Devices(arguments.num_devices, 1)
        name_of_way = f"over {arguments.num_devices} CPU devices, task by task"
        ways[name_of_way] = functools.partial(solve, axis=several.axis)
        where[name_of_way] = several
    compiled = {
        way: compile_spread(where[way], function, (SAME, tasks_at(0)), SAME, params, batch)
        for way, function in ways.items()
    }
    runs = {way: run for way, (_, run) in compiled.items()}
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
                "tasks": setup.sampling.num_tasks,
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
    start(arguments.num_devices)
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
