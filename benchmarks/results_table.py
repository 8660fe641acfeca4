"""The table of the paper's own attack, from committed runs: `python -m benchmarks.results_table`.

Reads `results.json` of every finished run in `results/` and rewrites what is between the `results` markers of
`docs/results.md`. A cell is the return after adaptation, averaged over seeds, with the smallest and largest
seed.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from admrl_jax.report.results import (
    Cell,
    cell_values,
    has_results,
    headline_panel,
    mean,
    method_label,
    methods_of,
    panel_label,
    panels_of,
    read_results,
)
from benchmarks.common import markdown_table, replace_section

ROOT = Path(__file__).parent.parent
CLEAN: Cell = ("clean", "clean")
ATTACKED: Cell = ("attacked", "attacked")


@dataclass(frozen=True)
class Arguments:
    """One table of all finished runs."""

    runs: Path = ROOT / "results"
    """Folder of run directories."""
    document: Path = ROOT / "docs" / "results.md"
    """Where the markers stand."""


def cell_text(values: dict[int, float]) -> str:
    """Mean over seeds, with the smallest and largest seed where there are several."""
    if not values:
        return "-"
    spread = f" [{min(values.values()):.1f}, {max(values.values()):.1f}]" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds in words: from the first to the last where they are many and follow each other."""
    if len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def run_title(results: dict[str, Any]) -> str:
    """A run's environment, seeds and floor, in words."""
    seeds = results["config"]["seeds"]
    words = f"seed{'s' * (len(seeds) > 1)} {seeds_text(seeds)}"
    return f"`{results['env']}` ({words}) {results['floor']:.1f}"


def run_rows(results: dict[str, Any], strengths: Sequence[float]) -> list[dict[str, str]]:
    """A row per method: returns after adaptation, clean and under the attack that heads its report."""
    rows, panel = results["rows"], headline_panel(results)
    table = []
    for method in methods_of(results, rows):
        row = {
            "environment": results["env"],
            "method": method_label(results, method),
            "clean": cell_text(cell_values(rows, panel, 0.0, CLEAN, method)),
        }
        for strength in strengths:
            values = cell_values(rows, panel, strength, ATTACKED, method)
            row[f"{panel_label(results, panel)}, {strength:g}"] = cell_text(values)
        table.append(row)
    return table


def results_text(runs: Sequence[dict[str, Any]]) -> str:
    """What was run, and one table of all, at the strengths that they have in common."""
    common = set.intersection(*(set(panels_of(run)[headline_panel(run)]) for run in runs))
    rows = [row for run in runs for row in run_rows(run, sorted(common))]
    titles = textwrap.fill(f"Doing nothing returns: {'; '.join(map(run_title, runs))}.", 120)
    return f"{titles}\n\n{markdown_table(rows, '.1f')}"


def main() -> None:
    """Rewrites the section from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.results_table", description=__doc__)
    paths = sorted(path for path in arguments.runs.glob("*") if has_results(path))
    if not paths:
        raise SystemExit(f"error: no finished runs in {arguments.runs}")
    text = results_text([read_results(path) for path in paths])
    print(text)
    replace_section(arguments.document, "results", text)


if __name__ == "__main__":
    main()
