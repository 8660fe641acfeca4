"""Methods of several attacks side by side: what each keeps, and how much more than without a defence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from admrl_jax.defences.registry import UNDEFENDED
from admrl_jax.report.attacked import Attacked
from admrl_jax.stats.claims import Effect, bounded, paired

Runs = Sequence[tuple[str, Attacked]]
"""Attacks, each with the name of its run."""


class TwiceError(ValueError):
    """A policy was attacked twice alike, so that it would count as two seeds."""


class Difference(NamedTuple):
    """A method minus the undefended one, paired by seed.

    Attributes:
        run: name of the method's run.
        kind: of the environment, as in `kind_of`.
        method: label of the method.
        base: label of the undefended one, with the names of its runs.
        radius: of the attack.
        clean: difference of the clean returns.
        worst: difference under the worst attackers, unbounded to the side where a check that fails leaves
            it open.
        failed: seeds of the method for which a check of the attack fails: theirs may be too high.
        failed_base: the same of the undefended one.
    """

    run: str
    kind: str
    method: str
    base: str
    radius: float
    clean: Effect
    worst: Effect
    failed: int
    failed_base: int


def points(name: str, attacked: Attacked) -> list[dict[str, Any]]:
    """A row per method, seed and radius: clean return, the worst of the suite, whether the checks hold.

    Args:
        name: of the run.
        attacked: its attack.
    """
    failed = attacked.unsound()
    return [
        {
            "run": name,
            "method": attacked.label(method),
            "seed": seed,
            "radius": radius,
            "floor": attacked.floor,
            "clean": attacked.mean(method, seed, 0),
            "worst": attacked.mean(method, seed, radius),
            "checks": "fail" if (attacked.victim(method, seed), radius) in failed else "hold",
        }
        for method in attacked.methods
        for seed in attacked.seeds
        for radius in attacked.radii
    ]


def differences(attacks: Runs, bases: Runs = ()) -> list[Difference]:
    """Every defended method, run and radius against the undefended method of the same seeds.

    The two may be of several runs of one environment, under equal assumptions, attacked alike.

    Args:
        attacks: a run's seeds may come in several.
        bases: where the undefended method is looked for; in the method's own run where these have none.

    Raises:
        TwiceError: a policy is there twice.
    """
    first, others = _groups(bases), _groups(attacks)
    found = []
    for (attack, run, method, defence), mine in others.items():
        if defence in (None, UNDEFENDED):
            continue
        own = {key: group for key, group in others.items() if key[1] == run}
        base = _undefended(first, attack, mine) or _undefended(own, attack, mine)
        if base:
            mine = {seed: row for seed, row in mine.items() if _is_partner(row, base.get(seed))}
            base = {seed: base[seed] for seed in mine}
        if base:
            rows = list(mine.values())
            runs = dict.fromkeys(base[row["seed"]]["run"] for row in rows)
            label = f"{base[rows[0]['seed']]['method']} of {', '.join(runs)}"
            clean, worst = (
                paired(*({seed: row[part] for seed, row in of.items()} for of in (mine, base)))
                for part in ("clean", "worst")
            )
            theirs = [base[row["seed"]] for row in rows]
            failed, failed_base = (sum(row["checks"] == "fail" for row in of) for of in (rows, theirs))
            worst = bounded(worst, is_too_high=failed > 0, is_too_low=failed_base > 0)
            found.append(
                Difference(run, attack[1], method, label, attack[0], clean, worst, failed, failed_base)
            )
    return found


def _is_partner(row: dict[str, Any], other: dict[str, Any] | None) -> bool:
    return other is not None and is_same_world(row["floor"], other["floor"])


def is_base(attacked: Attacked) -> bool:
    """Whether an attack is on undefended methods alone."""
    return all(attacked.results["methods"][m].get("defence") == UNDEFENDED for m in attacked.methods)


def kind_of(attacked: Attacked) -> str:
    """What can be compared: the environment, and whether it assumes something that attacks cannot move."""
    return attacked.results["env"] + (", with memory" if attacked.results.get("assumption") else "")


ALIKE = ("suite", "effort", "side", "units", "seed")
"""Parts of an attack's plan that two have in common that are compared: its attackers, and its tasks."""


def likeness(attacked: Attacked) -> tuple:
    """What two attacks that are compared have in common, besides `is_same_world`."""
    results, plan = attacked.results, attacked.results["plan"]
    return (kind_of(attacked), *(plan.get(name) for name in ALIKE), results.get("episodes"))


def is_same_world(first: float, second: float) -> bool:
    """Whether doing nothing returns the same, but for rounding: else tasks or environments differ."""
    return bool(np.isclose(first, second, rtol=0.01, atol=0.05, equal_nan=True))


Group = dict[int, dict[str, Any]]
"""Points of a method and radius, by seed."""


def _groups(attacks: Runs) -> dict[tuple, Group]:
    """By `((radius, *likeness), run, method, defence)`."""
    found: dict[tuple, Group] = {}
    for run, attacked in attacks:
        # A victim that is no method, such as a pre-trained policy, has no defence.
        methods = attacked.results["methods"]
        defences = {attacked.label(method): methods[method].get("defence") for method in attacked.methods}
        for row in points(run, attacked):
            attack = (row["radius"], *likeness(attacked))
            group = found.setdefault((attack, run, row["method"], defences[row["method"]]), {})
            if row["seed"] in group:
                words = f"{row['method']}, seed {row['seed']}, radius {row['radius']:g}"
                raise TwiceError(f"attacks: {run} has {words} twice; accepted: every policy once")
            group[row["seed"]] = row
    return found


def _undefended(groups: dict[tuple, Group], attack: tuple, like: Group) -> Group:
    """The undefended policies under an attack, by seed; none where no seed is shared. The first run wins."""
    found: Group = {}
    for (other, _, _, defence), group in groups.items():
        if other == attack and defence == UNDEFENDED:
            found = group | found
    return found if found.keys() & like.keys() else {}
