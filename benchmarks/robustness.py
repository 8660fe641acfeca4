"""What robustness costs, from committed attacks: `python -m benchmarks.robustness`.

Reads `attack/results.json` of every run in `results/`, draws the clean return of each policy against what the
worst attacker leaves it, and prints the same as a table. One point per method and seed. A second table has
each method minus the undefended one, paired by seed, wherever the two share enough seeds.
"""

import json
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
from admrl_jax.stats.intervals import WORDED_SEEDS
from benchmarks.common import DPI, markdown_table

ROOT = Path(__file__).parent.parent
MARKERS = "osD^v"


@dataclass(frozen=True)
class Arguments:
    """A figure of clean return against the worst of a suite, and its table."""

    runs: Path = ROOT / "results"
    """Folder of run directories that were attacked."""
    out: Path = ROOT / "results" / "robustness.png"
    """Where the figure goes."""


def read_attacks(runs: Path) -> dict[str, Attacked]:
    """Attacks by the name of their run."""
    found = sorted(runs.glob("*/attack/results.json"))
    return {path.parents[1].name: Attacked(json.loads(path.read_text())) for path in found}


def as_row(row: Difference) -> dict[str, Any]:
    """For a table."""
    parts = {"clean": row.clean, "worst": row.worst}
    intervals = {name: f"{x.value:.1f} [{x.low:.1f}, {x.high:.1f}]" for name, x in parts.items()}
    of = {"run": row.run, "difference": f"{row.method} - {row.base}", "radius": row.radius}
    return of | {"seeds": row.clean.seeds} | intervals


def draw(attacks: dict[str, Attacked]) -> Figure:
    """A panel per environment and radius; runs that make other assumptions are on panels of their own."""
    panels: dict[tuple[str, float], list[str]] = {}
    for name, attacked in attacks.items():
        for radius in attacked.radii:
            panels.setdefault((kind_of(attacked), radius), []).append(name)
    columns = min(3, -(-len(panels) // 2)) if len(panels) > 3 else len(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, ((kind, radius), names) in zip(axes, sorted(panels.items()), strict=False):
        _panel(ax, {name: attacks[name] for name in names}, radius)
        ax.set_title(f"{kind}, radius {radius:g}", fontsize=10)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.supxlabel("clean return", fontsize=10)
    figure.supylabel("under the worst attacker of the suite", fontsize=10)
    return figure


def _panel(ax: Axes, attacks: dict[str, Attacked], radius: float) -> None:
    """A marker per run, a colour per method; what failed a check is hollow."""
    ends = [next(iter(attacks.values())).floor]
    for number, (name, attacked) in enumerate(attacks.items()):
        colours = {attacked.label(m): attacked.results["methods"][m]["colour"] for m in attacked.methods}
        named: set[str] = set()
        for row in points(name, attacked):
            if row["radius"] != radius:
                continue
            method, x, y = row["method"], row["clean"], row["worst"]
            label = None if method in named else method + (f" ({name})" if number else "")
            face = colours[method] if row["checks"] == "hold" else "none"
            ax.scatter(
                x, y, s=45, marker=MARKERS[number], facecolor=face, edgecolor=colours[method], label=label
            )
            named.add(method)
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
    print(
        markdown_table([row for name, attacked in attacks.items() for row in points(name, attacked)], ".1f")
    )
    if rows := [row for row in differences([*attacks.items()]) if row.clean.seeds >= WORDED_SEEDS]:
        print("\n" + markdown_table([as_row(row) for row in rows], "g"))
    arguments.out.write_bytes(png(draw(attacks), DPI))


if __name__ == "__main__":
    main()
