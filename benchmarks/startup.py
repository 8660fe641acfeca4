"""From the command to the first training step: `python -m benchmarks.startup`.

An experiment is started as a user would, in a process of its own, with an empty folder for compiled
programs and then with the folder that the first start has filled.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import report, timing

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Arguments:
    """Seconds from the command to the end of the first outer step, cold and warm."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    preset: str = "paper"
    repeats: int = 3
    """Warm starts; the cold one is timed once."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def start_once(name: str, preset: str, cache: Path) -> tuple[float, float]:
    """Seconds until the first row of `metrics.csv`, and until the end of the second outer step's row.

    Their difference is what one outer step takes, which is no start-up.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        metrics = directory / "metrics.csv"
        command = [
            *(sys.executable, "-m", f"experiments.{name}", f"--preset={preset}", f"--run-dir={directory}"),
            *("--until=pretrain", "--schedule.pretrain-steps=2", "--schedule.chunk-steps=1", "--seeds=0"),
            *("--schedule.checkpoint-every=2", "--schedule.snapshot-every=2"),
            f"--compilation-cache={cache}",
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        reached: list[float] = []
        while len(reached) < 2:
            lines = metrics.read_text().count("\n") if metrics.exists() else 0
            if lines - 1 > len(reached):
                reached.append(time.perf_counter() - start)
            elif process.poll() is not None:
                errors = process.stderr.read().decode() if process.stderr else ""
                raise SystemExit(f"error: {' '.join(command)} ended early: {errors}")
            time.sleep(0.005)
        process.communicate()
    return reached[0], reached[1] - reached[0]


def measure(name: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A cold and a warm row."""
    with tempfile.TemporaryDirectory() as folder, timing():
        starts = [start_once(name, arguments.preset, Path(folder)) for _ in range(1 + arguments.repeats)]
    rows = []
    for label, chosen in (("cold", starts[:1]), ("warm", starts[1:])):
        first = statistics.median(seconds for seconds, _ in chosen)
        step = statistics.median(seconds for _, seconds in chosen)
        rows.append(
            {
                "env": name,
                "preset": arguments.preset,
                "start": label,
                "to_first_step_s": first,
                "one_step_s": step,
                "start_up_s": first - step,
            }
        )
    return rows


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.startup", description=__doc__)
    rows = [row for name in arguments.env for row in measure(name, arguments)]
    report(
        "From the command to the end of the first outer step",
        rows,
        arguments.json,
        bars=("start_up_s", "one_step_s"),
        labels=("env", "start"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
