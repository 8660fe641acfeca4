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

from admrl_jax.defences.registry import UNDEFENDED
from admrl_jax.report.attacked import Attacked
from admrl_jax.report.figures import png
from admrl_jax.stats.intervals import WORDED_SEEDS, t_interval
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


def points(name: str, attacked: Attacked) -> list[dict[str, Any]]:
    """A row per method, seed and radius: clean return, the worst of the suite, whether the checks hold."""
    failed = {check.victim for check in attacked.checks() if not check.holds}
    return [
        {
            "run": name,
            "method": attacked.label(method),
            "seed": seed,
            "radius": radius,
            "clean": attacked.mean(method, seed, 0),
            "worst": attacked.mean(method, seed, radius),
            "checks": "fail" if attacked.victim(method, seed) in failed else "hold",
        }
        for method in attacked.methods
        for seed in attacked.seeds
        for radius in attacked.radii
    ]


def differences(attacks: dict[str, Attacked]) -> list[dict[str, Any]]:
    """A row per run, method and radius: its returns minus those of the method without a defence.

    The two are paired by seed; they may be of several runs of one environment, under equal assumptions. Below
    three common seeds there is no row.
    """
    found = [
        row | {"kind": kind_of(attacked), "defence": defence_of(attacked, row["method"])}
        for name, attacked in attacks.items()
        for row in points(name, attacked)
    ]
    undefended = {
        (row["kind"], row["radius"], row["seed"]): row for row in found if row["defence"] == UNDEFENDED
    }
    compared: dict[tuple, list[tuple[dict, dict]]] = {}
    for row in found:
        base = undefended.get((row["kind"], row["radius"], row["seed"]))
        if row["defence"] not in (None, UNDEFENDED) and base is not None:
            compared.setdefault((row["run"], row["method"], row["radius"]), []).append((row, base))
    return [
        {"run": run, "difference": f"{method} - {pairs[0][1]['method']}", "radius": radius}
        | {"seeds": len(pairs)}
        | {part: _interval([row[part] - base[part] for row, base in pairs]) for part in ("clean", "worst")}
        for (run, method, radius), pairs in compared.items()
        if len(pairs) >= WORDED_SEEDS
    ]


def _interval(values: list[float]) -> str:
    low, high = t_interval(values)
    return f"{sum(values) / len(values):.1f} [{low:.1f}, {high:.1f}]"


def kind_of(attacked: Attacked) -> str:
    """What can be compared: the environment, and whether it assumes something that attacks cannot move."""
    return attacked.results["env"] + (", with memory" if attacked.results.get("assumption") else "")


def defence_of(attacked: Attacked, label: str) -> str | None:
    """The defence of a method, by its label; None for what is no method, such as a pre-trained policy."""
    of = {attacked.label(method): attacked.results["methods"][method] for method in attacked.methods}
    return of[label].get("defence")


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
    if rows := differences(attacks):
        print("\n" + markdown_table(rows, "g"))
    arguments.out.write_bytes(png(draw(attacks), DPI))


if __name__ == "__main__":
    main()
