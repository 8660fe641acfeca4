"""Everything that is measured on an accelerator, in one call: `python -m benchmarks.accelerator FOLDER`.

Each part is a process of its own with a time limit, so that one that fails loses nothing of the others. It
leaves its figures as JSON (and a picture) and its output as a log in the folder; `summary.json` says how
each part ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from admrl_jax.core.settings import ConfigError
from benchmarks.common import machine

ROOT = Path(__file__).parent.parent
CHEETAH = "--env=halfcheetah_dir"


@dataclass(frozen=True)
class Arguments:
    """Runs all benchmarks on the device that is here."""

    folder: tyro.conf.Positional[Path]
    """Where the figures go."""
    tiny: bool = False
    """Toy sizes, to try the script where there is no accelerator."""
    only: tuple[str, ...] = ()
    """Names of parts to run; all by default."""
    seconds: float = 600
    """Time limit of each part."""


def parts(tiny: bool) -> dict[str, list[str]]:
    """Module and arguments of each benchmark, without `--json`, most wanted first."""
    none = ("--attack=none", "--gymnasium")
    found = {}
    for size in (2, 4) if tiny else (800, 4096, 16384, 65536):
        tasks = {800: 40}.get(size) or round(size**0.5)
        found[f"rollout-mjx-{size}"] = [
            *("rollout", CHEETAH, "--simulator=mjx", *none, f"--num-tasks={tasks}"),
            *(f"--num-trajectories={size // tasks}", f"--horizon={2 if tiny else 100}", "--repeats=3"),
        ]
    sizes = ("1", "2") if tiny else ("2", "4", "8", "16", "32", "64", "128")
    found["crossover"] = [
        *("rollout", CHEETAH, "--simulator", "mujoco", "mjx", *none, "--num-tasks", *sizes),
        *("--num-trajectories", *sizes, f"--horizon={2 if tiny else 20}", "--repeats=3"),
    ]
    toy = ["--num-tasks=2", "--num-trajectories=2"]
    found["protocol"] = ["protocol", CHEETAH, "--simulator=mjx"]
    if tiny:
        found["protocol"] = [
            *("protocol", "--env=navigation_2d", "--preset=quick", "--seeds=2", "--lanes=8", "--repeats=1")
        ]
    found["outer_step"] = ["outer_step", "--task-block", *(("0",) if tiny else ("0", "1"))]
    found["outer_step"] += toy if tiny else []
    found["fisher"] = ["fisher", CHEETAH, "--num-devices=1", *(toy if tiny else [])]
    step = ["train_step", CHEETAH]
    step += [*toy, "--horizon=8", "--repeats=2"] if tiny else []
    for simulator in ("mujoco",) if tiny else ("mjx", "mujoco"):
        found[f"train_step-{simulator}"] = [*step, f"--simulator={simulator}"]
    found["startup"] = [
        "startup",
        *(("--env=navigation_2d", "--preset=quick", "--repeats=1") if tiny else ()),
    ]
    attacks = ("--attack", "adgan", "fgsm", "--gymnasium", "2")
    shape = ("--num-tasks=2", "--num-trajectories=2", "--horizon=4") if tiny else ()
    found["rollout-attacks"] = [
        *("rollout", CHEETAH, f"--simulator={'mujoco' if tiny else 'mjx'}", *attacks, *shape, "--repeats=3")
    ]
    return found


def run_part(name: str, command: list[str], arguments: Arguments) -> dict[str, Any]:
    """Runs one benchmark: how it ended, and how long it took."""
    module, *options = command
    figures = arguments.folder.absolute() / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *options, f"--json={figures}"]
    start = time.monotonic()
    with (arguments.folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(arguments.seconds)
            end = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            # With the processes that it has started, which may hold the device too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end = f"stopped after {arguments.seconds:g} s"
    return {
        "part": name,
        "end": end,
        "seconds": round(time.monotonic() - start, 1),
        "command": " ".join(["python", *command[1:-1]]),
    }


def main() -> int:
    """Runs every part; 1 if any of them failed."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.accelerator", description=__doc__)
    wanted = parts(arguments.tiny)
    unknown = set(arguments.only) - set(wanted)
    if unknown:
        raise ConfigError(f"only: {min(unknown)!r} is not known; accepted: {', '.join(wanted)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    ends = []
    for name in arguments.only or wanted:
        ends.append(run_part(name, wanted[name], arguments))
        print(f"{name}: {ends[-1]['end']} ({ends[-1]['seconds']} s)", flush=True)
        # After each part: whoever stops the script keeps what there is.
        (arguments.folder / "summary.json").write_text(json.dumps({"parts": ends}, indent=1) + "\n")
    # Only now may this process hold the device, whose memory the parts needed.
    summary = {"machine": machine(), "tiny": arguments.tiny, "parts": ends}
    (arguments.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return int(any(part["end"] != "done" for part in ends))


if __name__ == "__main__":
    sys.exit(main())
