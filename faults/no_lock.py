"""Calls one MuJoCo engine from four threads, with and without its lock: `python -m faults.no_lock`.

Shows what the lock is for: every run is a process of its own, which may crash.
"""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tyro

from admrl_jax.envs.half_cheetah import HalfCheetahDir
from admrl_jax.simulators.models import load_model
from admrl_jax.simulators.mujoco import HostEngine
from faults.toy_runs import ROOT, write_result


@dataclass(frozen=True)
class Arguments:
    """How often."""

    runs: int = 10
    """With the lock, and as many without."""
    rounds: int = 50
    """Calls of every batch per run."""
    seconds: float = 30.0
    """After which a run counts as hung."""
    worker: bool = False
    """Be one of the runs."""
    lock: bool = True
    name: str = "no_lock"
    """Of the file under `faults/results/`."""


def work(rounds: int, has_lock: bool) -> bool:
    """Whether all calls at once gave the numbers of calls in turn."""
    engine = HostEngine(load_model(HalfCheetahDir.model), frame_skip=5, num_threads=2)
    rng = np.random.default_rng(0)
    batches = [
        (*(0.1 * rng.normal(size=(2, n, 9))), np.zeros((n, 9)), rng.uniform(-1, 1, (n, 6)), np.zeros(n, bool))
        for n in (4, 5, 6) * 4
    ]

    def step(batch: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        outputs = [np.empty_like(x) for x in batch[:3]]
        engine.step(batch, outputs)
        return outputs

    expected = [step(batch) for batch in batches]
    if not has_lock:
        engine._lock = contextlib.nullcontext()  # pyright: ignore[reportAttributeAccessIssue]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(rounds):
            for first, second in zip(expected, pool.map(step, batches), strict=True):
                if not all(np.array_equal(x, y) for x, y in zip(first, second, strict=True)):
                    return False
    return True


def main(arguments: Arguments) -> int:
    """Returns 1 if a run with the lock crashed or gave other numbers."""
    if arguments.worker:
        return 0 if work(arguments.rounds, arguments.lock) else 3
    began = time.time()
    outcomes: dict[str, Counter[str]] = {}
    for flag in ("--lock", "--no-lock"):
        outcomes[flag] = Counter()
        for _ in range(arguments.runs):
            command = [sys.executable, "-m", "faults.no_lock", "--worker", flag]
            command.append(f"--rounds={arguments.rounds}")
            try:
                code = subprocess.run(
                    command, cwd=ROOT, capture_output=True, timeout=arguments.seconds
                ).returncode
            except subprocess.TimeoutExpired:
                outcomes[flag]["hung"] += 1
                continue
            meaning = {0: "same numbers", 3: "other numbers"}
            outcomes[flag][meaning.get(code, f"crashed with exit code {code}")] += 1
    result = {"runs each": arguments.runs, "calls per run": 12 * arguments.rounds}
    result |= {flag.strip("-"): dict(found) for flag, found in outcomes.items()}
    write_result(arguments.name, {**result, "seconds": round(time.time() - began)})
    return int(outcomes["--lock"]["same numbers"] != arguments.runs)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
