"""Many outer steps of 2D navigation with checkpoints and logging: `python -m faults.long_run`.

On the devices that a user gets by default. Memory must stay where it was at step 200, the number of files
must not grow, and nothing may be compiled again.
"""

import gc
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from admrl_jax.config import ScheduleConfig
from admrl_jax.protocol.session import open_session
from admrl_jax.protocol.train_stages import pretrain
from admrl_jax.runs.devices import make_cpu_devices
from admrl_jax.sampling import SamplingConfig
from experiments.navigation_2d import QUICK
from faults.toy_runs import write_result

SETTLED = 200
"""Steps after which nothing may grow."""


@dataclass(frozen=True)
class Arguments:
    """How long."""

    steps: int = 2000
    name: str = "long_run"
    """Of the file under `faults/results/`."""


def resident_mib() -> float:
    """Resident set of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main(arguments: Arguments) -> int:
    """Returns 1 if something grew, was compiled again or is not finite."""
    make_cpu_devices()
    compiled: list[str] = []
    samples: dict[int, dict[str, float]] = {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiled.append(event) if "backend_compile" in event else None
    )
    config = replace(
        QUICK,
        env=replace(QUICK.env, horizon=10),
        sampling=SamplingConfig(num_tasks=2, num_trajectories=4),
        schedule=ScheduleConfig(
            pretrain_steps=arguments.steps, checkpoint_every=25, snapshot_every=arguments.steps
        ),
    )
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        session = open_session(config, Path(name))
        log = session.journal.log
        append = log.append

        def sample(method: str, stage: str, first_step: int, seeds: Any, metrics: Any) -> None:
            append(method, stage, first_step, seeds, metrics)
            done = first_step - 1 + next(iter(metrics.values())).shape[1]
            if done % SETTLED == 0 or done == arguments.steps:
                gc.collect()
                samples[done] = {
                    "resident MiB": round(resident_mib(), 1),
                    "files": sum(path.is_file() for path in Path(name).rglob("*")),
                    "compilations": len(compiled),
                }

        log.append = sample
        state = pretrain(session, "maml").state
        log.close()
        rows = len((Path(name) / "metrics.csv").read_text().splitlines()) - 1
    first, last = samples[min(SETTLED, arguments.steps)], samples[arguments.steps]
    is_finite = all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(state.learner))
    growth = last["resident MiB"] / first["resident MiB"] - 1
    result = {
        "devices": jax.device_count(),
        "steps": arguments.steps,
        "rows": rows,
        "parameters are finite": is_finite,
        "samples": samples,
        f"growth of the resident set since step {SETTLED}": round(growth, 4),
        "files since then": last["files"] - first["files"],
        "compilations since then": last["compilations"] - first["compilations"],
        "seconds": round(time.time() - began),
    }
    write_result(arguments.name, result)
    is_flat = abs(growth) < 0.05 and last["files"] <= first["files"]
    is_whole = rows == arguments.steps and last["compilations"] == first["compilations"]
    return int(not (is_flat and is_whole and is_finite))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
