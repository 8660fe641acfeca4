"""What the seeds of a run can and cannot say."""

import numpy as np

from admrl_jax.report.results import (
    CELLS,
    Panel,
    Row,
    cell_values,
    mean,
    method_label,
    methods_of,
    panel_label,
)
from admrl_jax.report.tables import each, grid, grid_labels, rounded, table
from admrl_jax.stats.intervals import BOOTSTRAP_SEEDS, WORDED_SEEDS, bootstrap_interval, t_interval


def seeds_section(results: Row) -> str:
    """How much the seeds differ, and every method minus the first within each seed."""
    rows = results["rows"]
    seeds = sorted({row["seed"] for row in rows})
    methods = methods_of(results, rows)
    blocks = [_introduction(len(seeds))]
    if len(seeds) > 1:
        blocks.append(_deviations(results, methods))
    blocks += [_differences(results, methods[0], other, len(seeds)) for other in methods[1:]]
    return "\n\n".join(blocks)


def _introduction(num_seeds: int) -> str:
    if num_seeds == 1:
        return "One seed: nothing here separates a method's effect from the luck of a training run."
    return (
        f"{num_seeds} seeds, paired: the methods of a seed share their pre-training and all seeds share the "
        "test tasks. Seeds, not episodes, are the independent samples."
    )


def _deviations(results: Row, methods: list[str]) -> str:
    body = []
    for panel, s, cell in (key for key in grid(results) if key[2] in (CELLS[0], CELLS[3])):
        values = [list(cell_values(results["rows"], panel, s, cell, m).values()) for m in methods]
        deviations = (rounded(float(np.std(v, ddof=1))) if len(v) > 1 else "-" for v in values)
        body.append((panel_label(results, panel), f"{s:g}", *deviations))
    header = ["attack", "strength", *(method_label(results, m) for m in methods)]
    return "### Standard deviation over seeds, after adaptation\n\n" + table(header, body, 2)


def _differences(results: Row, first: str, other: str, num_seeds: int) -> str:
    """`other` minus `first`, cell by cell, with intervals where there are seeds enough."""
    body, wins, losses = [], 0, 0
    with_interval, with_bootstrap = num_seeds >= WORDED_SEEDS, num_seeds >= BOOTSTRAP_SEEDS
    for key in grid(results):
        gaps = _paired(results, key, first, other)
        if not gaps:
            continue
        values = list(gaps.values())
        wins += min(values) > 0
        losses += max(values) < 0
        intervals = [t_interval(values)] if with_interval else []
        intervals += [bootstrap_interval(values)] if with_bootstrap else []
        texts = ("[{:.2f}, {:.2f}]".format(*interval) for interval in intervals)
        body.append((*grid_labels(results, *key), rounded(mean(gaps)), each(gaps), *texts))
    header = ["attack", "strength", "support", "query", "mean", "each seed"]
    header += ["95 % t interval"] * with_interval + ["95 % bootstrap"] * with_bootstrap
    names = [method_label(results, method) for method in (other, first)]
    title = f"### {names[0]} minus {names[1]}, after adaptation, per seed"
    counts = []
    if with_interval:
        counts = [
            f"{names[0]} is above {names[1]} in every seed in {wins} of {len(body)} cells and below it in "
            f"every seed in {losses}. The intervals are not corrected for the number of cells."
        ]
    return "\n\n".join([title, *counts, table(header, body, 4)])


def _paired(
    results: Row, key: tuple[Panel, float, tuple[str, str]], first: str, other: str
) -> dict[int, float]:
    mine, theirs = (cell_values(results["rows"], *key, method) for method in (other, first))
    return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}
