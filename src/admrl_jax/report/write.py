"""Writes the report of a run: text, tables and figures, from the files that the run left."""

from collections.abc import Mapping
from pathlib import Path

from admrl_jax.report.attacked import ATTACK_FOLDER, Attacked
from admrl_jax.report.attacks import headline_table
from admrl_jax.report.results import (
    Row,
    has_results,
    headline_panel,
    panel_label,
    read_results,
    read_trajectories,
)
from admrl_jax.report.seeds import seeds_section
from admrl_jax.report.style import own_style
from admrl_jax.report.tables import (
    cells_table,
    clean_table,
    equal_size_table,
    grid_table,
    opponents_table,
    rounded,
    settings_section,
    size_table,
    table_1,
)
from admrl_jax.runs.files import write_bytes, write_text
from admrl_jax.runs.metrics import read_metrics


def write_report(run_dir: Path) -> Path:
    """Writes `report.md` and `figures/*.png` from the files of a run; the same files give the same report.

    Args:
        run_dir: holds `results.json`, `metrics.csv` and, for 2D navigation, `trajectories.npz`.

    Returns:
        Path of `report.md`.
    """
    results = read_results(run_dir)
    with own_style():
        # Imported here because it takes half a second, which the start of a run need not wait for.
        from admrl_jax.report.figures import draw, png

        figures = draw(results, read_metrics(run_dir), read_trajectories(run_dir))
        (run_dir / "figures").mkdir(exist_ok=True)
        for name, (figure, _) in figures.items():
            write_bytes(run_dir / "figures" / f"{name}.png", png(figure))
    path = run_dir / "report.md"
    captions = {name: caption for name, (_, caption) in figures.items()}
    write_text(path, report_text(results, captions, _attack_section(run_dir / ATTACK_FOLDER)))
    return path


def _attack_section(folder: Path) -> str:
    """What a suite of attackers did to the run's policies; empty where none was tried."""
    if not has_results(folder):
        return ""
    attacked = Attacked(read_results(folder))
    return "\n\n".join(
        [
            "## Under many attackers",
            f"Suite `{attacked.results['plan']['suite']}`, support and query attacked, the lowest return "
            f"that any attacker left; the whole of it is in [{ATTACK_FOLDER}]({ATTACK_FOLDER}/report.md).",
            headline_table(attacked, attacked.checks()),
        ]
    )


def report_text(results: Row, captions: Mapping[str, str], attack: str = "") -> str:
    """The report in Markdown.

    Args:
        results: of `read_results`.
        captions: of the figures that there are, by name.
        attack: block on what a suite of attackers did.
    """
    images = {name: f"![{name}](figures/{name}.png)\n\n*{caption}*" for name, caption in captions.items()}
    opponents = opponents_table(results)
    source = "arXiv:2104.13302"
    headline = panel_label(results, headline_panel(results)).split(",")[0]
    blocks = [
        settings_section(results),
        "## Without an attack",
        clean_table(results),
        images.get("convergence_clean", ""),
        f"## {headline} on support and query data (layout of Table I, {source})",
        "*paper* protocol: the attacker that one method was trained against, of the same seed, scaled to "
        "the radius, attacks all methods; for the others it is a transfer attack. *adaptive* protocol: a "
        "fresh attacker of that radius is trained against each frozen policy with equal effort, from one "
        "start. **A policy's robustness is the lowest return that any attacker leaves it; one start of one "
        "attacker bounds it from above only.** The paper's column states no strength, seeds or spread. "
        f"Return after adaptation; floor (do nothing) {rounded(results['floor'])}.",
        table_1(results),
        images.get("strength", ""),
        images.get("convergence_attacked", ""),
        "What the opponent learns: the policy that fine-tuning began with, left as it is, under the opponent "
        "after so many steps."
        if opponents
        else "",
        opponents,
        attack,
        "## Support x query",
        "At the largest strength of each attack, after adaptation.",
        cells_table(results),
        images.get("cells", ""),
        "## How strong the attacks really are",
        "Equal strength is not equal size: the strength of unbounded noise is a standard deviation per "
        "dimension (mean L2 norm about strength x sqrt(dimensions)), an L-inf step has an L2 norm up to "
        "strength x sqrt(dimensions). Mean norm of the perturbations on query data:",
        size_table(results),
        "Learned attacks beside noise of their size (return after adaptation; - where there is nothing to "
        "compare). A difference near or above zero means that the learned attack does no more harm than "
        "noise. An attack that was measured on one method only shows what one of its own terms costs it.",
        equal_size_table(results),
        "## What the seeds can and cannot say",
        seeds_section(results),
        "## All cells",
        "Return before → after adaptation, mean over seeds.",
        grid_table(results),
        "## Training" if "training" in images else "",
        images.get("training", ""),
        "## Trajectories" if "trajectories" in images else "",
        images.get("trajectories", ""),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"
