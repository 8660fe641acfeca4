"""The report of a run: tables in Markdown and figures, from the files that the run left."""

import csv
import functools
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from admrl_jax.config import METHODS
from admrl_jax.statistics import bootstrap_interval

Row = Mapping[str, Any]
Panel = tuple[str, str]
"""An attack and, for adGAN, the protocol."""
Cell = tuple[str, str]
"""Support and query, each clean or attacked."""
Series = dict[int, dict[float, float]]
"""Per seed, a curve as x -> y."""

PAPER_CLEAN = {"navigation_2d": {"maml": -12.18, "random": -13.37, "fgsm": -21.15, "admrl": -12.50}}
"""Clean returns printed in arXiv:2104.13302, section V-D, "Normal case"; no seeds, no spread."""

PAPER_TABLE_1 = {
    "navigation_2d": {"maml": -50.2, "admrl": -47.7, "random": -47.8, "fgsm": -54.1},
    "halfcheetah_dir": {"maml": 50.3, "admrl": 53.4, "random": 24.3, "fgsm": 0.03},
    "halfcheetah_vel": {"maml": -30.8, "admrl": -30.2, "random": -30.9, "fgsm": -31.4},
    "reacher": {"maml": -561.0, "admrl": -483.0, "random": -516.0, "fgsm": -572.0},
    "ant_vel": {"maml": -18.7, "admrl": -17.8, "random": -18.4, "fgsm": -22.1},
}
"""arXiv:2104.13302, Table I: returns under adGAN; strength, seeds and spread are not stated."""

LABELS = {"maml": "MAML", "random": "Random", "fgsm": "FGSM", "admrl": "adMRL"}
TABLE_1_PANELS = (("adgan", "paper"), ("adgan", "adaptive"))
TABLE_1_LABELS = {"maml": "MAML 'Baseline'", "admrl": "adMRL 'GAN'", "random": "Random", "fgsm": "FGSM"}
COLOURS = {"maml": "#0072B2", "random": "#E69F00", "fgsm": "#CC3D6B", "admrl": "#009E73"}
GREY = "#777777"
GOAL_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC3D6B", "#56B4E9", "#8C564B", "#7B4FA3", "#999933")
PANELS: dict[Panel, str] = {
    ("gaussian", ""): "Gaussian noise",
    ("l2_noise", ""): "L2 noise",
    ("fgsm", ""): "FGSM",
    ("adgan", "paper"): "adGAN, paper protocol",
    ("adgan", "adaptive"): "adGAN, adaptive",
    ("adgan", "adaptive_no_gan"): "adGAN, adaptive, no GAN loss",
}
CURVE_LABELS = {"none": "clean", "gaussian": "Gaussian noise", "fgsm": "FGSM", "adgan": "adGAN"}
STRENGTH_LABELS = {
    "gaussian": "noise std per dimension",
    "l2_noise": "L2 size",
    "fgsm": "L-inf step",
    "adgan": "L2 radius",
}
UNITS = {"paper": "raw observation units", "normalised": "standard deviations of clean observations"}
CELLS: tuple[Cell, ...] = (
    ("clean", "clean"),
    ("attacked", "clean"),
    ("clean", "attacked"),
    ("attacked", "attacked"),
)
RETURN = "return per episode"
OUTER_PANELS = {
    "train/post_return": "return after adaptation",
    "train/kl": "KL of the meta-step (nats)",
    "train/accepted": "accepted meta-steps (fraction)",
    "attack/size": "mean size of perturbations",
}
ADVERSARY_PANELS = {
    "loss": ("adversarial_loss", "gan_loss", "hinge_loss"),
    "discriminator's accuracy": ("clean_accuracy", "perturbed_accuracy"),
    "L2 size before projection": ("raw_size",),
}
TRACE_COLOURS = ("#444444", "#B8602E", "#56B4E9")


# Data


