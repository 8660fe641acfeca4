"""What changes no bit of a run, and what changes it by how much: `python -m tests.faults.determinism`.

Each variant trains a toy run and is compared with the plain one: parameters after its outer steps.
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

from admrl_jax.config import Config, MAMLConfig, ScheduleConfig, TrainConfig
from experiments import halfcheetah_dir, navigation_2d
from experiments.context import Context
from experiments.train_stages import TrainStages
from tests.faults.toy_runs import write_result

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
    name: str = "determinism"
    """Of the file under `tests/faults/results/`."""


def toy_config(env: str, steps: int) -> Config:
    """One seed, one step per chunk, one host thread, a checkpoint every second step."""
    quick = QUICK[env]
    schedule = ScheduleConfig(pretrain_steps=steps, chunk_steps=1, checkpoint_every=2, snapshot_every=steps)
    return replace(
        quick,
        env=replace(quick.env, horizon=10),
        seeds=(0,),
        num_threads=1,
        train=TrainConfig(maml=MAMLConfig(num_tasks=2, num_trajectories=4)),
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
        found["two host threads"] = replace(config, num_threads=2)
    return found


def train(config: Config, *, is_logged: bool = True) -> Any:
    """Policy parameters of the first seed after pre-training."""
    with tempfile.TemporaryDirectory() as folder:
        context = Context(config, Path(folder))
        if not is_logged:
            context.log.append = lambda *_: None
        state, _ = TrainStages(context).pretrain()
        context.log.close()
    return jax.tree.map(lambda x: np.asarray(x[0]), state.policy_params)


def distance(a: Any, b: Any) -> float:
    """Largest difference of two parameters; 0 where all bits are the same."""
    return max(
        float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def compare(env: str, steps: int, names: tuple[str, ...] = ()) -> dict[str, float]:
    """`distance` of the variants of those names, or of all, from the plain run."""
    config = toy_config(env, steps)
    plain = train(config)
    return {
        name: distance(plain, train(other, is_logged="no logging" not in name))
        for name, other in variants(config).items()
        if not names or name in names
    }


def main(arguments: Arguments) -> int:
    """Always 0: it measures."""
    began = time.time()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        for env in arguments.envs:
            found[env] = compare(env, arguments.steps)
            result = {"outer steps": arguments.steps, "largest difference of a parameter": found}
            write_result(arguments.name, {**result, "seconds": round(time.time() - began)})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
