"""The report on the paper: its table beside ours, and the ledger of its claims."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from admrl_jax.attacks.registry import ATTACKS
from admrl_jax.methods import PAPER_METHODS
from admrl_jax.report.attacked import Attacked
from admrl_jax.report.attacks import spread
from admrl_jax.report.claims import Judged, judge
from admrl_jax.report.compared import differences, is_base
from admrl_jax.report.measured import FRESH, ONE_FOR_ALL, PAPER_ENVS, PAPER_STRENGTHS, Measured
from admrl_jax.report.results import method_label
from admrl_jax.report.tables import rounded, table
from admrl_jax.runs.files import write_text
from admrl_jax.stats.claims import Effect, effect_of
from admrl_jax.stats.intervals import WORDED_SEEDS

FIGURES = ("strength", "convergence_attacked", "convergence_clean")
"""Of every run, in the order of the paper's Figures 2 to 4."""


def write_paper_report(
    folder: Path,
    runs: Mapping[str, Measured],
    places: Mapping[str, Path],
    beyond: Sequence[tuple[str, Attacked]] = (),
    missing: Sequence[str] = (),
) -> Path:
    """Writes `report.md` and `claims.json`.

    Args:
        folder: of both.
        runs: by environment.
        places: the runs' directories.
        beyond: attacks on policies that are not the paper's, by name.
        missing: what was to be run and is not finished.

    Returns:
        Path of `report.md`.
    """
    judged = judge(runs)
    write_text(folder / "claims.json", json.dumps([one.as_row() for one in judged], indent=1) + "\n")
    path = folder / "report.md"
    figures = {env: _figures_of(place, folder) for env, place in places.items()}
    write_text(path, paper_text(judged, runs, figures, beyond, missing))
    return path


