"""What robustness costs, from committed attacks: `python -m benchmarks.robustness`.

Reads what suites left of every run in `results/`, draws the clean return of policies against what the worst
attacker leaves it, and prints the same as a table. One point per method and seed; of several attacks on one
policy the one that left least. A second table has each method minus the undefended one, paired by seed,
wherever the two share enough seeds and met the same suite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from admrl_jax.report.attacked import Attacked
from admrl_jax.report.compared import Difference, differences, kind_of, points
from admrl_jax.report.figures import png
from admrl_jax.report.results import has_results, read_results
from admrl_jax.stats.intervals import WORDED_SEEDS
from benchmarks.common import DPI, markdown_table

ROOT = Path(__file__).parent.parent
MARKERS = "osD^v<>PXh"
"""Of runs; they come again where there are more."""


@dataclass(frozen=True)
class Arguments:
    """A figure of clean return against the worst of a suite, and its table."""

    runs: Path = ROOT / "results"
    """Folder of run directories that were attacked."""
    out: Path = ROOT / "results" / "robustness.png"
    """Where the figure goes."""


def read_attacks(runs: Path) -> list[tuple[str, Attacked]]:
    """Attacks on support and query data, with the names of their runs; a run may have several.

    Args:
        runs: folder of run directories.
    """
    read = [
        (folder.parent.name, read_results(folder)) for folder in runs.glob("*/attack*") if has_results(folder)
    ]
    return [
        (run, Attacked(results))
        for run, results in sorted(read, key=lambda x: (x[0], x[1]["plan"]["seeds"]))
        if results["plan"]["side"] == "both"
    ]


def lowest_points(attacks: Sequence[tuple[str, Attacked]]) -> list[dict[str, Any]]:
    """A row per run, method, seed and radius, of the attack that left least; see `points`."""
    found: dict[tuple, dict[str, Any]] = {}
    for run, attacked in attacks:
        for row in points(run, attacked):
            key = (run, row["method"], row["seed"], row["radius"])
            row |= {"suite": attacked.results["plan"]["suite"]}
            if key not in found or row["worst"] < found[key]["worst"]:
                found[key] = row
    return list(found.values())


def paired_rows(attacks: Sequence[tuple[str, Attacked]]) -> list[Difference]:
    """Each method minus the undefended one of its own run; of the others where its own has none."""
    found = differences(attacks)
    alone = {row.run for row in found}
    return found + differences([x for x in attacks if x[0] not in alone], attacks)


def as_row(row: Difference) -> dict[str, Any]:
    """For a table."""
    parts = {"clean": row.clean, "worst": row.worst}
    intervals = {name: f"{x.value:.1f} [{x.low:.1f}, {x.high:.1f}]" for name, x in parts.items()}
    of = {"run": row.run, "difference": f"{row.method} - {row.base}", "radius": row.radius}
    return of | {"seeds": row.clean.seeds, "failed": row.failed, "of the base": row.failed_base} | intervals


def draw(attacks: Sequence[tuple[str, Attacked]]) -> Figure:
    """A panel per environment and radius; runs that make other assumptions are on panels of their own."""
    panels: dict[tuple[str, float], list[tuple[str, Attacked]]] = {}
    for run, attacked in attacks:
        for radius in attacked.radii:
            panels.setdefault((kind_of(attacked), radius), []).append((run, attacked))
    columns = min(3, -(-len(panels) // 2)) if len(panels) > 3 else len(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (kind, radius) in zip(axes, sorted(panels), strict=False):
        _panel(ax, panels[kind, radius], radius)
        ax.set_title(f"{kind}, radius {radius:g}", fontsize=10)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.supxlabel("clean return", fontsize=10)
    figure.supylabel("under the worst attacker known", fontsize=10)
    return figure


def _panel(ax: Axes, attacks: Sequence[tuple[str, Attacked]], radius: float) -> None:
    """A marker per run, a colour per method; what failed a check is hollow."""
    ends = [attacks[0][1].floor]
    runs = [*dict.fromkeys(run for run, _ in attacks)]
    named: set[tuple[str, str]] = set()
    colours = {
        attacked.label(method): attacked.results["methods"][method]["colour"]
        for _, attacked in attacks
        for method in attacked.methods
    }
    for row in lowest_points(attacks):
        if row["radius"] != radius:
            continue
        run, method, x, y = row["run"], row["method"], row["clean"], row["worst"]
        label = None if (run, method) in named else method + (f" ({run})" if len(runs) > 1 else "")
        ax.scatter(
            x,
            y,
            s=45,
            marker=MARKERS[runs.index(run) % len(MARKERS)],
            facecolor=colours[method] if row["checks"] == "hold" else "none",
            edgecolor=colours[method],
            label=label,
        )
        named.add((run, method))
        ends += [x, y]
    margin = 0.06 * (max(ends) - min(ends))
    limits = (min(ends) - margin, max(ends) + margin)
    ax.plot(limits, limits, color="#999999", linewidth=1, label="nothing lost")
    ax.axhline(ends[0], color="#777777", linestyle="--", linewidth=1, label="do nothing")
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.legend(fontsize=7, frameon=False, loc="upper left")
    ax.grid(alpha=0.3)


def main() -> None:
    """Draws and prints from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.robustness", description=__doc__)
    attacks = read_attacks(arguments.runs)
    if not attacks:
        raise SystemExit(f"error: no attacked runs in {arguments.runs}")
    print(markdown_table(lowest_points(attacks), ".1f"))
    if rows := [row for row in paired_rows(attacks) if row.clean.seeds >= WORDED_SEEDS]:
        print("\n" + markdown_table([as_row(row) for row in rows], "g"))
    arguments.out.write_bytes(png(draw(attacks), DPI))


if __name__ == "__main__":
    main()
