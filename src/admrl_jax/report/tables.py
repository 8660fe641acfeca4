"""The tables of a report, in Markdown."""

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from admrl_jax.attacks.registry import CLEAN
from admrl_jax.attacks.threat import L2_SIZE
from admrl_jax.report.results import (
    CELLS,
    CLEAN_PANEL,
    PROTOCOLS,
    Cell,
    Panel,
    Row,
    cell_values,
    headline_panel,
    learned_panels,
    mean,
    method_label,
    methods_of,
    methods_under,
    panel_label,
    panels_of,
    seed_values,
    setting,
)

NORM_LABELS = {"l2": "L2", "linf": "L-inf", "none": "L2"}
"""In which the size of an attack of that norm is given."""


def rounded(value: float, floor: float | None = None, digits: int = 2) -> str:
    """A rounded number; an arrow marks what is below `floor`."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" + (" ↓" if floor is not None and value < floor else "")


def mean_and_range(values: Mapping[int, float], floor: float | None = None) -> str:
    """Mean over seeds, with the smallest and largest seed where there are several."""
    text = rounded(mean(values), floor)
    return f"{text} [{min(values.values()):.2f}, {max(values.values()):.2f}]" if len(values) > 1 else text


def each(values: Mapping[int, float]) -> str:
    """Every seed's value."""
    return ", ".join(rounded(value) for value in values.values()) or "-"


