"""The figures of a report."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from admrl_jax.report.results import (
    CELLS,
    Row,
    cell_values,
    headline_panel,
    mean,
    method_label,
    methods_of,
    methods_under,
    panel_label,
    panels_of,
    setting,
    strength_label,
)

Series = dict[int, dict[float, float]]
"""Per seed, a curve as x -> y."""

DPI = 130
COLOURS = 256
"""Of a PNG's palette."""
GREY = "#777777"
GOAL_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC3D6B", "#56B4E9", "#8C564B", "#7B4FA3", "#999933")
RETURN = "return per episode"
OUTER_PANELS = {
    "train/post_return": "return after adaptation",
    "train/kl": "KL of the meta-step (nats)",
    "train/accepted": "accepted meta-steps (fraction)",
    "attack/size": "mean size (in the attack's norm)",
}
ADVERSARY_PANELS = {
    "loss": ("adversarial_loss", "gan_loss", "hinge_loss"),
    "discriminator's accuracy": ("clean_accuracy", "perturbed_accuracy"),
    "L2 size before projection": ("raw_size",),
}
FRACTION_LIMITS = (-0.04, 1.04)
TRACES = (("#444444", "-"), ("#B8602E", "-"), ("#56B4E9", "--"))
"""Colour and line; the dashes show what lies below them."""


def draw(
    results: Row, metrics: Sequence[Row], trajectories: Mapping[str, np.ndarray]
) -> dict[str, tuple[Figure, str]]:
    """Draws every figure for which there is data.

    Args:
        results: of `read_results`.
        metrics: of `read_metrics`; may be empty.
        trajectories: of `read_trajectories`; may be empty.

    Returns:
        Name -> figure and caption.
    """
    figures: dict[str, tuple[Figure, str]] = {}
    if panels_of(results):
        figures["strength"] = (
            _strength_figure(results),
            "Return after adaptation over attack strength, support and query attacked. Line: mean over "
            "seeds; points: seeds. The horizontal axes of different attacks are not the same scale "
            "(see below).",
        )
        figures["cells"] = (
            _cells_figure(results),
            "The four support x query cells. Bars start at the floor: down is worse than doing nothing.",
        )
    present = dict.fromkeys(row["attack"] for row in results["curves"])
    clean = [attack for attack in present if results["attacks"][attack]["strength"] == "none"]
    for name, attacks in (
        ("convergence_attacked", [attack for attack in present if attack not in clean]),
        ("convergence_clean", clean),
    ):
        if attacks:
            caption = (
                "Saved policies on fixed held-out tasks. Thick: mean over seeds; thin: seeds; dotted: "
                "fine-tuning starts."
            )
            if any(results["attacks"][attack]["is_learned"] for attack in attacks):
                caption += " Learned attacks are those that a method of the same seed was trained against."
            figures[name] = (_convergence_figure(results, attacks), caption)
    if metrics:
        caption = (
            "Training, on each method's own training attack (so the returns of different methods are "
            "not comparable here), diagnostics of an opponent that learns, and the effort of attackers at "
            "the largest strength: if the last panel still falls at its right end, a longer attack "
            "would do more harm. Thick lines: running means."
        )
        figures["training"] = _training_figure(results, metrics), caption
    if trajectories:
        options = results["config"]["eval"]
        strength = min(options["strengths"], key=lambda s: abs(s - options["curve_strength"]))
        figures["trajectories"] = (
            _trajectories_figure(results, trajectories),
            "Paths in the plane of the first seed, one colour per goal. Attacked: support and query, "
            f"by the attacker trained against each policy, of radius {strength:g}.",
        )
    return figures


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG with a palette, a third as large; the same figure always gives the same bytes."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    image = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    return packed.getvalue()


