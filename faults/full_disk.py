"""Runs a toy run on a disk that fills up: `python -m faults.full_disk` (Linux, as root).

On a tmpfs with less and less room left the run must end with exit code 2 and one line that says why;
with room again, `--resume` must end with the bits of an undisturbed run. Then the same disk is made
read-only.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from faults.damaged import toy
from faults.toy_runs import differences, fingerprint, write_result


@dataclass(frozen=True)
class Arguments:
    """How often the disk is full."""

    env: str = "navigation_2d"
    cases: int = 8
    """Rooms tried, evenly from almost none to almost all that a run needs."""
    name: str = "full_disk"
    """Of the file under `faults/results/`."""


def mount(disk: Path, options: str) -> None:
    """Mounts a tmpfs, or mounts it again with other options."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def size_of(folder: Path) -> int:
    """KiB that a folder takes."""
    return int(subprocess.check_output(["du", "-sk", str(folder)]).split()[0])


def try_room(env: str, disk: Path, room: int, reference: dict[str, str]) -> list[str]:
    """Fills a disk of `room` KiB, enlarges it, goes on; what went wrong."""
    disk.mkdir()
    mount(disk, f"size={room}k")
    try:
        wrong = []
        code, said = toy(env, disk / "run")
        errors = [line for line in said.splitlines() if "error" in line.lower()]
        if code != 2 or len(errors) != 1 or "No space left" not in errors[0] or "Traceback" in said:
            wrong.append(f"room {room}: exit code {code}, {errors or said[-500:]}")
        mount(disk, "remount,size=64m")
        code, said = toy(env, disk / "run")
        unequal = differences(disk / "run", reference) if code == 0 else [said[-500:]]
        if unequal:
            wrong.append(f"room {room}, going on: exit code {code}, {unequal}")
        return wrong
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def try_read_only(env: str, disk: Path) -> list[str]:
    """A run on a disk that cannot be written; what went wrong."""
    disk.mkdir()
    mount(disk, "size=1m,ro")
    try:
        code, said = toy(env, disk / "run")
        is_right = code == 2 and len(said.splitlines()) == 1 and "Read-only" in said
        return [] if is_right else [f"read-only: exit code {code}, {said[-500:]}"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main(arguments: Arguments) -> int:
    """Returns 1 if anything was lost."""
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        toy(arguments.env, folder / "whole")
        reference, needed = fingerprint(folder / "whole"), size_of(folder / "whole")
        rooms = [max(4, needed * i // arguments.cases) for i in range(arguments.cases)]
        lost = []
        for i, room in enumerate(rooms):
            lost += try_room(arguments.env, folder / f"disk{i}", room, reference)
            print(f"{i + 1}: {room} KiB", file=sys.stderr, flush=True)
        read_only = try_read_only(arguments.env, folder / "read-only")
    result = {
        "env": arguments.env,
        "KiB needed": needed,
        "KiB given": rooms,
        "lost": lost,
        "read-only refused in one line": not read_only,
        "seconds": round(time.time() - began),
    }
    write_result(arguments.name, result)
    return int(bool(lost or read_only))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
