"""Damages every file of a toy run's newest checkpoint and goes on: `python -m faults.damaged`.

Each file in turn is truncated, emptied, loses a bit or is removed. The run must say which checkpoint
it was and end with the bits of an undisturbed run.
"""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from experiments.train import run
from faults.toy_runs import TOY, differences, fingerprint, write_result


@dataclass(frozen=True)
class Arguments:
    """What to damage."""

    env: str = "navigation_2d"
    stage: str = "pretrain-pretrain"
    """The stage whose newest checkpoint is damaged; the later ones are done already."""
    minutes: float = 60.0
    """No case is started after so many minutes."""
    name: str = "damaged"
    """Of the file under `faults/results/`."""


def truncate(path: Path) -> None:
    """Keeps the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Keeps nothing."""
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """Changes one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, empty, flip_a_bit, os.remove)


def toy(env: str, run_dir: Path) -> tuple[int, str]:
    """Runs or goes on in this process: exit code and what it said."""
    said = io.StringIO()
    again = ["--resume"] if run_dir.exists() else []
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run([f"--env={env}", *TOY, f"--run-dir={run_dir}", *again])
    return code, said.getvalue()


def main(arguments: Arguments) -> int:
    """Returns 1 if anything was lost."""
    began, lost = time.time(), []
    cases = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        whole = folder / "whole"
        toy(arguments.env, whole)
        reference = fingerprint(whole)
        stage = Path("checkpoints") / arguments.stage
        newest = max((whole / stage).iterdir(), key=lambda path: int(path.name))
        files = sorted(path.relative_to(whole) for path in newest.rglob("*") if path.is_file())
        for file in files:
            for damage in DAMAGES:
                if time.time() > began + 60 * arguments.minutes:
                    break
                if (whole / file).stat().st_size == 0 and damage is not os.remove:
                    continue  # nothing to damage
                shutil.rmtree(folder / "damaged", ignore_errors=True)
                shutil.copytree(whole, folder / "damaged")
                damage(folder / "damaged" / file)
                code, said = toy(arguments.env, folder / "damaged")
                unequal = differences(folder / "damaged", reference)
                is_named = str(stage / newest.name) in said and "is damaged" in said
                cases += 1
                if code or unequal or not is_named:
                    lost.append(f"{file}, {damage.__name__}: {code}, {unequal}, named: {is_named}")
                print(f"{cases}: {file} {damage.__name__}", file=sys.stderr, flush=True)
    result = {"env": arguments.env, "files": len(files), "cases": cases, "survived": cases - len(lost)}
    write_result(arguments.name, {**result, "lost": lost, "seconds": round(time.time() - began)})
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
