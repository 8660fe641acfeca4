"""The report on ablations: what each variant returns, clean and under the worst attacker."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from admrl_jax.report.attacked import Attacked
from admrl_jax.report.attacks import spread
from admrl_jax.report.style import own_style
from admrl_jax.report.tables import table
from admrl_jax.runs.files import write_bytes, write_text
from admrl_jax.stats.intervals import WORDED_SEEDS


class Variant(NamedTuple):
    """One thing changed, trained and attacked.

    Attributes:
        name: of it.
        says: what was changed, in words.
        method: that was trained.
        attacked: what a suite left of it.
    """

    name: str
    says: str
    method: str
    attacked: Attacked

    def returns(self, radius: float) -> list[float]:
        """Mean test return of each seed under the worst attacker; clean ones at radius 0."""
        return [self.attacked.mean(self.method, seed, radius) for seed in self.attacked.seeds]

    @property
    def failed(self) -> int:
        """Sanity checks of the method that do not hold."""
        mine = {self.attacked.victim(self.method, seed) for seed in self.attacked.seeds}
        return sum(not check.holds for check in self.attacked.checks() if check.victim in mine)


def write_ablations_report(folder: Path, variants: Sequence[Variant], preset: str) -> Path:
    """Writes `report.md` and `ablations.png`.

    Args:
        folder: of both.
        variants: the first is what the others are compared with.
        preset: sizes of their runs.

    Returns:
        Path of `report.md`.
    """
    with own_style():
        from admrl_jax.report.figures import png

        write_bytes(folder / "ablations.png", png(draw(variants)))
    path = folder / "report.md"
    write_text(path, ablations_text(variants, preset))
    return path


def ablations_text(variants: Sequence[Variant], preset: str) -> str:
    """The report in Markdown."""
    first = variants[0].attacked
    names = {variant.attacked.results["plan"]["suite"] for variant in variants}
    blocks = [
        f"# Ablations on {first.results['env']}",
        f"Every variant was trained with the same seeds ({', '.join(map(str, first.seeds))}) and then "
        f"attacked by the suite {', '.join(f'`{name}`' for name in sorted(names))} on support and query "
        f"data. Returns on {first.results['suite']['test_tasks']} test tasks; radii are L2 norms of raw "
        f"observations. Doing nothing returns {first.floor:.2f}. Mean over seeds, with the 95 % t interval "
        f"from {WORDED_SEEDS} seeds up.",
        "**A number under attack is an upper bound: a stronger attacker may yet be found.**",
        f"**Preset `{preset}`: these are not the paper's sizes and say nothing about it.**"
        if preset != "paper"
        else "",
        returns_table(variants),
        f"## Less {variants[0].name}",
        "Differences, paired by seed.",
        differences_table(variants),
        "![ablations](ablations.png)\n\n*Returns of every seed: open, clean; filled, under the worst "
        f"attacker at radius {first.radii[-1]:g}. Dashed: doing nothing.*",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def returns_table(variants: Sequence[Variant]) -> str:
    """A row per variant: clean return, the worst at every radius, checks that failed."""
    radii = variants[0].attacked.radii
    body = [
        (
            variant.name,
            variant.says,
            spread(variant.returns(0), variant.attacked.floor),
            *(spread(variant.returns(radius), variant.attacked.floor) for radius in radii),
            "hold" if not variant.failed else f"**{variant.failed} failed**",
        )
        for variant in variants
    ]
    header = ["variant", "what is changed", "clean", *(f"radius {radius:g}" for radius in radii), "checks"]
    return table(header, body, 2)


def differences_table(variants: Sequence[Variant]) -> str:
    """A row per variant but the first: its returns minus the first one's."""
    first, *others = variants
    radii = (0, *first.attacked.radii)
    body = [
        (variant.name, *(spread(_less(variant.returns(radius), first.returns(radius))) for radius in radii))
        for variant in others
    ]
    return table(["variant", "clean", *(f"radius {radius:g}" for radius in radii[1:])], body)


def _less(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def draw(variants: Sequence[Variant]) -> Figure:
    """A line per variant, a pair of marks per seed."""
    from admrl_jax.report.figures import GREY, RETURN, new_figure

    figure, axes = new_figure(1, 1, (7.5, 1.4 + 0.38 * len(variants)))
    ax = axes[0]
    for place, variant in enumerate(variants):
        colour = variant.attacked.results["methods"][variant.method]["colour"]
        at = place + np.linspace(-0.18, 0.18, len(variant.attacked.seeds))
        clean, worst = variant.returns(0), variant.returns(variant.attacked.radii[-1])
        ax.hlines(at, worst, clean, color=colour, linewidth=1, alpha=0.6)
        ax.scatter(clean, at, s=26, facecolor="white", edgecolor=colour)
        ax.scatter(worst, at, s=26, color=colour)
    ax.axvline(variants[0].attacked.floor, color=GREY, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(variants)), [variant.name for variant in variants])
    ax.invert_yaxis()
    ax.set_xlabel(RETURN)
    return figure
