"""Puts runs of single seeds together, as if they had been one run.

Seeds do not know each other: on a CPU each has the bits that it has alone. So they can be computed on
several machines, or later, and reported together.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from admrl_jax.config import Config, config_difference, to_dict
from admrl_jax.report.results import RESULTS, read_results
from admrl_jax.report.write import write_report
from admrl_jax.runs.artefact import ATTACKERS, POLICIES, digest, read_policies
from admrl_jax.runs.directory import RunError, read_run
from admrl_jax.runs.files import read_arrays, read_text, write_arrays, write_rows, write_text
from admrl_jax.runs.numerics import FILE, read_settings

Tree = dict[str, Any]
NEEDED = (RESULTS, "metrics.csv", POLICIES, FILE)
"""Of a run that is finished."""


def merge_runs(sources: Sequence[Path], out: Path) -> Path:
    """Merges finished runs that differ in nothing but their seeds.

    Args:
        sources: run directories.
        out: gets policies, attackers, returns, metrics, results and the report; checkpoints are left out.

    Returns:
        Path of the report.

    Raises:
        RunError: a run is not finished, they are of different settings or share a seed, or `out` is in use.
    """
    configs = [read_run(source, NEEDED, "directories of finished runs") for source in sources]
    _check(sources, configs)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"out: {out} is not empty; name another folder")
    (out / "returns").mkdir(parents=True, exist_ok=True)
    config = replace(configs[0], seeds=tuple(seed for one in configs for seed in one.seeds))
    write_text(out / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
    shutil.copy(sources[0] / FILE, out / FILE)
    _merge_policies(sources, config, out)
    if (sources[0] / ATTACKERS).exists():
        write_arrays(out / ATTACKERS, **_stacked([source / ATTACKERS for source in sources]))
    for path in sorted((sources[0] / "returns").glob("*.npz")):
        write_arrays(out / "returns" / path.name, **_stacked([s / "returns" / path.name for s in sources]))
    if (sources[0] / "trajectories.npz").exists():
        shutil.copy(sources[0] / "trajectories.npz", out / "trajectories.npz")
    _merge_results(sources, config, out)
    _merge_metrics(sources, config.seeds, out)
    return write_report(out)


def _check(sources: Sequence[Path], configs: Sequence[Config]) -> None:
    if len(sources) < 2:
        raise RunError("runs: one is nothing to merge; accepted: two or more run directories")
    first, jax_settings = configs[0], read_settings(sources[0])
    seen: dict[int, Path] = {}
    for source, config in zip(sources, configs, strict=True):
        difference = config_difference(first, replace(config, seeds=first.seeds))
        if difference:
            raise RunError(f"run: {source} has other settings than {sources[0]}: {difference}")
        if read_settings(source) != jax_settings:
            raise RunError(f"run: {source} was computed under other settings of JAX than {sources[0]}")
        for seed in config.seeds:
            if seed in seen:
                raise RunError(
                    f"run: seed {seed} is in {seen[seed]} and in {source}; accepted: different seeds"
                )
            seen[seed] = source


def _stacked(paths: Sequence[Path]) -> Tree:
    """Arrays of files with the same names, put together along the seeds."""
    files = [read_arrays(path) for path in paths]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0]}


def _merge_policies(sources: Sequence[Path], config: Config, out: Path) -> None:
    files = [read_policies(source) for source in sources]
    arrays = {
        name: np.concatenate([file[name] for file in files]) if value.ndim else value
        for name, value in files[0].items()
    }
    arrays["config"] = np.array(json.dumps(to_dict(config)))
    write_arrays(out / POLICIES, **arrays, sha256=np.array(digest(arrays)))


def _merge_results(sources: Sequence[Path], config: Config, out: Path) -> None:
    results = [read_results(source) for source in sources]
    merged = results[0] | {"config": to_dict(config)}
    what = ("method", "attack", "protocol")
    for part in ("rows", "curves", "opponents"):
        merged[part] = _in_order(
            [one.get(part, []) for one in results], lambda row: [row.get(name, "") for name in what]
        )
    write_rows(out / RESULTS, merged)


def _in_order(parts: Sequence[list[Tree]], group: Callable[[Tree], list[Any]]) -> list[Tree]:
    """Rows of all runs, group by group as in the first, run after run within a group."""
    groups: dict[str, list[list[Tree]]] = {}
    for number, rows in enumerate(parts):
        for row in rows:
            groups.setdefault(repr(group(row)), [[] for _ in parts])[number].append(row)
    return [row for runs in groups.values() for rows in runs for row in rows]


def _merge_metrics(sources: Sequence[Path], seeds: Sequence[int], out: Path) -> None:
    """`metrics.csv` with the rows of a step next to each other, in the order of seeds."""
    tables = [list(csv.DictReader(io.StringIO(read_text(source / "metrics.csv")))) for source in sources]
    columns = list(dict.fromkeys(name for table in tables for row in table[:1] for name in row))
    merged = _in_order(tables, lambda row: [row["method"], row["stage"], row["step"]])
    order = {str(seed): place for place, seed in enumerate(seeds)}
    assert all(row["seed"] in order for row in merged)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged)
    write_text(out / "metrics.csv", text.getvalue())