def paper_text(
    judged: Sequence[Judged],
    runs: Mapping[str, Measured],
    figures: Mapping[str, Sequence[Path]] | None = None,
    beyond: Sequence[tuple[str, Attacked]] = (),
    missing: Sequence[str] = (),
) -> str:
    """The report in Markdown.

    Args:
        judged: the claims.
        runs: by environment.
        figures: of the runs, by environment.
        beyond: attacks on policies that are not the paper's, by name.
        missing: what was to be run and is not finished.
    """
    odd = [env for env, run in runs.items() if run.results["preset"] != "paper"]
    blocks = [
        "# The paper, reproduced",
        "*Adaptive Adversarial Training for Meta Reinforcement Learning* (arXiv:2104.13302) printed no code, "
        "seeds or spread. What was run here:",
        runs_table(runs),
        f"**Not finished: {'; '.join(missing)}.** Where training is not, the seed is left out; where the "
        "attack by the present suite is not, one by an older suite is reported, or none. Where a seed is "
        "missing because its training diverged, what is said of the others is too good."
        if missing
        else "",
        f"**Not at the paper's sizes: {', '.join(odd)}. Effects there say little about the paper.**"
        if odd
        else "",
        "## Claims",
        "A claim is a number per seed, above zero where it holds. *Supported*: its 95 % t interval over "
        "seeds is above zero; *contradicted*: below; *undecided*: neither, or fewer than "
        f"{WORDED_SEEDS} seeds. A claim about several environments needs all of them, and one that "
        "contradicts is enough. Of a claim with several parts ('best of four') the smallest is given, with "
        "the lowest ends of their intervals; upper ends are moved up for the number of parts, and of "
        "environments with enough seeds (Bonferroni). Other intervals: a printed number (C1) inside the 95 % "
        "prediction interval of our seeds is not excluded, and no more; spreads (S1) are compared by the F "
        "distribution. Strengths are the paper's three unless they are named. W0 to W2 are questions that "
        "the paper does not ask.",
        claims_table(judged),
        "## Table I",
        f"Return after adaptation under adGAN of L2 radius {', '.join(map(str, PAPER_STRENGTHS))} on support "
        "and query data, mean over the radii. *fresh*: trained against each policy. *one*: adMRL's own "
        "opponent attacks all. The paper states no strength, seeds or spread.",
        table_one(runs),
        "## Without an attack",
        clean_table(runs),
        *_suite_section(runs),
        *_decisions_section(runs),
        *_beyond_section(runs, beyond),
        *_figures_section(figures or {}),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def runs_table(runs: Mapping[str, Measured]) -> str:
    """What was run."""
    body = []
    for env, run in runs.items():
        config = run.results["config"]
        sampling = config["sampling"]
        versions = run.results["versions"]
        body.append(
            (
                env,
                str(len(config["seeds"])),
                f"{sampling['num_tasks']} x {sampling['num_trajectories']} x {config['env']['horizon']}",
                f"{config['schedule']['pretrain_steps']} + {config['schedule']['finetune_steps']}",
                run.results["preset"],
                f"{run.results['device']}, {run.results['simulator']}, jax {versions['jax']}",
                rounded(run.results["floor"]),
            )
        )
    for env in PAPER_ENVS:
        if env not in runs:
            body.append((env, "0", "-", "-", "-", "-", "-"))
    header = ["environment", "seeds", "tasks x episodes x horizon", "steps", "preset", "on", "doing nothing"]
    return table(header, body)


def claims_table(judged: Sequence[Judged]) -> str:
    """The ledger."""
    body = []
    for one in judged:
        at = {env: f" (at {', '.join(f'{x:g}' for x in radii)})" for env, radii in one.radii.items()}
        effects = "; ".join(
            f"{env}{at.get(env, '')} {judged_text(x)}" for env, x in one.effects.items() if x.seeds
        )
        body.append((one.claim.code, one.claim.says, one.claim.reading, effects or "-", f"**{one.verdict}**"))
    return table(["", "the paper says", "read and measured as", "effect", "verdict"], body, 5)


def judged_text(effect: Effect) -> str:
    """An effect, and what it says where there are enough seeds."""
    return effect_text(effect) + f", {effect.verdict}" * (effect.seeds >= WORDED_SEEDS)


def effect_text(effect: Effect) -> str:
    """Its value with the interval, whose open ends are empty, or how many seeds there are."""
    if effect.seeds >= WORDED_SEEDS and np.isfinite(effect.value):
        low, high = (f"{end:.2f}" if np.isfinite(end) else "" for end in (effect.low, effect.high))
        return f"{effect.value:.2f} [{low}, {high}]"
    return f"{rounded(effect.value)} ({effect.seeds} seed{'s' * (effect.seeds != 1)})"


def table_one(runs: Mapping[str, Measured]) -> str:
    """The paper's Table I, its numbers beside ours."""
    body = []
    for env, run in runs.items():
        for method in _methods(run):
            printed = run.results["methods"][method]["paper_attacked"].get(env, float("nan"))
            ours = [
                spread([*run.attacked(method, panel).values()], run.results["floor"])
                for panel in (FRESH, ONE_FOR_ALL)
            ]
            body.append((env, method_label(run.results, method), rounded(printed), *ours))
    return table(["environment", "method", "paper", "ours, fresh", "ours, one"], body, 2)


def clean_table(runs: Mapping[str, Measured]) -> str:
    """Returns without an attack, beside those that the paper prints."""
    body = [
        (
            env,
            method_label(run.results, method),
            rounded(run.paper_clean(method)),
            spread([*run.clean(method).values()], run.results["floor"]),
        )
        for env, run in runs.items()
        for method in _methods(run)
    ]
    return table(["environment", "method", "paper", "ours"], body, 2)


def _methods(run: Measured) -> list[str]:
    return [method for method in PAPER_METHODS if method in run.results["methods"]]


def _suite_section(runs: Mapping[str, Measured]) -> list[str]:
    """What a suite of attackers left."""
    body = []
    for env, run in runs.items():
        if not run.attacks:
            continue
        for method in _methods(run):
            found = run.worst(method)
            text = spread([*found.values()], run.results["floor"])
            radii = ", ".join(f"{radius:g}" for radius in run.suite_radii())
            held = f"{len(found) - len(run.unsound(method))} of {len(found)}"
            suites = ", ".join(run.suite_versions())
            body.append((env, radii, method_label(run.results, method), text, held, suites))
    if not body:
        return []
    return [
        "## Under the worst attacker of a suite",
        "Mean over the radii. Where a check fails the return may be too high. Suites of one code have the "
        "same attackers; those of two environments may differ.",
        table(["environment", "radii", "method", "return", "seeds whose checks hold", "suite"], body, 3),
    ]


def _decisions_section(runs: Mapping[str, Measured]) -> list[str]:
    """What one attacked decision does to MAML."""
    body = []
    for env, run in runs.items():
        for name, strength in dict.fromkeys((row["attack"], row["strength"]) for row in run.decisions):
            rows = [r for r in run.decisions if (r["attack"], r["strength"]) == (name, strength)]
            shares = [f"{100 * np.mean([row[key] for row in rows]):.1f} %" for key in ("worse", "better")]
            change = effect_text(effect_of([row["change"] for row in rows]))
            body.append((env, ATTACKS[name].threat.label, f"{strength:g}", *shares, change))
    if not body:
        return []
    return [
        "## One attacked decision",
        "MAML, adapted unattacked. Every query episode runs twice with the same random numbers: one "
        "observation, drawn from all steps, is attacked, or none. Shares of episodes that return less and "
        "more for it, and the mean difference of returns. adGAN is the fresh one of each seed.",
        table(["environment", "attack", "radius", "worse", "better", "change"], body, 3),
    ]


def _beyond_section(runs: Mapping[str, Measured], beyond: Sequence[tuple[str, Attacked]]) -> list[str]:
    """What other training buys, against MAML."""
    more = [(run, attacked) for run, attacked in beyond if is_base(attacked)]
    beyond = [(run, attacked) for run, attacked in beyond if not is_base(attacked)]
    bases = [(env, attacked) for env, run in runs.items() for attacked in run.attacks]
    found = differences(beyond, [*bases, *more])
    body = [
        (
            one.run,
            one.kind,
            f"{one.method} - {one.base}",
            f"{one.radius:g}",
            str(one.worst.seeds),
            *(effect_text(effect) for effect in (one.clean, one.worst)),
            *(f"{count} of {one.worst.seeds}" for count in (one.failed, one.failed_base)),
            one.worst.verdict if one.worst.seeds >= WORDED_SEEDS else "-",
        )
        for one in found
    ]
    alone = dict.fromkeys(run for run, _ in beyond if run not in {one.run for one in found})
    if not beyond:
        return []
    helped = dict.fromkeys(
        run for run, attacked in (*beyond, *more, *bases) if attacked.results["plan"].get("transfer_from")
    )
    header = ["run", "environment", "difference", "radius", "seeds", "clean", "worst"]
    header += ["checks fail", "of MAML", "verdict"]
    return [
        "## Beyond the paper",
        "What other training keeps more than MAML without it, paired by seed. Worst: under the worst "
        "attacker of the suite, at each radius. MAML is the paper's, or of a run of MAML alone, where the "
        "suite attacked it, else that of the same run. Policies with memory are compared with MAML with "
        "memory. The verdict is on 'more than MAML under the worst'. Where a check of the attack on the "
        "other training fails, the difference may be too large, and supports nothing: its lower end is open. "
        "Where one on MAML fails, it may be too small, and contradicts nothing: its upper end is.",
        table(header, body, 3) if body else "",
        f"Attackers that were found elsewhere were tried too on all or some seeds of: {', '.join(helped)}; "
        "on no others."
        if helped
        else "",
        f"With nothing to compare with: {', '.join(alone)}." if alone else "",
    ]


def _figures_section(figures: Mapping[str, Sequence[Path]]) -> list[str]:
    """Figures 2 to 4 of every environment."""
    blocks = [
        f"### {env}\n\n" + "\n\n".join(f"![{path.stem}]({path.as_posix()})" for path in paths)
        for env, paths in figures.items()
    ]
    return ["## Strength and convergence", *blocks] if blocks else []


def _figures_of(run: Path, folder: Path) -> list[Path]:
    """The figures that a run has, as seen from a folder."""
    paths = [run / "figures" / f"{name}.png" for name in FIGURES]
    return [Path(os.path.relpath(path, folder)) for path in paths if path.exists()]
