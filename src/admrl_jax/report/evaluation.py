"""The report of an evaluation: return against steps of adaptation, for every number of shots."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from admrl_jax.report.style import own_style
from admrl_jax.report.tables import rounded, table
from admrl_jax.runs.files import write_bytes, write_text


def write_evaluation_report(folder: Path, results: dict[str, Any], extras: Iterable[str] = ()) -> Path:
    """Writes `report.md` and `figures/steps.png`.

    Args:
        folder: of the results.
        results: what `evaluation.json` holds.
        extras: further blocks of Markdown, put at the end.
    """
    with own_style():
        from admrl_jax.report.figures import png

        figure = png(_steps_figure(results))
    (folder / "figures").mkdir(exist_ok=True)
    write_bytes(folder / "figures" / "steps.png", figure)
    blocks = [
        f"# Evaluation: {results['env']}",
        _introduction(results),
        steps_table(results),
        "![return against steps](figures/steps.png)",
        "*Return against steps of adaptation, mean over tasks and seeds; bars: one standard error over "
        "tasks. Dashed: doing nothing.*",
        *extras,
    ]
    path = folder / "report.md"
    write_text(path, "\n\n".join(blocks) + "\n")
    return path


def _introduction(results: dict[str, Any]) -> str:
    count = len(results["rows"][0]["returns"][0])
    sizes = ", ".join(f"{x:g}" for x in results["step_sizes"]) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{count} tasks, {results['query_episodes']} episodes each at every stage, the same for all "
        f"policies; no attack. Step sizes of adaptation: {sizes}. Doing nothing returns "
        f"{results['floor']:.2f}.\n\n"
        f"Engine: {results['simulator']}. Device: {results['device']}. {versions}."
    )


def _mean_and_error(results: dict[str, Any], method: str, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """`[S + 1]` mean return over tasks and seeds, and its standard error over tasks."""
    rows = [row for row in results["rows"] if row["method"] == method and row["shots"] == shots]
    by_task = np.mean([row["returns"] for row in rows], axis=0)
    count = by_task.shape[1]
    error = by_task.std(axis=1, ddof=1) / count**0.5 if count > 1 else np.zeros(len(by_task))
    return by_task.mean(axis=1), error


def _shots(results: dict[str, Any]) -> list[int]:
    return sorted({row["shots"] for row in results["rows"]})


def steps_table(results: dict[str, Any]) -> str:
    """One row per method and number of shots, one column per stage."""
    num_steps = len(results["step_sizes"])
    header = ["method", "episodes per step", "before", *(f"step {i + 1}" for i in range(num_steps))]
    body = []
    for method, words in results["methods"].items():
        for shots in _shots(results):
            means, errors = _mean_and_error(results, method, shots)
            cells = [
                f"{rounded(mean, results['floor'])} ± {error:.2f}"
                for mean, error in zip(means, errors, strict=True)
            ]
            body.append([words["label"], str(shots), *cells])
    return table(header, body)


def _steps_figure(results: dict[str, Any]) -> Any:
    from admrl_jax.report.figures import GREY, RETURN, new_figure, put_legend

    shots = _shots(results)
    figure, axes = new_figure(len(shots), min(3, len(shots)), (4.6, 3.6), sharey=True)
    steps = np.arange(len(results["step_sizes"]) + 1)
    for ax, count in zip(axes, shots, strict=True):
        ax.axhline(results["floor"], color=GREY, linestyle="--", linewidth=1.2, label="do nothing")
        for method, words in results["methods"].items():
            means, errors = _mean_and_error(results, method, count)
            ax.errorbar(
                steps, means, errors, color=words["colour"], label=words["label"], marker="o", capsize=3
            )
        ax.set_title(f"{count} episodes per step", fontsize=11)
        ax.set_xlabel("steps of adaptation")
        ax.set_xticks(steps)
    axes[0].set_ylabel(RETURN)
    put_legend(figure, axes)
    return figure
