"""Everything that is measured on an accelerator, in one call: `python -m benchmarks.accelerator FOLDER`.

Compilation takes most of the time on an accelerator, so a few processes run side by side. One times at a time
(a lock); the others compile meanwhile. A whole run holds the lock from start to end. More than a few
processes starve each other: a device takes turns between them. Compiled programs are kept in the folder,
for a later call.

Each part is a process of its own, so that one that fails loses nothing of the others. It leaves its figures
as JSON (and a picture) and its output as a log in the folder; `summary.json` says how each part ended.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from admrl_jax.core.settings import COUNT, POSITIVE, ConfigError, check_fields
from benchmarks.common import LOCK, machine, timing

ROOT = Path(__file__).parent.parent
CHEETAH = "--env=halfcheetah_dir"
LOCK_FILE = "lock"


@dataclass(frozen=True)
class Arguments:
    """Runs all benchmarks on the device that is here."""

    folder: tyro.conf.Positional[Path]
    """Where the figures go."""
    tiny: bool = False
    """Toy sizes, to try the script where there is no accelerator."""
    only: tuple[str, ...] = ()
    """Names of parts to run; all by default."""
    together: Annotated[int, COUNT] = 3
    """Processes at a time; one of them times."""
    seconds: Annotated[float, POSITIVE] = 540
    """Time limit of all parts: those that have not ended by then are stopped, and can be asked for again."""


def parts(tiny: bool) -> dict[str, list[str]]:
    """Module and arguments of each part, most wanted first; `command_of` adds where its figures or run go."""
    sizes = ("2", "4") if tiny else ("40", "64", "128", "256")
    trajectories = ("2", "2") if tiny else ("20", "64", "128", "256")
    horizons = ("2", "3") if tiny else ("100", "50", "20", "20")
    batches = ["--num-tasks", *sizes, "--num-trajectories", *trajectories, "--horizon", *horizons]
    clean = ["--attack=none", "--gymnasium", "--repeats=3"]
    toy = ["--num-tasks=2", "--num-trajectories=2"] if tiny else []
    short = [*toy, "--horizon=4"] if tiny else []
    step = ["benchmarks.train_step", CHEETAH, *([*toy, "--horizon=8", "--repeats=2"] if tiny else [])]
    quick = ["--preset=quick"] if tiny else []
    learn = ["experiments.halfcheetah_dir", "--methods=maml", "--seeds=0", "--until=pretrain", *quick]
    learn += ["--schedule.pretrain-steps", "1" if tiny else "60"]

    def rollout(env: str, simulator: str) -> list[str]:
        return ["benchmarks.rollout", f"--env={env}", f"--simulator={simulator}", *batches, *clean]

    protocol = ["benchmarks.protocol", CHEETAH, "--repeats=2"]
    if tiny:
        protocol = ["benchmarks.protocol", "--env=navigation_2d", *quick, "--seeds=2", "--lanes=8"]
    engine, attacks = "mujoco" if tiny else "mjx", ("--attack", "adgan", "fgsm", "--gymnasium")
    start = ["benchmarks.startup", *(("--env=navigation_2d", *quick, "--repeats=1") if tiny else ())]
    return {
        "rollout-mjx": rollout("halfcheetah_dir", "mjx"),
        "train_step-mjx": [*step, "--simulator=mjx"],
        "rollout-mujoco": rollout("halfcheetah_dir", "mujoco"),
        "train_step-mujoco": [*step, "--simulator=mujoco"],
        "navigation": ["experiments.navigation_2d", "--seeds", *("01" if tiny else "0123456789"), *quick],
        "rollout-ant-mjx": rollout("ant_dir", "mjx"),
        "protocol-mjx": [*protocol, "--simulator=auto" if tiny else "--simulator=mjx"],
        "protocol-mujoco": [*protocol, "--simulator=auto" if tiny else "--simulator=mujoco"],
        "fisher": ["benchmarks.fisher", CHEETAH, "--num-devices=1", *toy],
        "learn-mjx": [*learn, "--simulator=mjx"],
        "learn-mujoco": [*learn, "--simulator=mujoco"],
        "outer_step": ["benchmarks.outer_step", "--task-block", *(("0",) if tiny else ("0", "1")), *toy],
        "rollout-brax": rollout("halfcheetah_dir", "brax-spring"),
        "rollout-attacks": [
            *("benchmarks.rollout", CHEETAH, f"--simulator={engine}", *attacks, *short, "--repeats=3")
        ],
        "rollout-ant-mujoco": rollout("ant_dir", "mujoco"),
        "startup": start,
    }


def command_of(name: str, part: Sequence[str], folder: Path) -> list[str]:
    """The command of a part that leaves its figures, or its run, in `folder`."""
    where = [f"--json={folder / name}.json"]
    if part[0].startswith("experiments."):
        where = [f"--run-dir={folder / name}", "--resume", f"--compilation-cache={folder / 'programs'}"]
    return [sys.executable, "-m", *part, *where]


def run_part(
    name: str, command: list[str], folder: Path, until: float, stop: threading.Event
) -> dict[str, Any]:
    """Runs one part: how it ended, and how long it took.

    Args:
        name: of its log.
        command: see `command_of`.
        folder: for the log, the lock and the compiled programs.
        until: when it is stopped, of `time.monotonic`.
        stop: set, it is stopped too.
    """
    begin = time.monotonic()
    if begin > until or stop.is_set():
        return {"part": name, "end": "not begun, the time was up"}
    more = {
        LOCK: str(folder / LOCK_FILE),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # Processes share the device.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **more},
        )
        while (code := process.poll()) is None and time.monotonic() < until and not stop.is_set():
            time.sleep(0.05)
        end = "done" if code == 0 else f"exit code {code}"
        if code is None:
            # With the processes that it has started, which may hold the device too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end = "stopped, the time was up"
    seconds = round(time.monotonic() - begin, 1)
    print(f"{name}: {end} ({seconds} s)", flush=True)
    return {"part": name, "end": end, "seconds": seconds, "command": " ".join(["python", *command[1:]])}


def run_parts(names: Sequence[str], arguments: Arguments) -> list[dict[str, Any]]:
    """Runs parts: how each ended, in the order in which they did."""
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    known, stop = parts(arguments.tiny), threading.Event()
    until = time.monotonic() + arguments.seconds

    def run(name: str) -> dict[str, Any]:
        # All of a run's seconds count.
        is_whole = known[name][0].startswith("experiments.")
        with timing(folder / LOCK_FILE) if is_whole else contextlib.nullcontext():
            return run_part(name, command_of(name, known[name], folder), folder, until, stop)

    ends = []
    with ThreadPoolExecutor(arguments.together) as pool:
        try:
            for future in as_completed([pool.submit(run, name) for name in names]):
                ends.append(future.result())
                # After each part: whoever stops the script keeps what there is.
                write_summary(folder, {"parts": ends})
        except BaseException:
            stop.set()
            raise
    return ends


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes how each part ended."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def main() -> int:
    """Runs every part; 1 if any of them failed."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.accelerator", description=__doc__)
    check_fields(arguments)
    known = parts(arguments.tiny)
    if unknown := set(arguments.only) - set(known):
        raise ConfigError(f"only: {min(unknown)!r} is not known; accepted: {', '.join(known)}")
    # Ctrl-C and a job manager's SIGTERM end the parts too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ends = run_parts(arguments.only or tuple(known), arguments)
    # Only now may this process hold the device, whose memory the parts needed.
    write_summary(arguments.folder, {"machine": machine(), "tiny": arguments.tiny, "parts": ends})
    return int(any(part["end"] != "done" for part in ends))


if __name__ == "__main__":
    sys.exit(main())