def new_figure(
    panels: int, columns: int, size: tuple[float, float], **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes of `size` inches, in rows of `columns`."""
    rows = -(-panels // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=layout)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for ax in axes[panels:]:
        ax.set_axis_off()
    for ax in axes[:panels]:
        ax.grid(color="#e6e6e6", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[:panels]


def _colour(results: Row, method: str) -> str:
    return results["methods"][method]["colour"]


def _floor(ax: Axes, floor: float) -> None:
    ax.axhline(floor, color=GREY, linestyle="--", linewidth=1.2, label="do nothing")


def put_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend below the figure for what `axes` show, each label once."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = min(len(entries), int(figure.get_figwidth() / 1.2))
    handles, labels = list(entries.values()), list(entries)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _series(rows: Iterable[Row], x: str, y: str, **where: Any) -> Series:
    """Curves `x -> y` per seed of the rows that match `where` and have `y`."""
    series: Series = {}
    for row in rows:
        if y in row and all(row.get(name) == value for name, value in where.items()):
            series.setdefault(int(row["seed"]), {})[row[x]] = row[y]
    return series


def _draw(
    ax: Axes,
    series: Series,
    colour: str,
    label: str,
    *,
    noisy: bool = False,
    thin: bool = True,
    line: str = "-",
) -> None:
    """A thin line per seed and their mean, thick; the mean of `noisy` curves is smoothed."""
    x = sorted({x for curve in series.values() for x in curve})
    if not x:
        return
    for curve in series.values() if thin else ():
        ax.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, alpha=0.35)
    y = [np.mean([curve[point] for curve in series.values() if point in curve]) for point in x]
    window = np.ones(1 + 2 * (len(x) // 40) if noisy else 1)
    y = np.convolve(y, window, "same") / np.convolve(np.ones(len(x)), window, "same")
    ax.plot(x, y, color=colour, linewidth=2.2, linestyle=line, label=label)


def _strength_figure(results: Row) -> Figure:
    rows, panels = results["rows"], panels_of(results)
    figure, axes = new_figure(len(panels), 3 if len(panels) > 4 else 2, (4.2, 3.4), sharey=True)
    for ax, (panel, strengths) in zip(axes, panels.items(), strict=True):
        _floor(ax, results["floor"])
        x = [0.0, *strengths]
        for method in methods_under(results, panel):
            values = [cell_values(rows, panel, s, CELLS[3] if s else CELLS[0], method) for s in x]
            ax.plot(
                x,
                [mean(v) for v in values],
                color=_colour(results, method),
                linewidth=2,
                label=method_label(results, method),
            )
            for s, value in zip(x, values, strict=True):
                ax.scatter(
                    [s] * len(value), list(value.values()), s=16, color=_colour(results, method), alpha=0.7
                )
        ax.set_title(panel_label(results, panel), fontsize=11)
        ax.set_xticks(x, ["clean", *(f"{s:g}" for s in strengths)])
        ax.set_xlabel(f"{strength_label(results, panel[0])} ({results['units']})", fontsize=9)
    figure.supylabel(f"{RETURN}, after adaptation", fontsize=10)
    put_legend(figure, axes)
    return figure


def _convergence_figure(results: Row, attacks: Sequence[str]) -> Figure:
    """Return of the saved policies over outer steps; fine-tuning starts at the dotted line."""
    curves = results["curves"]
    size = (4.4, 3.6) if len(attacks) > 1 else (7.5, 4.0)
    figure, axes = new_figure(len(attacks), min(len(attacks), 3), size, sharey=True)
    for ax, attack in zip(axes, attacks, strict=True):
        _floor(ax, results["floor"])
        shared = _series(curves, "step", "post", method="pretrain", attack=attack)
        for method in methods_of(results, curves):
            series = _series(curves, "step", "post", method=method, attack=attack)
            for seed, curve in series.items():
                last = list(shared.get(seed, {}).items())[-1:]
                series[seed] = dict(sorted({**dict(last), **curve}.items()))
            _draw(ax, series, _colour(results, method), method_label(results, method))
        _draw(ax, shared, GREY, "shared pre-training")
        ax.axvline(setting(results, "schedule.pretrain_steps"), color="black", linestyle=":", linewidth=1)
        strength = max(row["strength"] for row in curves if row["attack"] == attack)
        detail = f", {strength_label(results, attack)} {strength:g}" if strength else ""
        ax.set_title(results["attacks"][attack]["label"] + detail, fontsize=11)
        ax.set_xlabel("outer step")
    figure.supylabel(f"{RETURN}, after adaptation", fontsize=10)
    put_legend(figure, axes)
    return figure


def _cells_figure(results: Row) -> Figure:
    """The four cells as bars that start at the floor, so that down means worse than doing nothing."""
    rows, panels, floor = results["rows"], panels_of(results), results["floor"]
    panel = headline_panel(results)
    strength, methods = panels[panel][-1], methods_of(results, rows)
    figure, axes = new_figure(1, 1, (8.5, 4.2))
    ax = axes[0]
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        values = [cell_values(rows, panel, strength, cell, method) for cell in CELLS]
        x = np.arange(len(CELLS)) + (i - (len(methods) - 1) / 2) * width
        heights = np.array([mean(value) for value in values]) - floor
        ax.bar(
            x,
            heights,
            0.92 * width,
            floor,
            color=_colour(results, method),
            alpha=0.85,
            label=method_label(results, method),
        )
        for position, value in zip(x, values, strict=True):
            y = list(value.values())
            ax.scatter([position] * len(y), y, s=12, color="black", alpha=0.7, zorder=3)
    _floor(ax, floor)
    ax.set_xticks(range(len(CELLS)), [f"support {support}\nquery {query}" for support, query in CELLS])
    ax.grid(visible=False, axis="x")
    ax.set_ylabel(f"{RETURN},\nafter adaptation")
    ax.set_title(
        f"{panel_label(results, panel)}, {strength_label(results, panel[0])} {strength:g}; dots: seeds",
        fontsize=11,
    )
    put_legend(figure, axes)
    return figure


def _training_figure(results: Row, metrics: Sequence[Row]) -> Figure:
    """Training curves, diagnostics of opponents, and attackers' effort; thick lines are running means."""
    figure, axes = new_figure(8, 2, (5.2, 3.0))
    _draw_outer_steps(axes[:4], results, metrics)
    _draw_opponents(axes[4:7], results, metrics)
    _draw_effort(axes[7], results, metrics)
    put_legend(figure, [*axes[:4], axes[7]])
    figure.align_ylabels()
    return figure


def _draw_outer_steps(axes: Sequence[Axes], results: Row, metrics: Sequence[Row]) -> None:
    """Training of every method, each on its own training attack."""
    pretrain = setting(results, "schedule.pretrain_steps")
    for ax, (key, label) in zip(axes, OUTER_PANELS.items(), strict=True):
        if key == "train/post_return":
            _floor(ax, results["floor"])
        thin = key != "train/accepted"
        series = _series(metrics, "step", key, stage="pretrain", method="pretrain")
        _draw(ax, series, GREY, "shared pre-training", noisy=True, thin=thin)
        for method in methods_of(results, metrics):
            series = _series(metrics, "step", key, stage="finetune", method=method)
            _draw(ax, series, _colour(results, method), method_label(results, method), noisy=True, thin=thin)
        ax.axvline(pretrain, color="black", linestyle=":", linewidth=1)
        ax.set(xlabel="outer step (dotted: fine-tuning starts)", ylabel=label)
        if key == "train/accepted":
            ax.set_ylim(*FRACTION_LIMITS)


def _draw_opponents(axes: Sequence[Axes], results: Row, metrics: Sequence[Row]) -> None:
    """Diagnostics of the opponent of the first method that has one that learns."""
    learning = [row for row in metrics if any(name.startswith("adversary/") for name in row)]
    trained = methods_of(results, (row for row in learning if row["stage"] == "finetune"))
    if not trained:
        for ax in axes:
            ax.set_axis_off()
        return
    pretrain = setting(results, "schedule.pretrain_steps")
    config = results["config"]["defences"][results["methods"][trained[0]]["defence"]]
    warmup = config.get("warmup_steps", 0)
    # Updates count from the start of the warm-up and go on with fine-tuning.
    updates = [
        {**row, "update": row["step"] - pretrain + (warmup if row["stage"] == "finetune" else 0)}
        for row in learning
        if row["method"] == trained[0] and row["stage"] in ("warmup", "finetune")
    ]
    for ax, (label, keys) in zip(axes, ADVERSARY_PANELS.items(), strict=True):
        for key, (colour, line) in zip(keys, TRACES, strict=False):
            series = _series(updates, "update", f"adversary/{key}")
            name = key.replace("_", " ").replace("gan", "GAN")
            _draw(ax, series, colour, name, noisy=True, line=line)
        if keys == ("raw_size",) and "perturbation_bound" in config:
            bound = config["perturbation_bound"]
            ax.axhline(bound, color="black", linestyle="--", linewidth=1, label="bound c")
        if "clean_accuracy" in keys:
            ax.set_ylim(*FRACTION_LIMITS)
        ax.axvline(warmup, color="black", linestyle=":", linewidth=1)
        owner = method_label(results, trained[0])
        ax.set(xlabel=f"update of the opponent of {owner} (dotted: warm-up ends)", ylabel=label)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False)


