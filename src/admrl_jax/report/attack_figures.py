"""The figures of an attack's report."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from admrl_jax.report.attacked import Attacked
from admrl_jax.report.figures import GREY, RETURN, new_figure, put_legend
from admrl_jax.stats.checks import LEARNED
from admrl_jax.stats.intervals import WORDED_SEEDS, t_interval
from admrl_jax.stats.scores import performance_profile


def draw(attacked: Attacked) -> dict[str, tuple[Figure, str]]:
    """Every figure for which there is data: name -> figure and caption."""
    figures = {
        "radius": (
            _radius_figure(attacked),
            "Return on test tasks under the worst attacker of the suite. Points: seeds; bars: 95 % t "
            f"interval (from {WORDED_SEEDS} seeds up). Dotted: the victim sees only the mean observation.",
        )
    }
    learned = [name for name, card in attacked.results["members"].items() if card["kind"] == LEARNED]
    # A single update from a single start is no curve.
    learned = [name for name in learned if any(len(row["effort"]) > 1 for row in attacked.rows(entry=name))]
    if learned:
        figures["effort"] = (
            _effort_figure(attacked, learned),
            f"Lowest return so far against updates, or starts, at radius {attacked.radii[-1]:g}, one panel "
            "per attacker that learns, one line per victim. A line that still falls at its right end says: "
            "not converged.",
        )
    if len(attacked.seeds) >= WORDED_SEEDS:
        figures["profile"] = (
            _profile_figure(attacked),
            "Share of seeds and test tasks with a return above the value on the axis.",
        )
    return figures


def _colour(attacked: Attacked, method: str) -> str:
    return attacked.results["methods"][method]["colour"]


def _floor(ax: Axes, attacked: Attacked) -> None:
    ax.axhline(attacked.floor, color=GREY, linestyle="--", linewidth=1.2, label="do nothing")


def _radius_figure(attacked: Attacked) -> Figure:
    figure, axes = new_figure(1, 1, (7.5, 4.4))
    ax = axes[0]
    _floor(ax, attacked)
    x = [0.0, *attacked.radii]
    width = 0.02 * max(x)
    for i, method in enumerate(attacked.methods):
        colour, shift = _colour(attacked, method), (i - (len(attacked.methods) - 1) / 2) * width
        values = np.array([[attacked.mean(method, seed, r) for r in x] for seed in attacked.seeds])
        at = np.array(x) + shift
        ax.plot(at, values.mean(axis=0), color=colour, linewidth=2, label=attacked.label(method))
        for seed in values:
            ax.scatter(at, seed, s=16, color=colour, alpha=0.7)
        if len(attacked.seeds) >= WORDED_SEEDS:
            ends = np.array([t_interval(column) for column in values.T])
            ax.vlines(at, ends[:, 0], ends[:, 1], color=colour, linewidth=1.2, alpha=0.6)
        blind = np.nanmean([attacked.mean(method, s, attacked.radii[0], "blind") for s in attacked.seeds])
        if np.isfinite(blind):
            ax.axhline(float(blind), color=colour, linestyle=":", linewidth=1)
    ax.set_xticks(x, ["clean", *(f"{radius:g}" for radius in attacked.radii)])
    ax.set_xlabel(f"L2 radius ({attacked.results['units']})")
    ax.set_ylabel(f"{RETURN}, after adaptation")
    put_legend(figure, axes)
    return figure


def _effort_figure(attacked: Attacked, members: Sequence[str]) -> Figure:
    radius = attacked.radii[-1]
    figure, axes = new_figure(len(members), 3, (3.8, 2.8), sharey=True)
    for ax, member in zip(axes, members, strict=True):
        _floor(ax, attacked)
        for method in attacked.methods:
            for number, seed in enumerate(attacked.seeds):
                clean = attacked.mean(method, seed, 0)
                for row in attacked.rows(entry=member, method=method, seed=seed, radius=radius):
                    lowest = np.minimum.accumulate([clean, *row["effort"]])
                    label = attacked.label(method) if number == 0 else None
                    ax.plot(lowest, color=_colour(attacked, method), linewidth=1.6, label=label)
        ax.set_title(member, fontsize=10)
        ax.set_xlabel("starts" if attacked.is_drawn(member) else "updates", fontsize=9)
    figure.supylabel(RETURN, fontsize=10)
    put_legend(figure, axes)
    return figure


def _profile_figure(attacked: Attacked) -> Figure:
    shown = attacked.radii
    figure, axes = new_figure(len(shown), min(3, len(shown)), (4.0, 3.2), sharey=True)
    for ax, radius in zip(axes, shown, strict=True):
        for method in attacked.methods:
            found = np.stack([np.asarray(attacked.returns(method, s, radius)) for s in attacked.seeds])
            at = np.linspace(found.min(), found.max(), 200)
            share = performance_profile(found, at)
            ax.plot(at, share, color=_colour(attacked, method), linewidth=2, label=attacked.label(method))
        ax.axvline(attacked.floor, color=GREY, linestyle="--", linewidth=1.2, label="do nothing")
        ax.set_title(f"radius {radius:g}", fontsize=10)
        ax.set_xlabel(RETURN, fontsize=9)
    figure.supylabel("share above", fontsize=10)
    put_legend(figure, axes)
    return figure