def seed_values(rows: Iterable[Row], field: str = "post", **where: Any) -> dict[int, float]:
    """`field` per seed, in the order of seeds, of the rows that match `where`."""
    matching = (row for row in rows if all(row[name] == value for name, value in where.items()))
    return dict(sorted((row["seed"], row[field]) for row in matching))


def cell_values(
    rows: Iterable[Row], panel: Panel, strength: float, cell: Cell, method: str, field: str = "post"
) -> dict[int, float]:
    """`seed_values` of one attack, strength and (support, query) cell; clean-clean needs no attack."""
    support, query = cell
    if cell == ("clean", "clean"):
        panel, strength = ("none", ""), 0.0
    where = {"attack": panel[0], "protocol": panel[1], "strength": strength}
    return seed_values(rows, field, method=method, support=support, query=query, **where)


def mean(values: Mapping[int, float]) -> float:
    """Mean over seeds; NaN without any."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def panels_of(rows: Iterable[Row]) -> dict[Panel, list[float]]:
    """The attacks that were measured, in report order, with their strengths."""
    found = {(row["attack"], row["protocol"], row["strength"]) for row in rows}
    strengths = {panel: sorted(s for *key, s in found if tuple(key) == panel) for panel in PANELS}
    return {panel: values for panel, values in strengths.items() if values}


def headline_panel(rows: Iterable[Row]) -> Panel:
    """The adaptive adGAN where it was measured, else the last attack that was."""
    panels = panels_of(rows)
    return ("adgan", "adaptive") if ("adgan", "adaptive") in panels else list(panels)[-1]


def methods_of(rows: Iterable[Row]) -> list[str]:
    """The methods that were run, in the order of `METHODS`."""
    found = {row["method"] for row in rows}
    return [method for method in METHODS if method in found]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.csv`; numbers as floats, empty cells left out."""
    with path.open(newline="") as file:
        cells = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    words = ("method", "stage")
    return [{name: cell if name in words else float(cell) for name, cell in row.items()} for row in cells]


# Tables


def number(value: float, floor: float | None = None, digits: int = 2) -> str:
    """A rounded number; an arrow marks what is below `floor`."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" + (" ↓" if floor is not None and value < floor else "")


def spread(values: Mapping[int, float], floor: float | None = None) -> str:
    """Mean over seeds, with the smallest and largest seed where there are several."""
    text = number(mean(values), floor)
    return f"{text} [{min(values.values()):.2f}, {max(values.values()):.2f}]" if len(values) > 1 else text


def each(values: Mapping[int, float]) -> str:
    """Every seed's value."""
    return ", ".join(number(value) for value in values.values()) or "-"