def _draw_effort(ax: Axes, results: Row, metrics: Sequence[Row]) -> None:
    """Returns of the frozen policies under the headline's attackers while those are trained."""
    attack, strength = headline_panel(results)[0], max(results["config"]["eval"]["strengths"])
    _floor(ax, results["floor"])
    for method in methods_of(results, metrics):
        stage = f"attack-{attack}-{strength:g}"
        series = _series(metrics, "step", "train/post_return", stage=stage, method=method)
        _draw(ax, series, _colour(results, method), method_label(results, method), noisy=True)
    label = panel_label(results, (attack, ""))
    ax.set(xlabel=f"update of {label}, strength {strength:g}", ylabel="frozen policy's return")


def frame(paths: Sequence[np.ndarray], goals: np.ndarray) -> tuple[float, float]:
    """Half the side of a square around the start, and the share of positions that it leaves out.

    The square holds the goals and all paths except those far beyond the 99th percentile.
    """
    usual = max(float(np.nanpercentile(np.abs(path), 99)) for path in paths)
    reach = np.concatenate([np.abs(path).max(axis=-1).ravel() for path in paths])
    reach = reach[np.isfinite(reach)]
    limit = max(1.05 * min(float(reach.max()), 1.25 * usual), 1.25 * float(np.abs(goals).max()))
    return limit, float(np.mean(reach > limit))


