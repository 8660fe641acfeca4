"""A sweep of attackers with one set of programs, beside a Python loop: `python -m benchmarks.sweep`.

Attackers of several victims (seeds of a committed run), at several radii, from several starts. *Together*
is how a suite trains them: its programs are compiled once, serve every victim, radius and start, and are
spread over the devices. *One by one* is a loop that trains each attacker by itself, with programs of its
own, as calls of `train_attacker` do. *One by one, compiled once* is a loop over single attackers through
shared programs. All three train the same attackers.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from admrl_jax.attacking import AttackerTraining
from admrl_jax.attacks.registry import make_attack_trainer
from admrl_jax.envs.base import raw_units
from admrl_jax.runs.artefact import Trained, load_policy
from admrl_jax.runs.devices import make_lanes
from admrl_jax.training import Setup
from benchmarks.common import report, start, timing

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled."""
PROGRAM = "block"
"""In the name of every program of `Lanes`; single operations are not counted."""
TOGETHER, ONE_BY_ONE, COMPILED_ONCE = "together", "one by one", "one by one, compiled once"
Returns = np.ndarray
"""`[victims, radii x starts]`, what every attacker left in its last batch."""


@dataclass(frozen=True)
class Arguments:
    """Seconds and compiled programs of a sweep of attackers, trained in three ways."""

    runs: tuple[Path, ...] = (Path("results/navigation_2d"), Path("results/halfcheetah_dir"))
    """With the victims."""
    method: str = "maml"
    seeds: int = 3
    """Victims of a run at most."""
    attacks: tuple[str, ...] = ("pipeline",)
    """That learn."""
    radii: tuple[float, ...] = (0.2, 0.5, 0.8)
    starts: int = 2
    updates: int = 3
    """Of every attacker."""
    num_tasks: int = 8
    """Per update."""
    num_trajectories: int = 20
    """Episodes of a task."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


@contextmanager
def counting() -> Iterator[list[float]]:
    """Seconds of every program of attackers that is compiled within."""
    found: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED and PROGRAM in str(kwargs.get("fun_name")):
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def ways(victims: Sequence[Trained], attack: str, arguments: Arguments) -> dict[str, Callable[[], Returns]]:
    """The three ways, each a function that trains all attackers.

    Args:
        victims: of one run.
        attack: its name.
        arguments: sizes.
    """
    first = victims[0]
    sizes = {"num_tasks": arguments.num_tasks, "num_trajectories": arguments.num_trajectories}
    sampling = replace(first.config.sampling, **sizes)
    setup = Setup(first.env, first.policy, first.learner, sampling)
    trainer = make_attack_trainer(attack, setup.victim)
    key, units, shape = jax.random.key(0), raw_units(setup.env), (arguments.radii, range(arguments.starts))

    def train(training: AttackerTraining, victim: Trained, pairs: Iterable[tuple[float, int]]) -> list[float]:
        radii, numbers = map(list, zip(*pairs, strict=True))
        states = training.start(key, radii, units=units, inputs=victim.inputs, numbers=numbers)
        left = np.zeros(0)
        for number in range(arguments.updates):
            states, metrics = training.step(states, victim.params, key, number)
            left = metrics["train/post_return"]
        return left.tolist()

    def together() -> Returns:
        training = AttackerTraining(trainer, setup, lanes=make_lanes())
        return np.array([train(training, victim, itertools.product(*shape)) for victim in victims])

    def one_by_one(make: Callable[[], AttackerTraining]) -> Returns:
        pairs = list(itertools.product(*shape))
        return np.array([[train(make(), victim, [pair])[0] for pair in pairs] for victim in victims])

    def alone() -> AttackerTraining:
        return AttackerTraining(trainer, setup)

    def compiled_once() -> Returns:
        training = alone()
        return one_by_one(lambda: training)

    return {TOGETHER: together, COMPILED_ONCE: compiled_once, ONE_BY_ONE: lambda: one_by_one(alone)}


def measure(run: Path, attack: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per way; each is timed once, from nothing compiled.

    Raises:
        ArtefactError: there is no such run or method.
    """
    seeds = load_policy(run, arguments.method).config.seeds[: arguments.seeds]
    victims = [load_policy(run, arguments.method, seed=seed) for seed in seeds]
    rows, returns = [], []
    for name, sweep in ways(victims, attack, arguments).items():
        with counting() as compiled, timing():
            begin = time.perf_counter()
            returns.append(sweep())
            seconds = time.perf_counter() - begin
        rows.append(
            {
                "env": victims[0].config.env.name,
                "attack": attack,
                "attackers": returns[0].size,
                "way": name,
                "seconds": seconds,
                "programs": len(compiled),
                "compile_s": sum(compiled),
                "times_together": seconds / rows[0]["seconds"] if rows else 1.0,
                "largest_difference": float(np.max(np.abs(returns[-1] - returns[0]))),
            }
        )
    return rows


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.sweep", description=__doc__)
    start()
    rows = [row for run in arguments.runs for a in arguments.attacks for row in measure(run, a, arguments)]
    report(
        "A sweep of attackers, from nothing compiled",
        rows,
        arguments.json,
        bars=("seconds", "compile_s"),
        labels=("env", "attack", "way"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