def table(header: Sequence[str], body: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; columns after the first `text_columns` are aligned right."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))


def method_settings(results: Row, method: str) -> str:
    """A method's learner and defence, with the defence's own numbers."""
    part = results["methods"][method]
    numbers = results["config"]["defences"].get(part["defence"], {})
    own = ", ".join(f"{name} {value}" for name, value in numbers.items() if not isinstance(value, dict))
    return f"{part['label']}: {part['learner']} + {part['defence']}" + (f" ({own})" if own else "")


def settings_section(results: Row) -> str:
    """What this run is."""
    get = functools.partial(setting, results)
    lines = {
        "environment": results["env"],
        "action scale": f"{get('env.action_scale')} (raw actions are divided by it; it sets exploration)",
        "horizon": f"{get('env.horizon')} steps",
        "seeds": get("seeds"),
        "attack units": f"{get('units')}: {results['units']}",
        "preset": results["preset"],
        "schedule": f"{get('schedule.pretrain_steps')} clean steps shared per seed, then "
        f"{get('schedule.finetune_steps')} per method",
        "methods": "; ".join(method_settings(results, method) for method in results["methods"]),
        "meta-test": f"{get('eval.num_tasks')} tasks, {get('eval.num_trajectories')} episodes each before "
        f"and after adaptation; strengths {get('eval.strengths')}",
        "attackers": f"{get('eval.attacker.steps')} updates per policy and strength; each on "
        f"{get('eval.attacker.num_tasks')} tasks, {get('eval.attacker.num_trajectories')} episodes each "
        "before and after adaptation; the strongest parameters are kept",
        "simulator": results["simulator"],
        "device": results["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "floor": f"{rounded(results['floor'])}, the mean return of doing nothing on the same tasks",
    }
    if results.get("assumption"):
        lines["assumption"] = results["assumption"]
    text = table(["setting", "value"], [(name, str(value)) for name, value in lines.items()], 2)
    if results["preset"] != "paper":
        text = (
            f"**This run used `{results['preset']}` settings, not the paper's: the numbers below are "
            f"not the paper's and cannot be compared with them.**\n\n{text}"
        )
    floor = rounded(results["floor"])
    return (
        f"# adMRL on {results['env']}\n\n{text}\n\n*Before* and *after* are returns before and after "
        "adaptation on new tasks. Support is the data that a policy adapts on, query the data it is "
        "then scored on; either can be clean or attacked. Numbers are means over seeds; [a, b] is the "
        f"smallest and largest seed. **A return after adaptation (`post`) below the floor of {floor} is "
        "worse than doing nothing; ↓ marks it.**"
    )


def clean_table(results: Row) -> str:
    """Returns without an attack."""
    rows, body = results["rows"], []
    for method in methods_of(results, rows):
        pre, post = (seed_values(rows, field, method=method, attack=CLEAN) for field in ("pre", "post"))
        gain = {seed: post[seed] - pre[seed] for seed in post}
        floor = results["floor"]
        printed = rounded(results["methods"][method]["paper_clean"].get(results["env"], np.nan))
        cells = (
            mean_and_range(pre, floor),
            mean_and_range(post, floor),
            rounded(mean(gain)),
            each(pre),
            each(post),
            printed,
        )
        body.append((method_label(results, method), *cells))
    header = ["method", "before", "after", "gain", "before, each seed", "after, each seed", "paper, after"]
    return table(header, body)


def table_1(results: Row) -> str:
    """The paper's Table I: one attack on support and query data; a learned one by both protocols."""
    rows, panels = results["rows"], panels_of(results)
    name = headline_panel(results)[0]
    columns = [((name, p), s) for p in PROTOCOLS for s in panels.get((name, p), [])]
    body = []
    for method in methods_of(results, rows):
        part = results["methods"][method]
        printed = rounded(part["paper_attacked"].get(results["env"], np.nan))
        cells = [cell_values(rows, panel, s, ("attacked", "attacked"), method) for panel, s in columns]
        scores = (mean_and_range(values, results["floor"]) for values in cells)
        body.append((part["paper_row"] or part["label"], printed, *scores))
    titles = [f"{panel[1]} protocol" if panel[1] else panel_label(results, panel) for panel, _ in columns]
    header = [f"{title}, {s:g}" for title, (_, s) in zip(titles, columns, strict=True)]
    return table(["row", "paper, printed", *header], body)


def grid(results: Row) -> Iterable[tuple[Panel, float, Cell]]:
    """Every attack, strength and cell that was measured; clean-clean once, first."""
    yield CLEAN_PANEL, 0.0, CELLS[0]
    for panel, strengths in panels_of(results).items():
        yield from ((panel, strength, cell) for strength in strengths for cell in CELLS[1:])


def grid_labels(results: Row, panel: Panel, strength: float, cell: Cell) -> tuple[str, str, str, str]:
    """An attack, its strength and a cell, in words."""
    return panel_label(results, panel), f"{strength:g}", *cell


def grid_table(results: Row) -> str:
    """Before and after adaptation for all attacks, strengths and cells."""
    rows, methods = results["rows"], methods_of(results, results["rows"])
    body = []
    for key in grid(results):
        before = [rounded(mean(cell_values(rows, *key, m, "pre"))) for m in methods]
        after = [rounded(mean(cell_values(rows, *key, m)), results["floor"]) for m in methods]
        arrows = ("-" if b == "-" else f"{a} → {b}" for a, b in zip(before, after, strict=True))
        body.append((*grid_labels(results, *key), *arrows))
    return table(
        ["attack", "strength", "support", "query", *(method_label(results, m) for m in methods)], body, 4
    )


def cells_table(results: Row) -> str:
    """Support x query at the largest strength of every attack, after adaptation."""
    rows, body = results["rows"], []
    for panel, strengths in panels_of(results).items():
        for method in methods_under(results, panel):
            values = (cell_values(rows, panel, strengths[-1], cell, method) for cell in CELLS)
            scores = (mean_and_range(value, results["floor"]) for value in values)
            body.append(
                (f"{panel_label(results, panel)}, {strengths[-1]:g}", method_label(results, method), *scores)
            )
    return table(["attack", "method", *(f"support {s}, query {q}" for s, q in CELLS)], body, 2)


def size_table(results: Row) -> str:
    """Mean norm of the perturbations on query data."""
    rows, methods, body = results["rows"], methods_of(results, results["rows"]), []
    for panel, strengths in panels_of(results).items():
        for s in strengths:
            sizes = [mean(cell_values(rows, panel, s, CELLS[3], m, "attack_size")) for m in methods]
            norm = NORM_LABELS[results["attacks"][panel[0]]["norm"]]
            body.append(
                (panel_label(results, panel), f"{s:g}", norm, *(rounded(size, digits=3) for size in sizes))
            )
    return table(["attack", "strength", "norm", *(method_label(results, m) for m in methods)], body, 3)


def opponents_table(results: Row) -> str:
    """The policy that fine-tuning began with, under the attack trained along; empty without one."""
    rows, floor = results.get("opponents", ()), results["floor"]
    steps = sorted({row["step"] for row in rows})
    body = []
    for method, attack, strength in dict.fromkeys((r["method"], r["attack"], r["strength"]) for r in rows):
        values = (seed_values(rows, method=method, step=step) for step in steps)
        scores = [rounded(mean(by_seed), floor) for by_seed in values]
        body.append(
            (method_label(results, method), f"{results['attacks'][attack]['label']}, {strength:g}", *scores)
        )
    return table(["method", "its opponent", *(f"step {step}" for step in steps)], body, 2) if body else ""


def equal_size_table(results: Row) -> str:
    """Learned attacks beside untrained noise of the same L2 size.

    Noise without a bound is interpolated between its strengths; noise of exactly the radius is compared as
    it is.
    """
    rows, panels, floor, body = results["rows"], panels_of(results), results["floor"], []
    attacks, learned = results["attacks"], learned_panels(results)
    untrained = [p for p in panels if attacks[p[0]]["knowledge"] == "none" and p not in learned]
    unbounded = [p for p in untrained if attacks[p[0]]["norm"] == "none"]
    # Of faulty sensors and the like the radius is a bound only.
    on_sphere = [p for p in untrained if attacks[p[0]]["strength"] == L2_SIZE]

    def value(panel: Panel, strength: float, method: str, field: str) -> float:
        cell = CELLS[3] if strength else CELLS[0]
        return mean(cell_values(rows, panel, strength, cell, method, field))

    def same_size(noise: Panel, size: float, strength: float, method: str) -> float:
        if noise in on_sphere:
            return value(noise, strength, method, "post")
        points = [0.0, *panels[noise]]
        sizes, returns = (
            [value(noise, s, method, field) for s in points] for field in ("attack_size", "post")
        )
        return float(np.interp(size, sizes, returns, right=np.nan))

    for panel, strength in ((p, s) for p in learned for s in panels[p]):
        for method in methods_under(results, panel):
            size, post = (value(panel, strength, method, field) for field in ("attack_size", "post"))
            scores = [rounded(size, digits=3), rounded(post, floor)]
            for noise in (*unbounded, *on_sphere):
                there = same_size(noise, size, strength, method)
                scores += [rounded(there, floor), rounded(post - there)]
            label = panel_label(results, panel)
            body.append((label, f"{strength:g}", method_label(results, method), *scores))
    header = ["attack", "strength", "method", "mean L2 size", "return"]
    for noise in (*unbounded, *on_sphere):
        label = panel_label(results, noise)
        header += [f"{label}, same {'radius' if noise in on_sphere else 'mean size'}", f"minus {label}"]
    return table(header, body, 3)
