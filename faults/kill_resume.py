"""Kills toy runs with SIGKILL and goes on with them: `python -m faults.kill_resume`.

Three kinds of kill in random order: half of them at any moment, a quarter in the middle of writing a
checkpoint, a quarter in the middle of writing results and report. A run is killed and resumed until it
gets to its end; then its results, metrics, parameters and returns must equal those of a run that nobody
touched, bit for bit.
"""

import csv
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from faults.toy_runs import differences, fingerprint, finish, start, write_result

KINDS = ("any moment", "checkpoint write", "any moment", "report write")
"""Of every four kills."""


@dataclass(frozen=True)
class Arguments:
    """What to kill and how often."""

    envs: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    kills: int = 30
    """Kills per environment."""
    seed: int = 0
    """Of the moments."""
    minutes: float = 60.0
    """No kill is started after so many minutes per environment."""
    name: str = "kill_resume"
    """Of the file under `faults/results/`."""


def draw_kinds(kills: int, rng: random.Random) -> list[str]:
    """The kind of every kill.

    Not drawn one by one as they come: a run is more often at its end before a random moment than before
    its report, and is then not killed.
    """
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    return kinds


def progress_of(run_dir: Path) -> tuple[str, int]:
    """How far a run has got: stage, and the newest step of its metrics (0 before the first)."""
    metrics = run_dir / "metrics.csv"
    lines = metrics.read_text().split("\n") if metrics.exists() else []
    # Behind the last line's end may be a torn line; the first is the header.
    rows = list(csv.reader(lines[1:-1]))
    if not rows:
        return "before the first step", 0
    step = int(rows[-1][3])
    # Stages that add no rows, the last one first.
    later = {"results.json": "report", "returns/curve.*": "curves", "returns/*": "meta-test"}
    reached = [stage for files, stage in later.items() if any(run_dir.glob(files))]
    return (reached or [rows[-1][2]])[0], step


def is_writing_checkpoint(run_dir: Path) -> bool:
    """Whether a checkpoint is half written: not renamed yet, or without its manifest."""
    try:
        return any(
            "tmp" in path.name or not (path / "manifest.json").exists()
            for path in (run_dir / "checkpoints").glob("*/*")
            if path.parent.name != "damaged" and (path.name[0].isdigit())
        )
    except FileNotFoundError:
        return False  # a checkpoint was deleted while we looked


def is_writing_report(run_dir: Path, began: float) -> bool:
    """Whether results of this process are there and its report is not."""
    results, report = run_dir / "results.json", run_dir / "report.md"
    is_new = [path.exists() and path.stat().st_mtime >= began for path in (results, report)]
    return is_new == [True, False]


def kill_once(process: subprocess.Popen[str], run_dir: Path, kind: str, delay: float) -> bool:
    """Waits for the moment and kills; False where the run came to its end before."""
    began = time.time()
    if kind == "any moment":
        while time.time() < began + delay and process.poll() is None:
            time.sleep(0.01)
    else:
        # Not at the first checkpoint that comes by.
        ready = began + (0.7 * delay if kind == "checkpoint write" else 0.0)
        is_moment = is_writing_checkpoint if kind == "checkpoint write" else is_writing_report
        arguments = () if kind == "checkpoint write" else (began,)
        while process.poll() is None and not (time.time() > ready and is_moment(run_dir, *arguments)):
            time.sleep(0.001)
        time.sleep(delay * (0.001 if kind == "checkpoint write" else 0.05))
    is_killed = process.poll() is None
    process.kill()
    process.communicate()
    return is_killed


def torment(env: str, arguments: Arguments, folder: Path, rng: random.Random) -> dict[str, Any]:
    """All kills of one environment."""
    cache = folder / "cache"
    finish(env, folder / "whole", cache)
    reference = fingerprint(folder / "whole")
    began = time.time()
    finish(env, folder / "again", cache)
    seconds = time.time() - began
    unequal: dict[str, list[str]] = {}
    if differences(folder / "again", reference):
        unequal["again"] = differences(folder / "again", reference)
    kinds = draw_kinds(arguments.kills, rng)
    kills: list[tuple[str, str, int]] = []
    runs, end = 0, time.time() + 60 * arguments.minutes
    while len(kills) < arguments.kills and time.time() < end:
        run_dir, is_finished = folder / f"run{runs}", False
        while not is_finished and len(kills) < arguments.kills and time.time() < end:
            kind = kinds[len(kills)]
            # The first part of a process is imports; a kill there is a kill between two runs.
            delay = rng.uniform(0.3, 1.0) * seconds
            if kill_once(start(env, run_dir, cache), run_dir, kind, delay):
                kills.append((kind, *progress_of(run_dir)))
                print(f"{env}: kill {len(kills)}, run {runs}: {kills[-1]}", file=sys.stderr, flush=True)
            else:
                is_finished = True
        finish(env, run_dir, cache)
        runs += 1
        if differences(run_dir, reference):
            unequal[run_dir.name] = differences(run_dir, reference)
    return {
        "kills": len(kills),
        "kinds": dict(Counter(kind for kind, _, _ in kills)),
        "had got to": dict(Counter(stage for _, stage, _ in kills)),
        "each kill": [f"{kind}: {stage}, step {step}" for kind, stage, step in kills],
        "runs finished after kills": runs,
        "runs equal bit for bit": runs - len([name for name in unequal if name != "again"]),
        "same seed twice is equal": "again" not in unequal,
        "unequal": unequal,
        "seconds of an undisturbed run": round(seconds, 1),
    }


def main(arguments: Arguments) -> int:
    """Returns 1 if anything was lost."""
    results: dict[str, Any] = {"seed": arguments.seed}
    for env in arguments.envs:
        with tempfile.TemporaryDirectory() as folder:
            results[env] = torment(env, arguments, Path(folder), random.Random(arguments.seed))
        write_result(arguments.name, results)
    return int(any(results[env]["unequal"] for env in arguments.envs))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
