"""The report of an attack on saved policies: how low each was taken, and how far to trust the number."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from admrl_jax.report.attacked import Attacked, Row, lowest
from admrl_jax.report.style import own_style
from admrl_jax.report.tables import rounded, table
from admrl_jax.runs.files import write_bytes, write_text
from admrl_jax.stats import scores
from admrl_jax.stats.checks import (
    LEARNED,
    NEARLY,
    NOISE,
    UNTRAINED,
    Check,
    converged,
    is_claim_sound,
    updates_to_most,
)
from admrl_jax.stats.intervals import WORDED_SEEDS, interquartile_mean, t_interval

CVAR_LEVEL = 0.1


def write_attack_report(folder: Path, results: Row, extras: Iterable[str] = ()) -> Path:
    """Writes `report.md` and `figures/*.png` of an attack.

    Args:
        folder: of the results.
        results: what `results.json` holds.
        extras: further blocks of Markdown, put at the end.
    """
    attacked = Attacked(results)
    with own_style():
        from admrl_jax.report.attack_figures import draw
        from admrl_jax.report.figures import png

        figures = draw(attacked)
        (folder / "figures").mkdir(exist_ok=True)
        for name, (figure, _) in figures.items():
            write_bytes(folder / "figures" / f"{name}.png", png(figure))
    captions = {name: caption for name, (_, caption) in figures.items()}
    path = folder / "report.md"
    write_text(path, report_text(attacked, captions, extras))
    return path


def report_text(attacked: Attacked, captions: Mapping[str, str], extras: Iterable[str] = ()) -> str:
    """The report in Markdown, with the figures named in `captions`."""
    images = {name: f"![{name}](figures/{name}.png)\n\n*{caption}*" for name, caption in captions.items()}
    checks = attacked.checks()
    blocks = [
        _introduction(attacked),
        "## The lowest return that any attacker left",
        headline_table(attacked, checks),
        images.get("radius", ""),
        "## Sanity checks",
        _checks_section(checks),
        "## Every attacker",
        "Mean return on the validation tasks; the lowest is bold. In brackets: the strongest once more, on "
        "other tasks. Whoever leaves least there is the worst, seed by seed. Means over some seeds only "
        "cannot be compared with the others.",
        *(_members_section(attacked, radius) for radius in attacked.radii),
        "## Effort",
        images.get("effort", ""),
        effort_table(attacked),
        _truth_section(attacked),
        "## Statistics" if len(attacked.seeds) >= WORDED_SEEDS else "",
        _statistics_section(attacked),
        images.get("profile", ""),
        "## Threat cards",
        cards_table(attacked),
        *extras,
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _introduction(attacked: Attacked) -> str:
    results, plan = attacked.results, attacked.results["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    suite = results["suite"]
    side = {
        "both": "support and query data",
        "query": "query data only",
        "support": "support data only",
    }[plan["side"]]
    others = ", ".join(f"`{folder}`" for folder in plan.get("transfer_from", ()))
    count = sum(plan["side"] in member["sides"] for member in suite["members"])
    return (
        f"# Attack on {results['env']}\n\n"
        f"Suite `{plan['suite']}`: {count} attackers against every victim, on {side}. Radii "
        f"are L2 norms ({results['units']}); attacks of another norm stay inside that ball. Attackers were "
        f"chosen on {suite['validation_tasks']} tasks, spread evenly, and the strongest "
        f"{suite['finalists']} once more on {suite['final_tasks']}. The worst is reported on "
        f"{suite['test_tasks']} others. On each, {results['episodes']} episodes before and after adaptation. "
        f"Doing nothing returns {rounded(attacked.floor)}."
        + (f" Attackers found in {others} were tried as well." if others else "")
        + "\n\n**A number here is an upper bound: a stronger attacker may yet be found.**\n\n"
        + (f"{results['assumption']}\n\n" if results.get("assumption") else "")
        + f"Policies: `{plan['source']}`. Device: {results['device']}; {versions}."
    )


def spread(values: Sequence[float], floor: float | None = None) -> str:
    """Mean over seeds, with a t interval where there are seeds enough, else all of them."""
    kept = [value for value in values if np.isfinite(value)]
    text = rounded(float(np.mean(kept)) if kept else float("nan"), floor)
    if len(kept) >= WORDED_SEEDS:
        return text + " [{:.1f}, {:.1f}]".format(*t_interval(kept))
    return text + (f" ({', '.join(rounded(value) for value in kept)})" if len(kept) > 1 else "")


def headline_table(attacked: Attacked, checks: Sequence[Check]) -> str:
    """Clean return, worst of suite at every radius, references, and whether the checks hold."""
    body = []
    for method in attacked.methods:
        mine = [(method, seed) for seed in attacked.seeds]
        clean = spread([attacked.mean(*who, 0) for who in mine], attacked.floor)
        worst = [
            spread([attacked.mean(*who, radius) for who in mine], attacked.floor) for radius in attacked.radii
        ]
        blind = spread([attacked.mean(*who, attacked.radii[0], "blind") for who in mine])
        unsound = [
            seed for seed in attacked.seeds if not is_claim_sound(checks, attacked.victim(method, seed))
        ]
        words = "hold" if not unsound else "**fail: claim withheld**"
        if unsound and len(attacked.seeds) > 1:
            words += f" (seeds {', '.join(map(str, unsound))})"
        body.append((attacked.label(method), clean, *worst, blind, words))
    columns = [f"radius {radius:g}" for radius in attacked.radii]
    header = ["victim", "clean", *columns, "sees only the mean observation", "checks"]
    note = "Mean over seeds [95 % t interval]; " if len(attacked.seeds) >= WORDED_SEEDS else ""
    return table(header, body) + f"\n\n{note}↓: below doing nothing."


def _checks_section(checks: Sequence[Check]) -> str:
    failed = [check for check in checks if not check.holds]
    names = list(dict.fromkeys(check.name for check in checks))
    body = [
        (
            name,
            str(sum(check.name == name for check in checks)),
            str(sum(check.name == name for check in failed)),
        )
        for name in names
    ]
    text = table(["what should hold", "checked", "failed"], body)
    if not failed:
        return text + "\n\nAll hold."
    lines = "\n".join(f"- {check.victim}: not so that {check.name} ({check.detail})" for check in failed)
    return text + "\n\nFailed, so that nothing is claimed of these victims:\n\n" + lines


def _members_section(attacked: Attacked, radius: float) -> str:
    rows = attacked.rows(radius=radius)
    entries = list(dict.fromkeys(row["entry"] for row in rows))
    values = {
        (entry, method): [
            row["validation"] for row in rows if (row["entry"], row["method"]) == (entry, method)
        ]
        for entry in entries
        for method in attacked.methods
    }
    means = {key: float(np.mean(found)) if found else np.nan for key, found in values.items()}
    # Means over other seeds cannot be compared.
    most = {method: max(len(values[entry, method]) for entry in entries) for method in attacked.methods}
    least = {
        method: min(
            means[entry, method] for entry in entries if len(values[entry, method]) == most[method] > 0
        )
        for method in attacked.methods
        if most[method]
    }

    def cell(entry: str, method: str) -> str:
        mine = [row for row in rows if (row["entry"], row["method"]) == (entry, method)]
        finals = [row["final"] for row in mine if row["final"] is not None]

        def mean_of(found: list[float]) -> str:
            few = f", {len(found)} of {most[method]} seeds" if len(found) < most[method] else ""
            return rounded(float(np.mean(found)), digits=1) + few

        if not mine:
            return rounded(float("nan"), digits=1)
        text = mean_of(values[entry, method])
        text = f"**{text}**" if means[entry, method] == least[method] else text
        return text + (f" ({mean_of(finals)})" if finals else "")

    body = [(entry, *(cell(entry, method) for method in attacked.methods)) for entry in entries]
    return f"### Radius {radius:g}\n\n" + table(["attacker", *map(attacked.label, attacked.methods)], body)


def effort_table(attacked: Attacked) -> str:
    """What each learned attacker cost, how soon it had done most of its harm, and where it was flat."""
    body = []
    for member, card in attacked.results["members"].items():
        rows = [row for row in attacked.rows(entry=member) if row["effort"]]
        if card["kind"] != LEARNED or not rows:
            continue
        cleans = [attacked.mean(row["method"], row["seed"], 0) for row in rows]
        flat = sum(
            converged("", 0, member, row["effort"], clean=clean).holds
            for row, clean in zip(rows, cleans, strict=True)
        )
        updates = np.array([1 if attacked.is_drawn(member) else len(row["effort"]) for row in rows])
        most = np.minimum(
            updates, [updates_to_most(row["effort"], clean) for row, clean in zip(rows, cleans, strict=True)]
        )
        seconds = np.array([row["seconds"] for row in rows])
        steps = np.median([row["env_steps"] for row in rows])
        words = "all" if flat == len(rows) else f"{flat} of {len(rows)}"
        soon = f"{np.median(most):g} ({np.median(seconds * most / updates):.1f} s)"
        cost = (f"{np.median(updates):g}", f"{np.median(seconds):.0f}", f"{steps:,.0f}")
        body.append((member, *cost, soon, words))
    header = [
        "attacker",
        "updates",
        "seconds",
        "control steps",
        f"{100 * NEARLY:.0f} % of its drop",
        "flat in",
    ]
    return (
        "Medians over policies and radii: what training took, and after how many updates most of the harm "
        "was there (seconds in proportion). The seconds include trying and judging starts. *Flat in*: where "
        "more updates, or starts, would have brought next to nothing.\n\n" + table(header, body)
        if body
        else ""
    )


def _truth_section(attacked: Attacked) -> str:
    """How near the suite comes to the strongest attack, where that is known."""
    body = []
    for method in attacked.methods:
        for radius in attacked.radii:
            mine = [(method, seed) for seed in attacked.seeds]
            truth = [attacked.mean(*who, radius, "truth") for who in mine]
            if not np.all(np.isfinite(truth)):
                continue
            worst, clean = ([attacked.mean(*who, r) for who in mine] for r in (radius, 0))
            untrained = [attacked.mean(*who, radius, _best_untrained(attacked, *who, radius)) for who in mine]
            shares = [100 * (c - w) / max(c - t, 1e-9) for c, w, t in zip(clean, worst, truth, strict=True)]
            body.append(
                (
                    attacked.label(method),
                    f"{radius:g}",
                    spread(clean),
                    spread(untrained),
                    spread(worst),
                    spread(truth),
                    f"{np.mean(shares):.0f} %",
                )
            )
    if not body:
        return ""
    header = [
        "victim",
        "radius",
        "clean",
        "best untrained",
        "worst of suite",
        "planned attack",
        "share of its drop",
    ]
    return (
        "## Optimality gap\n\nThe planned attack is found by dynamic programming over positions, for every "
        "adapted policy; what it leaves is near the least that any attack can.\n\n" + table(header, body, 2)
    )


def _best_untrained(attacked: Attacked, method: str, seed: int, radius: float) -> str:
    rows = [
        row
        for row in attacked.rows(method=method, seed=seed, radius=radius)
        if attacked.kind(row) in (NOISE, UNTRAINED)
    ]
    return lowest(rows)["entry"] if rows else UNTRAINED


def _statistics_section(attacked: Attacked) -> str:
    """Aggregates over seeds and tasks, and paired differences from the first method."""
    if len(attacked.seeds) < WORDED_SEEDS:
        return ""
    body = []
    for radius in attacked.radii:
        for method in attacked.methods:
            all_tasks = _matrix(attacked, method, radius)
            share = "-"
            clean = np.mean([attacked.mean(attacked.methods[0], seed, 0) for seed in attacked.seeds])
            if clean > attacked.floor:
                normal = scores.floor_normalised(all_tasks.mean(axis=1), attacked.floor, clean)
                share = spread(normal.tolist())
            body.append(
                (
                    f"{radius:g}",
                    attacked.label(method),
                    rounded(interquartile_mean(all_tasks)),
                    rounded(scores.cvar(all_tasks, CVAR_LEVEL)),
                    share,
                )
            )
    header = ["radius", "victim", "interquartile mean", "mean of the worst tenth", "floor-normalised"]
    blocks = [
        "Over seeds and test tasks, under the worst of the suite. Floor-normalised: 0 is doing nothing, 1 "
        f"the clean return of {attacked.label(attacked.methods[0])}.",
        table(header, body, 2),
    ]
    if len(attacked.methods) > 1:
        blocks.append(_differences(attacked))
    return "\n\n".join(blocks)


def _differences(attacked: Attacked) -> str:
    """Every method minus the first, paired by seed, with p values adjusted for their number."""
    first, found = attacked.methods[0], []
    for radius in (0.0, *attacked.radii):
        for method in attacked.methods[1:]:
            mine, theirs = (
                [attacked.mean(name, seed, radius) for seed in attacked.seeds] for name in (method, first)
            )
            chance = scores.probability_of_improvement(
                _matrix(attacked, method, radius), _matrix(attacked, first, radius)
            )
            found.append((radius, method, scores.paired_interval(mine, theirs), chance))
    adjusted = scores.holm([difference.p_value for _, _, difference, _ in found])
    body = [
        (
            f"{radius:g}" if radius else "clean",
            attacked.label(method),
            rounded(difference.mean),
            f"[{difference.low:.2f}, {difference.high:.2f}]",
            f"{p:.3f}",
            rounded(chance),
        )
        for (radius, method, difference, chance), p in zip(found, adjusted, strict=True)
    ]
    header = ["radius", "victim", "mean", "95 % t interval", "p (Holm)", "probability of improvement"]
    title = f"### Minus {attacked.label(first)}, paired by seed"
    return f"{title}\n\n" + table(header, body, 2)


def _matrix(attacked: Attacked, method: str, radius: float) -> np.ndarray:
    """`[S, N]` test returns under the worst."""
    return np.stack([np.asarray(attacked.returns(method, seed, radius)) for seed in attacked.seeds])


def cards_table(attacked: Attacked) -> str:
    """Threat model and effort of every member."""
    suite = {member["name"]: member for member in attacked.results["suite"]["members"]}
    body = []
    for name, card in attacked.results["members"].items():
        member = suite[name]
        effort = "-"
        if card["kind"] == LEARNED:
            trial = f"{member['trial_updates']} trial, then " if member["trial_updates"] else ""
            most = (
                "one update each" if attacked.is_drawn(name) else f"{trial}up to {member['updates']} updates"
            )
            effort = f"{member['starts']} starts, {most}"
        settings = ", ".join(f"{key}={value}" for key, value in member["settings"]) or "-"
        body.append((name, card["label"], card["norm"], card["knowledge"], settings, effort))
    return table(["name", "attack", "norm", "knows", "settings", "effort"], body, 6)
