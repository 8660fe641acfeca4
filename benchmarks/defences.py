"""What training under a defence costs: `python -m benchmarks.defences`.

One outer step of each method, as a run takes it, beside one of plain MAML. All are timed in turn in one
process, so that a drifting machine touches all alike. A method's opponents learn within its step.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from admrl_jax.core.settings import ConfigError
from admrl_jax.methods import METHODS
from benchmarks import train_step
from benchmarks.common import report, start, time_in_turn

PLAIN = next(iter(METHODS))
"""What all others are compared with: no defence."""
COMPARED = tuple(name for name, method in METHODS.items() if method.learner == METHODS[PLAIN].learner)


@dataclass(frozen=True)
class Arguments:
    """Seconds of an outer step of each method, and their ratio to plain MAML's."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    methods: tuple[str, ...] = COMPARED
    """Compared with the first of them."""
    preset: str = "paper"
    """Whose settings: paper, quick or hardened."""
    simulator: str = "auto"
    num_tasks: int = 0
    """Other sizes than the preset's; 0 keeps them."""
    num_trajectories: int = 0
    horizon: int = 0
    repeats: int = 5
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def measure(name: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per method.

    Raises:
        ConfigError: a method is not known.
    """
    for method in arguments.methods:
        if method not in METHODS:
            raise ConfigError(f"methods: {method!r} is not known; accepted: {', '.join(METHODS)}")
    sizes = train_step.Arguments(
        preset=arguments.preset,
        simulator=arguments.simulator,
        num_tasks=arguments.num_tasks,
        num_trajectories=arguments.num_trajectories,
        horizon=arguments.horizon,
    )
    config = train_step.config_of(name, sizes)
    steps = {m: train_step.Step(replace(config, methods=(m,))) for m in dict.fromkeys(arguments.methods)}
    takes = {method: functools.partial(step.whole, step.init()) for method, step in steps.items()}
    timed = time_in_turn(takes, arguments.repeats)
    first = timed[arguments.methods[0]]
    return [
        {
            "env": name,
            "tasks": config.sampling.num_tasks,
            "method": method,
            "step_s": median(seconds),
            "relative": median(s / f for s, f in zip(seconds, first, strict=True)),
        }
        for method, seconds in timed.items()
    ]


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.defences", description=__doc__)
    start()
    rows = [row for name in arguments.env for row in measure(name, arguments)]
    report(
        "An outer step under each defence",
        rows,
        arguments.json,
        bars=("relative",),
        labels=("env", "method"),
        unit="times the step of plain training",
    )


if __name__ == "__main__":
    main()