def table(header: Sequence[str], body: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; columns after the first `text_columns` are aligned right."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))


def setting(results: Row, path: str) -> Any:
    """A nested value of the configuration, by dotted path."""
    value: Any = results["config"]
    for name in path.split("."):
        value = value.get(name, "not recorded") if isinstance(value, dict) else value
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def settings_section(results: Row) -> str:
    """What this run is."""
    get = functools.partial(setting, results)
    units = results["config"]["units"]
    lines = {
        "environment": results["env"],
        "action scale": f"{get('env.action_scale')} (raw actions are divided by it; it sets exploration)",
        "horizon": f"{get('env.horizon')} steps",
        "seeds": get("seeds"),
        "attack units": f"{units}: {UNITS.get(units, units)}",
        "preset": results["preset"],
        "schedule": f"{get('schedule.pretrain_steps')} clean steps shared per seed, then "
        f"{get('schedule.finetune_steps')} per method (adGAN warm-up {get('schedule.warmup_steps')})",
        "training attacks": f"random: std {get('train.noise_std')}; fgsm: radius {get('train.fgsm_radius')}; "
        f"admrl: L2 bound c = {get('train.adversary.perturbation_bound')}, "
        f"GAN weight {get('train.adversary.gan_weight')}",
        "meta-test": f"{get('eval.num_tasks')} tasks, {get('eval.num_trajectories')} episodes each before "
        f"and after adaptation; strengths {get('eval.strengths')}",
        "adaptive attacker": f"{get('eval.adaptive_steps')} adGAN updates of {get('eval.adaptive_tasks')} "
        "tasks per victim and strength",
        "simulator": results["simulator"],
        "device": results["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "floor": f"{number(results['floor'])}, the mean return of doing nothing on the same tasks",
    }
    text = table(["setting", "value"], [(name, str(value)) for name, value in lines.items()], 2)
    if results["preset"] != "paper":
        text = (
            f"**This run used `{results['preset']}` settings, not the paper's: the numbers below are "
            f"not the paper's and cannot be compared with them.**\n\n{text}"
        )
    floor = number(results["floor"])
    return (
        f"# adMRL on {results['env']}\n\n{text}\n\n*Before* and *after* are returns before and after "
        "adaptation on new tasks. Support is the data that a policy adapts on, query the data it is "
        "then scored on; either can be clean or attacked. Numbers are means over seeds; [a, b] is the "
        f"smallest and largest seed. **A return after adaptation (`post`) below the floor of {floor} is "
        "worse than doing nothing; ↓ marks it.**"
    )


def clean_table(results: Row) -> str:
    """Returns without an attack."""
    rows, paper = results["rows"], PAPER_CLEAN.get(results["env"], {})
    body = []
    for method in methods_of(rows):
        pre, post = (seed_values(rows, field, method=method, attack="none") for field in ("pre", "post"))
        gain = {seed: post[seed] - pre[seed] for seed in post}
        floor = results["floor"]
        printed = number(paper.get(method, np.nan))
        cells = (spread(pre, floor), spread(post, floor), number(mean(gain)), each(pre), each(post), printed)
        body.append((LABELS[method], *cells))
    header = ["method", "before", "after", "gain", "before, each seed", "after, each seed", "paper, after"]
    return table(header, body)


def table_1(results: Row) -> str:
    """The paper's Table I: adGAN on support and query data, by both protocols."""
    rows, paper = results["rows"], PAPER_TABLE_1.get(results["env"], {})
    panels = panels_of(rows)
    columns = [(panel, s) for panel in TABLE_1_PANELS for s in panels.get(panel, [])]
    body = []
    for method in (m for m in TABLE_1_LABELS if m in methods_of(rows)):
        cells = [cell_values(rows, panel, s, ("attacked", "attacked"), method) for panel, s in columns]
        printed = number(paper.get(method, np.nan))
        scores = (spread(values, results["floor"]) for values in cells)
        body.append((TABLE_1_LABELS[method], printed, *scores))
    return table(["row", "paper, printed", *(f"{panel[1]} protocol, {s:g}" for panel, s in columns)], body)


def _grid(results: Row) -> Iterable[tuple[Panel, float, Cell]]:
    """Every attack, strength and cell that was measured; clean-clean once, first."""
    yield ("none", ""), 0.0, CELLS[0]
    for panel, strengths in panels_of(results["rows"]).items():
        yield from ((panel, strength, cell) for strength in strengths for cell in CELLS[1:])


def _grid_labels(panel: Panel, strength: float, cell: Cell) -> tuple[str, str, str, str]:
    return PANELS.get(panel, "none"), f"{strength:g}", *cell


def grid_table(results: Row) -> str:
    """Before and after adaptation for all attacks, strengths and cells."""
    rows, methods = results["rows"], methods_of(results["rows"])
    body = []
    for key in _grid(results):
        before = [number(mean(cell_values(rows, *key, m, "pre"))) for m in methods]
        after = [number(mean(cell_values(rows, *key, m)), results["floor"]) for m in methods]
        arrows = ("-" if b == "-" else f"{a} → {b}" for a, b in zip(before, after, strict=True))
        body.append((*_grid_labels(*key), *arrows))
    return table(["attack", "strength", "support", "query", *(LABELS[m] for m in methods)], body, 4)


def cells_table(results: Row) -> str:
    """Support x query at the largest strength of every attack, after adaptation."""
    rows, body = results["rows"], []
    for panel, strengths in panels_of(rows).items():
        for method in methods_of(row for row in rows if (row["attack"], row["protocol"]) == panel):
            values = (cell_values(rows, panel, strengths[-1], cell, method) for cell in CELLS)
            scores = (spread(value, results["floor"]) for value in values)
            body.append((f"{PANELS[panel]}, {strengths[-1]:g}", LABELS[method], *scores))
    return table(["attack", "method", *(f"support {s}, query {q}" for s, q in CELLS)], body, 2)


def size_table(results: Row) -> str:
    """Mean norm of the perturbations on query data."""
    rows, methods, body = results["rows"], methods_of(results["rows"]), []
    for panel, strengths in panels_of(rows).items():
        for s in strengths:
            sizes = [mean(cell_values(rows, panel, s, CELLS[3], m, "attack_size")) for m in methods]
            norm = "L-inf" if panel[0] == "fgsm" else "L2"
            body.append((PANELS[panel], f"{s:g}", norm, *(number(size, digits=3) for size in sizes)))
    return table(["attack", "strength", "norm", *(LABELS[m] for m in methods)], body, 3)


def equal_size_table(results: Row) -> str:
    """adGAN beside noise of the same L2 size; Gaussian noise is interpolated between strengths."""
    rows, panels, floor, body = results["rows"], panels_of(results["rows"]), results["floor"], []
    gaussian, sphere = ("gaussian", ""), ("l2_noise", "")

    def headline(panel: Panel, strength: float, method: str, field: str) -> float:
        cell = CELLS[3] if strength else CELLS[0]
        return mean(cell_values(rows, panel, strength, cell, method, field))

    keys = [(panel, s) for panel in panels if panel[0] == "adgan" for s in panels[panel]]
    for panel, strength in keys:
        for method in methods_of(row for row in rows if (row["attack"], row["protocol"]) == panel):
            size, post = (headline(panel, strength, method, field) for field in ("attack_size", "post"))
            points = [0.0, *panels.get(gaussian, [])]
            sizes, returns = (
                [headline(gaussian, s, method, field) for s in points] for field in ("attack_size", "post")
            )
            same_size = float(np.interp(size, sizes, returns, right=np.nan)) if len(points) > 1 else np.nan
            same_radius = headline(sphere, strength, method, "post")
            scores = [number(size, digits=3), number(post, floor)]
            for noise in (same_size, same_radius):
                scores += [number(noise, floor), number(post - noise)]
            body.append((PANELS[panel], f"{strength:g}", LABELS[method], *scores))
    header = ["attack", "strength", "method", "mean L2 size", "adGAN"]
    header += [
        "Gaussian, same mean size",
        "adGAN minus Gaussian",
        "L2 noise, same radius",
        "adGAN minus L2 noise",
    ]
    return table(header, body, 3)


def seeds_section(results: Row) -> str:
    """How much the seeds differ, and adMRL minus MAML within each seed."""
    rows, grid = results["rows"], list(_grid(results))
    seeds = sorted({row["seed"] for row in rows})
    n = len(seeds)
    if n == 1:
        text = "One seed: nothing here separates a method's effect from the luck of a training run."
    else:
        text = (
            f"{n} seeds, paired: the methods of a seed share their pre-training and all seeds share the "
            f"test tasks. Even if all {n} seeds agree, a two-sided sign test gives p = "
            f"{2.0 ** (1 - n):.3g} for one cell, and there are {len(grid)} cells. Seeds, not episodes, "
            "are the independent samples."
        )
    methods = methods_of(rows)
    spreads = []
    for panel, s, cell in (key for key in grid if key[2] in (CELLS[0], CELLS[3])):
        values = [list(cell_values(rows, panel, s, cell, m).values()) for m in methods]
        stds = (number(float(np.std(v, ddof=1))) if len(v) > 1 else "-" for v in values)
        spreads.append((PANELS.get(panel, "none"), f"{s:g}", *stds))
    header = ["attack", "strength", *(LABELS[m] for m in methods)]
    spread_text = "### Standard deviation over seeds, after adaptation\n\n" + table(header, spreads, 2)
    body, wins, losses = [], 0, 0
    for key in grid:
        maml, admrl = (cell_values(rows, *key, method) for method in ("maml", "admrl"))
        gaps = {seed: admrl[seed] - maml[seed] for seed in admrl if seed in maml}
        if not gaps:
            continue
        wins += min(gaps.values()) > 0
        losses += max(gaps.values()) < 0
        interval = bootstrap_interval(list(gaps.values())) if len(gaps) >= 3 else None
        interval_text = ["[{:.2f}, {:.2f}]".format(*interval)] if interval else []
        body.append((*_grid_labels(*key), number(mean(gaps)), each(gaps), *interval_text))
    header = ["attack", "strength", "support", "query", "mean", "each seed"]
    header += ["95% bootstrap"] if n >= 3 else []
    counts = (
        f"adMRL is above MAML in every seed in {wins} of {len(body)} cells and below it in every seed "
        f"in {losses}."
        + (" The interval resamples seeds; with so few it is too narrow." if 3 <= n < 10 else "")
    )
    paired = f"### adMRL minus MAML, after adaptation, per seed\n\n{counts}\n\n{table(header, body, 4)}"
    return "\n\n".join([text, *([spread_text] if n > 1 else []), paired])


# Figures


def _figure(panels: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes of `size` inches, in rows of `columns`."""
    rows = -(-panels // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for ax in axes[panels:]:
        ax.set_axis_off()
    for ax in axes[:panels]:
        ax.grid(color="#e6e6e6", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[:panels]


def _floor(ax: Axes, floor: float) -> None:
    ax.axhline(floor, color=GREY, linestyle="--", linewidth=1.2, label="do nothing")


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
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
    ax: Axes, series: Series, colour: str, label: str, *, noisy: bool = False, thin: bool = True
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
    ax.plot(x, y, color=colour, linewidth=2.2, label=label)


def _strength_figure(results: Row) -> Figure:
    rows, panels = results["rows"], panels_of(results["rows"])
    figure, axes = _figure(len(panels), 3 if len(panels) > 4 else 2, (4.2, 3.4), sharey=True)
    for ax, (panel, strengths) in zip(axes, panels.items(), strict=True):
        _floor(ax, results["floor"])
        x = [0.0, *strengths]
        for method in methods_of(row for row in rows if (row["attack"], row["protocol"]) == panel):
            values = [cell_values(rows, panel, s, CELLS[3] if s else CELLS[0], method) for s in x]
            ax.plot(x, [mean(v) for v in values], color=COLOURS[method], linewidth=2, label=LABELS[method])
            for s, value in zip(x, values, strict=True):
                ax.scatter([s] * len(value), list(value.values()), s=16, color=COLOURS[method], alpha=0.7)
        ax.set_title(PANELS[panel], fontsize=11)
        ax.set_xticks(x, ["clean", *(f"{s:g}" for s in strengths)])
        ax.set_xlabel(f"{STRENGTH_LABELS[panel[0]]} ({UNITS[results['config']['units']]})", fontsize=9)
    figure.supylabel(f"{RETURN}, after adaptation", fontsize=10)
    _legend(figure, axes)
    return figure


def _convergence_figure(results: Row, attacks: Sequence[str]) -> Figure:
    """Return of the saved policies over outer steps; fine-tuning starts at the dotted line."""
    curves = results["curves"]
    size = (4.4, 3.6) if len(attacks) > 1 else (7.5, 4.0)
    figure, axes = _figure(len(attacks), min(len(attacks), 3), size, sharey=True)
    for ax, attack in zip(axes, attacks, strict=True):
        _floor(ax, results["floor"])
        shared = _series(curves, "step", "post", method="pretrain", attack=attack)
        for method in methods_of(curves):
            series = _series(curves, "step", "post", method=method, attack=attack)
            for seed, curve in series.items():
                last = list(shared.get(seed, {}).items())[-1:]
                series[seed] = dict(sorted({**dict(last), **curve}.items()))
            _draw(ax, series, COLOURS[method], LABELS[method])
        _draw(ax, shared, GREY, "shared pre-training")
        ax.axvline(setting(results, "schedule.pretrain_steps"), color="black", linestyle=":", linewidth=1)
        strength = max(row["strength"] for row in curves if row["attack"] == attack)
        detail = f", {STRENGTH_LABELS[attack]} {strength:g}" if attack != "none" else ""
        ax.set_title(CURVE_LABELS[attack] + detail, fontsize=11)
        ax.set_xlabel("outer step")
    figure.supylabel(f"{RETURN}, after adaptation", fontsize=10)
    _legend(figure, axes)
    return figure


def _cells_figure(results: Row) -> Figure:
    """The four cells as bars that start at the floor, so that down means worse than doing nothing."""
    rows, panels, floor = results["rows"], panels_of(results["rows"]), results["floor"]
    panel = headline_panel(rows)
    strength, methods = panels[panel][-1], methods_of(rows)
    figure, axes = _figure(1, 1, (8.5, 4.2))
    ax = axes[0]
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        values = [cell_values(rows, panel, strength, cell, method) for cell in CELLS]
        x = np.arange(len(CELLS)) + (i - (len(methods) - 1) / 2) * width
        heights = np.array([mean(value) for value in values]) - floor
        ax.bar(x, heights, 0.92 * width, floor, color=COLOURS[method], alpha=0.85, label=LABELS[method])
        for position, value in zip(x, values, strict=True):
            y = list(value.values())
            ax.scatter([position] * len(y), y, s=12, color="black", alpha=0.7, zorder=3)
    _floor(ax, floor)
    ax.set_xticks(range(len(CELLS)), [f"support {support}\nquery {query}" for support, query in CELLS])
    ax.grid(visible=False, axis="x")
    ax.set_ylabel(f"{RETURN},\nafter adaptation")
    ax.set_title(f"{PANELS[panel]}, {STRENGTH_LABELS[panel[0]]} {strength:g}; dots: seeds", fontsize=11)
    _legend(figure, axes)
    return figure


def _training_figure(results: Row, metrics: Sequence[Row]) -> Figure:
    """Training curves and adversary diagnostics; thick lines are running means."""
    pretrain, warmup = (setting(results, f"schedule.{stage}_steps") for stage in ("pretrain", "warmup"))
    methods = methods_of(metrics)
    figure, axes = _figure(8, 2, (5.2, 3.0))
    for ax, (key, label) in zip(axes[:4], OUTER_PANELS.items(), strict=True):
        if key == "train/post_return":
            _floor(ax, results["floor"])
        style = {"noisy": True, "thin": key != "train/accepted"}
        _draw(ax, _series(metrics, "step", key, stage="pretrain"), GREY, "shared pre-training", **style)
        for method in methods:
            series = _series(metrics, "step", key, stage="finetune", method=method)
            _draw(ax, series, COLOURS[method], LABELS[method], **style)
        ax.axvline(pretrain, color="black", linestyle=":", linewidth=1)
        ax.set(xlabel="outer step (dotted: fine-tuning starts)", ylabel=label)
    # The generator's updates count from the start of its warm-up and go on with admrl's fine-tuning.
    generator = [
        {**row, "update": row["step"] - pretrain + (warmup if row["stage"] == "finetune" else 0)}
        for row in metrics
        if row["method"] == "admrl" and row["stage"] in ("warmup", "finetune")
    ]
    for ax, (label, keys) in zip(axes[4:7], ADVERSARY_PANELS.items(), strict=True):
        for key, colour in zip(keys, TRACE_COLOURS, strict=False):
            series = _series(generator, "update", f"adversary/{key}")
            _draw(ax, series, colour, key.replace("_", " "), noisy=True)
        if keys == ("raw_size",):
            bound = setting(results, "train.adversary.perturbation_bound")
            ax.axhline(bound, color="black", linestyle="--", linewidth=1, label="bound c")
        ax.axvline(warmup, color="black", linestyle=":", linewidth=1)
        ax.set(xlabel="update of adMRL's adGAN (dotted: warm-up ends)", ylabel=label)
        ax.legend(fontsize=8, frameon=False)
    strength = max(results["config"]["eval"]["strengths"])
    _floor(axes[7], results["floor"])
    for method in methods:
        series = _series(metrics, "step", "train/post_return", stage=f"adaptive-{strength:g}", method=method)
        _draw(axes[7], series, COLOURS[method], LABELS[method], noisy=True)
    axes[7].set(xlabel=f"update of the adaptive adGAN, radius {strength:g}", ylabel="frozen victim's return")
    _legend(figure, [*axes[:4], axes[7]])
    return figure


def _trajectories_figure(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Paths before and after adaptation, clean and attacked; a colour per goal."""
    goals = arrays["goals"]
    methods = [method for method in METHODS if f"{method}/clean/pre" in arrays]
    columns = [(cell, phase) for cell in ("clean", "attacked") for phase in ("pre", "post")]
    keys = [f"{method}/{cell}/{phase}" for method in methods for cell, phase in columns]
    paths = {key: np.where(arrays[f"{key}/mask"][..., None] > 0, arrays[key], np.nan) for key in keys}
    reach = max(float(np.nanpercentile(np.abs(path), 95)) for path in paths.values())
    limit = float(np.clip(reach, 1.25 * np.abs(goals).max(), 3.0 * np.abs(goals).max()))
    ticks = float(f"{0.7 * limit:.1g}") * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    figure, axes = _figure(len(keys), len(columns), (2.6, 2.6), sharex=True, sharey=True)
    for i, (ax, key) in enumerate(zip(axes, keys, strict=True)):
        for g, goal in enumerate(goals):
            colour = GOAL_COLOURS[g % len(GOAL_COLOURS)]
            ax.plot(*np.moveaxis(paths[key][g], -1, 0).swapaxes(1, 2), color=colour, linewidth=0.8, alpha=0.6)
            ax.scatter(*goal, s=130, marker="*", color=colour, edgecolors="black", linewidths=0.6, zorder=4)
        ax.plot(0, 0, "+", color="black", markersize=9, markeredgewidth=1.6, zorder=5)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks, aspect="equal")
        cell, phase = columns[i % len(columns)]
        if i < len(columns):
            ax.set_title(f"{cell}, {'before' if phase == 'pre' else 'after'} adaptation", fontsize=10)
        if i % len(columns) == 0:
            ax.set_ylabel(LABELS[methods[i // len(columns)]], fontsize=11)
    figure.supxlabel("x position (+: start, stars: goals; the frame may cut runaways)", fontsize=10)
    figure.supylabel("y position", fontsize=10)
    return figure


# The report


def write_report(run_dir: Path) -> Path:
    """Writes `report.md` and `figures/*.png` from the files of a run; the same files, the same report.

    Args:
        run_dir: holds `results.json`, `metrics.csv` and, for 2D navigation, `trajectories.npz`.

    Returns:
        Path of `report.md`.
    """
    results = json.loads((run_dir / "results.json").read_text())
    figures = _figures(results, run_dir)
    for name, (figure, _) in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        _write(run_dir / "figures" / f"{name}.png", buffer.getvalue())
    path = run_dir / "report.md"
    _write(path, report_text(results, {name: caption for name, (_, caption) in figures.items()}).encode())
    return path


def _write(path: Path, content: bytes) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _figures(results: Row, run_dir: Path) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and caption, of every figure that the files allow."""
    figures: dict[str, tuple[Figure, str]] = {}
    if panels_of(results["rows"]):
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
    present = {row["attack"] for row in results["curves"]}
    for name, attacks in (
        ("convergence_attacked", [attack for attack in CURVE_LABELS if attack in present - {"none"}]),
        ("convergence_clean", [attack for attack in ("none",) if attack in present]),
    ):
        if attacks:
            caption = (
                "Saved policies on fixed held-out tasks. Thick: mean over seeds; thin: seeds; dotted: "
                "fine-tuning starts."
            )
            if "adgan" in attacks:
                caption += " adGAN is the final generator of the admrl run of the same seed."
            figures[name] = (_convergence_figure(results, attacks), caption)
    metrics = read_metrics(run_dir / "metrics.csv")
    if metrics:
        caption = (
            "Training, on each method's own training attack (so the returns of different methods are "
            "not comparable here), adGAN's diagnostics, and the effort of the adaptive attackers at "
            "the largest strength: if the last panel still falls at its right end, a longer attack "
            "would do more harm. Thick lines: running means."
        )
        figures["training"] = _training_figure(results, metrics), caption
    if (run_dir / "trajectories.npz").exists():
        with np.load(run_dir / "trajectories.npz") as arrays:
            figure = _trajectories_figure(dict(arrays))
        options = results["config"]["eval"]
        strength = min(options["strengths"], key=lambda s: abs(s - options["curve_strength"]))
        figures["trajectories"] = (
            figure,
            "Paths in the plane of the first seed, one colour per goal. Attacked: support and query, "
            f"by the adaptive adGAN of radius {strength:g}.",
        )
    return figures


def report_text(results: Row, captions: Mapping[str, str]) -> str:
    """The report in Markdown, with the figures named in `captions`."""
    images = {name: f"![{name}](figures/{name}.png)\n\n*{caption}*" for name, caption in captions.items()}
    source = "arXiv:2104.13302"
    no_gan = ""
    if ("adgan", "adaptive_no_gan") in panels_of(results["rows"]):
        no_gan = (
            " *no GAN loss* is the adaptive attacker with GAN weight 0, against MAML only: where it "
            "does more harm, looking natural to the discriminator costs the attack strength."
        )
    blocks = [
        settings_section(results),
        "## Without an attack",
        clean_table(results),
        images.get("convergence_clean", ""),
        f"## adGAN on support and query data (layout of Table I, {source})",
        "*paper* protocol: the generator of the admrl run of the same seed, scaled to the radius, "
        "attacks all four; for three of them it is a transfer attack. *adaptive* protocol: a fresh "
        "generator of that radius is trained against each frozen policy with equal effort. The "
        "adaptive columns are the ones to judge robustness by. The paper's column states no strength, "
        f"seeds or spread. Return after adaptation; floor (do nothing) {number(results['floor'])}.",
        table_1(results),
        images.get("strength", ""),
        images.get("convergence_attacked", ""),
        "## Support x query",
        "At the largest strength of each attack, after adaptation.",
        cells_table(results),
        images.get("cells", ""),
        "## How strong the attacks really are",
        "Equal strength is not equal size: Gaussian strength is a standard deviation per dimension "
        "(mean L2 norm about strength x sqrt(dimensions)), FGSM's is an L-inf step (L2 norm up to "
        "strength x sqrt(dimensions)), adGAN's is an L2 radius. Mean norm of the perturbations on "
        "query data:",
        size_table(results),
        "adGAN beside noise of its size (return after adaptation; - where there is nothing to "
        "compare): Gaussian noise of the same mean L2 norm, interpolated linearly between clean and "
        "the measured strengths, and noise in a random direction whose L2 norm is exactly the radius. "
        "A difference near or above zero means that the learned attack does no more harm than noise."
        + no_gan,
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
