"""How seconds and memory of an outer step grow: `python -m benchmarks.scaling`.

Tasks, trajectories and horizon grow by a factor of 16, one at a time, and then the tasks of one size are
spread over more and more devices. Every point is measured in a process of its own, so that its peak of
memory is its own. The exponent is that of the power law fitted to an axis: 1 is linear, 0 constant.
"""

import functools
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from admrl_jax.core.settings import ConfigError
from benchmarks.common import report, start, time_in_turn, write_rows
from benchmarks.train_step import Arguments as StepArguments
from benchmarks.train_step import Step, config_of

AXES = ("tasks", "trajectories", "horizon", "devices")
FACTORS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Arguments:
    """Seconds and peak memory of an outer step of admrl against its sizes."""

    env: str = "halfcheetah_dir"
    simulator: str = "auto"
    axis: tuple[str, ...] = AXES
    """What grows: tasks, trajectories, horizon, devices."""
    num_tasks: int = 8
    num_trajectories: int = 8
    horizon: int = 64
    """Smallest sizes; the others stay there while one grows. On the axis `devices`, 8 times as many tasks."""
    factors: tuple[int, ...] = FACTORS
    num_devices: tuple[int, ...] = (1, 2)
    """Numbers of devices; on a CPU they are made of its cores."""
    repeats: int = 3
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


@dataclass(frozen=True)
class Point:
    """One outer step to measure."""

    axis: str
    size: int
    step: StepArguments


def points(arguments: Arguments) -> list[Point]:
    """What is to be measured."""
    base = StepArguments(
        simulator=arguments.simulator,
        num_tasks=arguments.num_tasks,
        num_trajectories=arguments.num_trajectories,
        horizon=arguments.horizon,
        num_devices=1,
    )
    found = []
    for axis in arguments.axis:
        if axis not in AXES:
            raise ConfigError(f"axis: {axis!r} is not known; accepted: {', '.join(AXES)}")
        if axis == "devices":
            wide = replace(base, num_tasks=8 * base.num_tasks)
            found += [Point(axis, n, replace(wide, num_devices=n)) for n in arguments.num_devices]
            continue
        name = axis if axis == "horizon" else f"num_{axis}"
        for factor in arguments.factors:
            size = factor * getattr(base, name)
            found.append(Point(axis, size, replace(base, **{name: size})))
    return found


def resident_mib() -> float:
    """The largest memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_alone(point: Point, name: str, repeats: int) -> dict[str, Any]:
    """`measure` for a process of its own."""
    start(point.step.num_devices)
    return measure(point, Step(config_of(name, point.step)), repeats)


def measure(point: Point, step: Step, repeats: int) -> dict[str, Any]:
    """One row, without the exponents."""
    state = step.init()
    # Compiles all programs, and runs each once.
    step.pieces(state)
    timed = time_in_turn({"step": functools.partial(step.whole, state)}, repeats)["step"]
    return {
        "axis": point.axis,
        "size": point.size,
        "tasks": point.step.num_tasks,
        "trajectories": point.step.num_trajectories,
        "horizon": point.step.horizon,
        "devices": point.step.num_devices,
        "compile_s": sum(step.clock.compiling.values()),
        "seconds": float(np.median(timed)),
        "program_mib": max(step.clock.mib.values()),
        "resident_mib": resident_mib(),
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | str:
    """Slope of `log(values)` over `log(sizes)`; `-` where there is none."""
    if len(set(sizes)) < 2 or min(values) <= 0:
        return "-"
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def with_exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts the exponents of its axis into each row."""
    fitted = {}
    for axis in {row["axis"] for row in rows}:
        mine = [row for row in rows if row["axis"] == axis]
        sizes = [row["size"] for row in mine]
        fitted[axis] = {
            f"{name}_exponent": exponent(sizes, [row[column] for row in mine])
            for name, column in (("seconds", "seconds"), ("memory", "program_mib"))
        }
    return [row | fitted[row["axis"]] for row in rows]


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.scaling", description=__doc__)
    rows = []
    title = f"Outer step of admrl on {arguments.env} against its sizes"
    for point in points(arguments):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            try:
                rows.append(fresh.submit(measure_alone, point, arguments.env, arguments.repeats).result())
            except BrokenProcessPool:
                words = f"{point.axis} {point.size}: its process was ended, as for want of memory"
                print(f"left out: {words}", file=sys.stderr)
                continue
        write_rows(title, with_exponents(rows), arguments.json)
    if not rows:
        raise SystemExit("error: no point was measured")
    report(
        title,
        with_exponents(rows),
        arguments.json,
        bars=("seconds",),
        labels=("axis", "size"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
