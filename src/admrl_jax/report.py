"""The report of a run: tables and text in Markdown, with the figures, from the files that the run left."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from admrl_jax.files import write_bytes, write_text
from admrl_jax.results import (
    CELLS,
    LABELS,
    PANELS,
    PAPER_CLEAN,
    PAPER_TABLE_1,
    UNITS,
    Cell,
    Panel,
    Row,
    cell_values,
    mean,
    methods_of,
    panels_of,
    read_metrics,
    read_results,
    read_trajectories,
    seed_values,
    setting,
)
from admrl_jax.statistics import bootstrap_interval

TABLE_1_PANELS = (("adgan", "paper"), ("adgan", "adaptive"))
TABLE_1_LABELS = {"maml": "MAML 'Baseline'", "admrl": "adMRL 'GAN'", "random": "Random", "fgsm": "FGSM"}


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
        "adaptive attacker": f"{get('eval.adaptive_steps')} adGAN updates per victim and strength; each on "
        f"{get('eval.adaptive_tasks')} tasks, {get('eval.adaptive_trajectories')} episodes each before "
        f"and after adaptation, with {get('eval.adaptive_epochs')} passes over that data; the strongest "
        "generator is kept",
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
    """Attacks by adGAN beside noise of the same L2 size; Gaussian noise is interpolated between strengths."""
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


# The report


def write_report(run_dir: Path) -> Path:
    """Writes `report.md` and `figures/*.png` from the files of a run; the same files, the same report.

    Args:
        run_dir: holds `results.json`, `metrics.csv` and, for 2D navigation, `trajectories.npz`.

    Returns:
        Path of `report.md`.
    """
    results = read_results(run_dir)
    # Half a second that the start of a run need not wait.
    from admrl_jax.figures import draw, png

    figures = draw(results, read_metrics(run_dir), read_trajectories(run_dir))
    (run_dir / "figures").mkdir(exist_ok=True)
    for name, (figure, _) in figures.items():
        write_bytes(run_dir / "figures" / f"{name}.png", png(figure))
    path = run_dir / "report.md"
    write_text(path, report_text(results, {name: caption for name, (_, caption) in figures.items()}))
    return path


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