def _trajectories_figure(results: Row, arrays: Mapping[str, np.ndarray]) -> Figure:
    """Paths before and after adaptation, clean and attacked; a colour per goal."""
    goals = arrays["goals"]
    methods = [method for method in results["methods"] if f"{method}/clean/pre" in arrays]
    columns = [(cell, phase) for cell in ("clean", "attacked") for phase in ("pre", "post")]
    keys = [f"{method}/{cell}/{phase}" for method in methods for cell, phase in columns]
    paths = {key: np.where(arrays[f"{key}/mask"][..., None] > 0, arrays[key], np.nan) for key in keys}
    limit, share_cut = frame(list(paths.values()), goals)
    figure, axes = new_figure(len(keys), len(columns), (2.6, 2.6), sharex=True, sharey=True)
    for i, (ax, key) in enumerate(zip(axes, keys, strict=True)):
        for g, goal in enumerate(goals):
            colour = GOAL_COLOURS[g % len(GOAL_COLOURS)]
            ax.plot(*np.moveaxis(paths[key][g], -1, 0).swapaxes(1, 2), color=colour, linewidth=0.8, alpha=0.6)
            ax.scatter(*goal, s=130, marker="*", color=colour, edgecolors="black", linewidths=0.6, zorder=4)
        ax.plot(0, 0, "+", color="black", markersize=9, markeredgewidth=1.6, zorder=5)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        cell, phase = columns[i % len(columns)]
        if i < len(columns):
            ax.set_title(f"{cell}, {'before' if phase == 'pre' else 'after'} adaptation", fontsize=10)
        if i % len(columns) == 0:
            ax.set_ylabel(method_label(results, methods[i // len(columns)]), fontsize=11)
    for axis in (axes[0].xaxis, axes[0].yaxis):  # shared by all
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    cut = f"; {share_cut:.2%} of the positions are outside the frame" if share_cut else ""
    figure.supxlabel(f"x position (+: start, stars: goals{cut})", fontsize=10)
    figure.supylabel("y position", fontsize=10)
    return figure
