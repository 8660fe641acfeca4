"""One environment's run, read for the claims of the paper: numbers by seed for all that they are about."""

from collections.abc import Sequence

import numpy as np

from admrl_jax.attacks.registry import CLEAN
from admrl_jax.methods import PAPER_METHODS
from admrl_jax.report.attacked import Attacked
from admrl_jax.report.results import CELLS, Panel, Row, cell_values, seed_values

PAPER_ENVS = ("navigation_2d", "halfcheetah_dir", "halfcheetah_vel", "reacher", "ant_vel")
PAPER_STRENGTHS = (0.2, 0.5, 0.8)
MAML, RANDOM, FGSM, ADMRL = PAPER_METHODS
GAUSSIAN: Panel = ("gaussian", "")
EQUAL_NOISE: Panel = ("l2_noise", "")
FRESH: Panel = ("adgan", "adaptive")
ONE_FOR_ALL: Panel = ("adgan", "paper")
IN_BALL: tuple[Panel, ...] = (EQUAL_NOISE, FRESH, ONE_FOR_ALL)
"""Attacks of the meta-test whose strength is the same L2 radius, and that are tried on every method."""
Seeds = dict[int, float]


class Measured:
    """One environment's run, read for the claims."""

    def __init__(self, results: Row, attacks: Sequence[Row] = (), decisions: Sequence[Row] = ()):
        """Reads nothing yet.

        Args:
            results: of `read_results`.
            attacks: `results.json` of a suite's attacks on the same policies, of different seeds.
            decisions: what one attacked decision does to MAML, a row per seed, attack and strength.
        """
        self.results = results
        self.decisions = decisions
        self.attacks = [Attacked(attack) for attack in attacks]

    def clean(self, method: str) -> Seeds:
        """Return without an attack."""
        return seed_values(self.results["rows"], method=method, attack=CLEAN)

    def attacked(self, method: str, panel: Panel, strengths: Sequence[float] = PAPER_STRENGTHS) -> Seeds:
        """Return with support and query attacked, mean over strengths; empty where one was not measured."""
        rows = self.results["rows"]
        each = [cell_values(rows, panel, strength, CELLS[-1], method) for strength in strengths]
        seeds = set.intersection(*(set(values) for values in each))
        return {seed: float(np.mean([values[seed] for values in each])) for seed in sorted(seeds)}

    def strongest(self, method: str) -> Seeds:
        """The lowest return under any attack of an L2 radius, by seed, mean over the paper's strengths."""
        rows, each = self.results["rows"], []
        for strength in PAPER_STRENGTHS:
            found = [cell_values(rows, panel, strength, CELLS[-1], method) for panel in IN_BALL]
            seeds = set.intersection(*(set(values) for values in found))
            each.append({seed: min(values[seed] for values in found) for seed in seeds})
        seeds = set.intersection(*(set(values) for values in each))
        return {seed: float(np.mean([values[seed] for values in each])) for seed in sorted(seeds)}

    def curve(self, method: str, attack: str) -> Seeds:
        """Mean return over the evaluations in the course of the method's own training."""
        rows = [row for row in self.results["curves"] if row["method"] == method and row["attack"] == attack]
        seeds = sorted({row["seed"] for row in rows})
        return {seed: float(np.mean([r["post"] for r in rows if r["seed"] == seed])) for seed in seeds}

    def rise(self, method: str, attack: str) -> Seeds:
        """Last minus first of those evaluations, where there are several."""
        rows = [row for row in self.results["curves"] if row["method"] == method and row["attack"] == attack]
        return _last_minus_first(rows)

    def grown(self, method: str) -> Seeds:
        """How much more the last attack trained along takes from an unchanged policy than the first."""
        rows = [row for row in self.results.get("opponents", ()) if row["method"] == method]
        return {seed: -change for seed, change in _last_minus_first(rows).items()}

    def worst(self, method: str) -> Seeds:
        """Return under the worst attacker of the suite, mean over radii."""
        return {
            seed: float(np.mean([attacked.mean(method, seed, radius) for radius in attacked.radii]))
            for attacked in self.attacks
            if method in attacked.methods
            for seed in attacked.seeds
        }

    def unsound(self, method: str) -> set[int]:
        """Seeds for which a check of the attack fails: what the suite left them may be too high."""
        found = set()
        for attacked in self.attacks:
            if method in attacked.methods:
                failed = {victim for victim, _ in attacked.unsound()}
                found |= {seed for seed in attacked.seeds if attacked.victim(method, seed) in failed}
        return found

    def made_worse(self, attack: str) -> Seeds:
        """Share of episodes that return less for one attacked decision, less those that return more."""
        rows = [row for row in self.decisions if row["attack"] == attack]
        seeds = sorted({row["seed"] for row in rows})
        return {
            seed: float(np.mean([row["worse"] - row["better"] for row in rows if row["seed"] == seed]))
            for seed in seeds
        }

    def suite_versions(self) -> list[str]:
        """Name and code of the suites that attacked."""
        plans = [attacked.results["plan"] for attacked in self.attacks]
        return sorted({f"{plan['suite']} {plan.get('effort', '')[:6]}".strip() for plan in plans})

    def suite_radii(self) -> list[float]:
        """At which the suite attacked."""
        return sorted({radius for attacked in self.attacks for radius in attacked.radii})

    def decision_radii(self) -> list[float]:
        """At which single decisions were attacked."""
        return sorted({row["strength"] for row in self.decisions})

    def gain(self) -> Seeds:
        """What MAML brings without an attack, over doing nothing."""
        return {seed: value - self.results["floor"] for seed, value in self.clean(MAML).items()}

    def paper_clean(self, method: str) -> float:
        """The paper's clean return; NaN where it prints none, or the method was not run."""
        known = self.results["methods"].get(method, {}).get("paper_clean", {})
        return known.get(self.results["env"], float("nan"))


def _last_minus_first(rows: Sequence[Row]) -> Seeds:
    """Change of the return from the first step to the last, of seeds that have several."""
    found = {}
    for seed in sorted({row["seed"] for row in rows}):
        mine = sorted((row["step"], row["post"]) for row in rows if row["seed"] == seed)
        if len(mine) > 1:
            found[seed] = mine[-1][1] - mine[0][1]
    return found
