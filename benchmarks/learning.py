"""Whether MAML learns on every environment: `python -m benchmarks.learning`.

Reads the pre-training of run directories, which leave one row per outer step in their metrics:

    python -m experiments.ant_vel --until pretrain --schedule.pretrain-steps 100 \
        --run-dir results/learning/ant_vel

and writes a table into docs/environments.md and a figure beside the runs. Start and end are means
over a few outer steps; the standard errors come from the spread between them, each with tasks of its own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from admrl_jax.report.figures import png
from admrl_jax.runs.metrics import read_metrics
from benchmarks.common import DPI, markdown_table, replace_section

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Arguments:
    """Learning curves and a table of start and end."""

    runs: Path = ROOT / "results"
    """Folder with run directories, and more of them in `learning/`."""
    steps: int = 100
    """Outer steps of each run that are looked at."""
    window: int = 10
    """Outer steps at either end that are averaged."""
    write: bool = True
    """Replace the table in docs/environments.md and the figure beside the runs."""


def read_curves(run: Path, steps: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Name of the environment, and returns before and after adaptation `[steps, seeds]`."""
    name = json.loads((run / "config.json").read_text())["env"]["name"]
    rows = [row for row in read_metrics(run) if row["stage"] == "pretrain"]
    seeds = sorted({row["seed"] for row in rows})
    curves = [
        np.array([[row[f"train/{kind}_return"] for row in rows if row["seed"] == seed] for seed in seeds])
        for kind in ("pre", "post")
    ]
    curves = [curve.T[:steps] for curve in curves]
    return name, curves[0], curves[1]


def summarise(name: str, post: np.ndarray, pre: np.ndarray, window: int) -> dict[str, Any]:
    """Start and end of one environment's curve."""
    first, last = post[:window].ravel(), post[-window:].ravel()
    error = np.sqrt(first.var(ddof=1) / first.size + last.var(ddof=1) / last.size)
    gain = last.mean() - first.mean()
    return {
        "environment": name,
        "outer steps": len(post),
        "after adaptation, first steps": float(first.mean()),
        "last steps": float(last.mean()),
        "gain": float(gain),
        "standard error": float(error),
        "gain / error": float(gain / error),
        "before adaptation, last steps": float(pre[-window:].mean()),
    }


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """One panel per environment: return before and after adaptation over outer steps."""
    columns = 3
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, (pre, post)) in zip(axes, curves.items(), strict=False):
        steps = np.arange(1, len(post) + 1)
        for values, colour, label in ((pre, "#777777", "before"), (post, "#0072B2", "after")):
            ax.plot(steps, values, color=colour, linewidth=1.2)
            ax.plot([], [], color=colour, label=f"{label} adaptation")
        ax.set_title(name, fontsize=11)
        ax.grid(alpha=0.3)
    for ax in axes[len(curves) :]:
        ax.remove()
    axes[0].legend(fontsize=8, frameon=False)
    figure.supxlabel("outer step", fontsize=10)
    figure.supylabel("return per episode", fontsize=10)
    return figure


def main() -> None:
    """Runs the summary from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.learning", description=__doc__)
    curves, rows = {}, []
    files = [*arguments.runs.glob("*/metrics.csv*"), *arguments.runs.glob("learning/*/metrics.csv*")]
    for run in sorted({path.parent for path in files}, key=lambda path: path.name):
        name, pre, post = read_curves(run, arguments.steps)
        if not post.size:
            continue  # It went on from another run's pre-training.
        curves[run.name] = (pre, post)
        rows.append(
            summarise(name if run.name == name else f"{name} ({run.name})", post, pre, arguments.window)
        )
    if not rows:
        raise SystemExit(f"error: no runs in {arguments.runs}")
    table = markdown_table(rows, ".1f")
    print(table)
    if arguments.write:
        (arguments.runs / "learning.png").write_bytes(png(draw(curves), DPI))
        replace_section(ROOT / "docs" / "environments.md", "learning", table)


if __name__ == "__main__":
    main()
