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

from admrl_jax.attacks import Budget, no_attack
from admrl_jax.config import METHODS
from admrl_jax.evaluation import evaluate
from benchmarks.common import report
from experiments.trained import load_policy


@dataclass(frozen=True)
class Arguments:
    """Clean return of every method of a run of 2D navigation on new goals."""

    run: Path = Path("results/navigation_2d")
    """Run directory."""
    method: tuple[str, ...] = METHODS
    goals: int = 2000
    """A multiple of 200, which are evaluated at a time."""
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
    config, env, policy, params = load_policy(arguments.run, method)
    goals = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(arguments.seed), arguments.goals))
    maml = replace(config.train.maml, num_trajectories=config.eval.num_trajectories)

    @jax.jit
    def returns(params, key, goals):
        clean = Budget(0.0)
        return evaluate(
            params,
            (),
            key,
            goals,
            env=env,
            policy=policy,
            attack=no_attack(),
            support_budget=clean,
            query_budget=clean,
            config=maml,
        ).returns

    rows = []
    for index, seed in enumerate(config.seeds):
        one = jax.tree.map(lambda x, i=index: x[i], params)
        blocks = [
            np.asarray(returns(one, jax.random.key(start), goals[start : start + 200]))
            for start in range(0, arguments.goals, 200)
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
