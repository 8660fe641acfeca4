"""Runs the quick presets in double precision and compares every number with those of the code before parts.

    JAX_ENABLE_X64=1 python -m tests.golden.compare

The stored numbers (`*.json.gz`) are from commit 25cd49a, with its casts to float32 taken out, which kept
it from running in double precision. Where the method has changed since, the settings of then are chosen:
the hard floor of the standard deviation, raw inputs of adGAN's networks.
"""

import gzip
import json
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np

from admrl_jax.config import AttackConfigs, Config, DefenceConfigs
from admrl_jax.protocol.run import run_protocol
from admrl_jax.protocol.session import open_session
from admrl_jax.report.results import read_results
from admrl_jax.runs.devices import make_cpu_devices
from admrl_jax.runs.metrics import read_metrics

TOLERANCE = 1e-9
"""Of the larger of a number's size and 1. Sums are taken in another order than then."""
ENVS = {"navigation_2d": 2, "halfcheetah_dir": 4}
"""Environments, with the passes over a batch that attackers took."""
HERE = Path(__file__).parent


def as_then(config: Config, num_epochs: int) -> Config:
    """The settings that give the method of then; attackers took so many passes over a batch."""
    attacks, defences = config.attacks, config.defences
    return replace(
        config,
        policy=replace(config.policy, std_floor="hard"),
        attacks=AttackConfigs(
            adgan=replace(attacks.adgan, standardise=False, num_epochs=num_epochs),
            adgan_no_gan=replace(attacks.adgan_no_gan, standardise=False, num_epochs=num_epochs),
        ),
        defences=DefenceConfigs(
            adgan=replace(defences.adgan, adversary=replace(defences.adgan.adversary, standardise=False))
        ),
    )


def name_of_then(stage: str, method: str) -> str:
    """A stage's name in the stored metrics."""
    if not stage.startswith("attack-"):
        return stage
    attack, strength = stage.removeprefix("attack-").rsplit("-", 1)
    return f"adaptive-{strength}" if attack == "adgan" else f"adaptive-gan0-{strength}"


def agree(now: float, then: float) -> bool:
    """Whether two numbers are the same but for rounding.

    Networks have parameters in single precision, and so have some metrics, of which fewer decimals are
    written now.
    """
    return np.float32(now) == np.float32(then) or abs(now - then) <= TOLERANCE * max(1.0, abs(then))


def compare_rows(new: list[dict[str, Any]], old: list[dict[str, Any]], names: tuple[str, ...]) -> list[str]:
    """What differs between two tables whose rows are found by `names`."""
    stored = {tuple(row[name] for name in names): row for row in old}
    found = {tuple(row[name] for name in names): row for row in new}
    problems = [f"row {key} is only in one of the two" for key in sorted(set(stored) ^ set(found), key=str)]
    for key in stored.keys() & found.keys():
        for field, value in stored[key].items():
            if field in names or field == "train/std":
                continue
            mine = found[key].get(field)
            if mine is None or not agree(mine, value):
                problems.append(f"{key} {field}: {value!r} then, {mine!r} now")
    return problems


def check(env: str) -> tuple[list[str], int]:
    """Runs an environment's quick preset: what differs, and how many numbers were compared."""
    stored = json.loads(gzip.decompress((HERE / f"{env}.json.gz").read_bytes()))
    config = as_then(import_module(f"experiments.{env}").PRESETS["quick"], ENVS[env])
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        run_protocol(open_session(config, directory), "quick")
        results, metrics = read_results(directory), read_metrics(directory)
    for row in results["rows"]:
        if row["attack"] == "adgan_no_gan":
            row |= {"attack": "adgan", "protocol": "adaptive_no_gan"}
    for row in metrics:
        row["stage"] = name_of_then(row["stage"], row["method"])
    cell = ("method", "seed", "attack", "strength", "protocol", "support", "query")
    problems = compare_rows(results["rows"], stored["rows"], cell)
    problems += compare_rows(
        results["curves"], stored["curves"], ("method", "seed", "step", "attack", "strength")
    )
    problems += compare_rows(metrics, stored["metrics"], ("method", "seed", "stage", "step"))
    tables = (stored["rows"], stored["curves"], stored["metrics"])
    return problems, sum(len(row) for table in tables for row in table)


def main() -> int:
    """Compares both environments; 1 if anything differs."""
    if not jax.config.read("jax_enable_x64"):
        print("set JAX_ENABLE_X64=1: the stored numbers are in double precision", file=sys.stderr)
        return 2
    jax.config.update("jax_disable_most_optimizations", True)
    make_cpu_devices()
    failed = False
    for env in ENVS:
        problems, count = check(env)
        print(f"{env}: {count} values, {len(problems)} differ by more than {TOLERANCE:g}")
        for problem in problems[:20]:
            print("  " + problem)
        failed |= bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
