"""2D navigation on goals that no run has seen: `python -m benchmarks.new_goals`.

The meta-test's goals are few, and goals differ by far more than methods do. Here the policies of a finished
run adapt to thousands of new ones, without an attack. The bound is the best return on the same goals for
who knows a goal's direction and not its distance, walks at once and without noise to one distance, and stays.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.types import Params, Task
from admrl_jax.evaluation import evaluate
from admrl_jax.methods import PAPER_METHODS
from admrl_jax.runs.artefact import load_policy
from admrl_jax.sampling import expose
from admrl_jax.training import Setup
from benchmarks.common import report, start

BLOCK = 200
"""Goals that are evaluated at a time."""


@dataclass(frozen=True)
class Arguments:
    """Clean return of every method of a run of 2D navigation on new goals."""

    run: Path = Path("results/navigation_2d")
    """Run directory, or its `policies.npz`."""
    method: tuple[str, ...] = PAPER_METHODS
    goals: int = 2000
    seed: int = 777
    """Of the goals."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def direction_bound(goals: np.ndarray, horizon: int) -> float:
    """The best return for one distance, whatever the goal `[G, 2]`: that of the median distance."""
    distance = np.linalg.norm(goals, axis=-1)
    return float(-horizon * np.abs(distance - np.median(distance)).mean())


def measure(method: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per seed of the run."""
    trained = load_policy(arguments.run, method)
    config, env = trained.config, trained.env
    goals = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(arguments.seed), arguments.goals))
    sampling = replace(config.sampling, num_trajectories=config.eval.num_trajectories)
    setup = Setup(env, trained.policy, trained.learner, sampling)

    @jax.jit
    def returns(params: Params, key: jax.Array, goals: Task) -> jax.Array:
        clean = expose(no_attack(), (), Budget(0.0), num_tasks=goals.shape[0])
        return evaluate(params, key, goals, clean, setup=setup).returns

    rows = []
    for index, seed in enumerate(config.seeds):
        params = jax.tree.map(lambda x, i=index: x[i], trained.params)
        blocks = [
            np.asarray(returns(params, jax.random.key(start), goals[start : start + BLOCK]))
            for start in range(0, arguments.goals, BLOCK)
        ]
        # One return per goal: the mean of its episodes before, and after the last adaptation step.
        found = np.concatenate(blocks).mean(axis=-1)
        rows.append(
            {
                "method": method,
                "seed": seed,
                "goals": arguments.goals,
                "before": float(found[:, 0].mean()),
                "after": float(found[:, -1].mean()),
                "standard_error": float(found[:, -1].std(ddof=1) / np.sqrt(arguments.goals)),
                "direction_bound": direction_bound(np.asarray(goals), env.horizon),
            }
        )
    return rows


def main() -> None:
    """Runs the evaluation from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.new_goals", description=__doc__)
    start()
    rows = [row for method in arguments.method for row in measure(method, arguments)]
    report(
        "2D navigation on new goals",
        rows,
        arguments.json,
        bars=("after",),
        labels=("method", "seed"),
        unit="return",
    )


if __name__ == "__main__":
    main()
