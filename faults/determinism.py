"""What changes no bit of a run, and what changes it by how much: `python -m faults.determinism`.

Each variant trains a toy run and is compared with the plain one: parameters after its outer steps. The
plain one uses what a user gets by default: two devices of a CPU, an engine thread per core. Engines that
run on the device compile for long; of them only the same seed again is compared, on fewer and shorter steps.
"""

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from admrl_jax.config import Config, ScheduleConfig
from admrl_jax.protocol.session import open_session
from admrl_jax.protocol.train_stages import pretrain
from admrl_jax.runs.devices import make_cpu_devices
from admrl_jax.sampling import SamplingConfig
from experiments import halfcheetah_dir, navigation_2d
from faults.toy_runs import write_result

QUICK = {
    "navigation_2d": navigation_2d.PRESETS["quick"],
    "halfcheetah_dir": halfcheetah_dir.PRESETS["quick"],
}


@dataclass(frozen=True)
class Arguments:
    """What to compare."""

    envs: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    steps: int = 10
    """Outer steps; a multiple of 10."""
    simulators: tuple[str, ...] = ("mjx", "brax-spring")
    """Other engines, for the same seed again on halfcheetah_dir."""
    simulator_steps: int = 2
    """Outer steps on them, of episodes of 6 steps."""
    name: str = "determinism"
    """Of the file under `faults/results/`."""


def toy_config(env: str, steps: int, *, simulator: str = "auto", horizon: int = 10) -> Config:
    """One seed, one step per chunk, a checkpoint every second step."""
    quick = QUICK[env]
    schedule = ScheduleConfig(pretrain_steps=steps, chunk_steps=1, checkpoint_every=2, snapshot_every=steps)
    return replace(
        quick,
        env=replace(quick.env, horizon=horizon),
        seeds=(0,),
        simulator=simulator,
        sampling=SamplingConfig(num_tasks=2, num_trajectories=4),
        schedule=schedule,
    )


def variants(config: Config) -> dict[str, Config]:
    """Other ways to the same numbers."""
    steps = config.schedule.pretrain_steps
    whole = replace(config.schedule, checkpoint_every=steps)
    several = replace(whole, chunk_steps=10 if steps % 10 == 0 else steps)
    found = {
        "same seed again": config,
        "several steps per chunk": replace(config, schedule=several),
        "no logging, one checkpoint": replace(config, schedule=whole),
        "two seeds together": replace(config, seeds=(0, 1)),
    }
    if config.env.name != "navigation_2d":
        found["1 host thread"] = replace(config, num_threads=1)
        found["2 host threads"] = replace(config, num_threads=2)
    return found


def train(config: Config, *, is_logged: bool = True) -> Any:
    """Meta-parameters of the first seed after pre-training."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(config, Path(folder))
        if not is_logged:
            session.journal.log.append = lambda *_, **__: None
        state = pretrain(session, "maml").state
        session.journal.log.close()
    return jax.tree.map(lambda x: np.asarray(x[0]), state.learner.meta_params)


def distance(a: Any, b: Any) -> float:
    """Largest difference of two parameters; 0 where all bits are the same, NaN where one is no number."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    # Not Python's `max`, which loses a NaN.
    return float(np.max([np.abs(x - y).max() for x, y in pairs]))


def compare(config: Config, names: tuple[str, ...] = ()) -> dict[str, float]:
    """`distance` of the variants of those names, or of all, from the plain run."""
    plain = train(config)
    return {
        name: distance(plain, train(other, is_logged="no logging" not in name))
        for name, other in variants(config).items()
        if not names or name in names
    }


def main(arguments: Arguments) -> int:
    """Always 0: it measures."""
    make_cpu_devices()
    cases: dict[str, tuple[Config, tuple[str, ...]]] = {
        env: (toy_config(env, arguments.steps), ()) for env in arguments.envs
    }
    for simulator in arguments.simulators:
        config = toy_config("halfcheetah_dir", arguments.simulator_steps, simulator=simulator, horizon=6)
        cases[f"halfcheetah_dir, {simulator}"] = config, ("same seed again",)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        for case, (config, names) in cases.items():
            began = time.time()
            distances = compare(config, names)
            found[case] = {
                "outer steps": config.schedule.pretrain_steps,
                "largest difference of a parameter": distances,
                "seconds": round(time.time() - began),
            }
            write_result(arguments.name, {"devices": jax.device_count(), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
