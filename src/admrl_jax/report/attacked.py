"""What an attack on saved policies left, by victim, radius and attacker, and the sanity checks on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from admrl_jax.attacks.registry import CLEAN
from admrl_jax.stats import scores
from admrl_jax.stats.checks import LEARNED, TRANSFER, Check, Score, converged, sanity_checks
from admrl_jax.suite import REFINED, TRANSFERRED

Row = Mapping[str, Any]
ATTACK_FOLDER = "attack"
"""Of a run, where the attack of its end is."""


class Attacked:
    """The results of an attack, by victim and radius."""

    def __init__(self, results: Row):
        self.results = results
        plan = results["plan"]
        self.methods: list[str] = list(plan["methods"])
        self.seeds: list[int] = list(plan["seeds"])
        self.radii: list[float] = sorted(plan["radii"])
        self.floor: float = results["floor"]
        self._tests = {(test["method"], test["seed"], test["radius"]): test for test in results["tests"]}

    def label(self, method: str) -> str:
        """A method's name for people."""
        return self.results["methods"][method]["label"]

    def victim(self, method: str, seed: int) -> str:
        """A victim's name for people."""
        return f"{self.label(method)}, seed {seed}" if len(self.seeds) > 1 else self.label(method)

    def returns(self, method: str, seed: int, radius: float, name: str = "worst") -> np.ndarray | None:
        """`[N]` test return of every task; None where it was not measured.

        Args:
            method: of the victim.
            seed: of the victim.
            radius: 0 for the clean return.
            name: an entry, or `worst`.
        """
        test = self._tests[method, seed, radius or self.radii[0]]
        name = CLEAN if radius == 0 else test["worst"] if name == "worst" else name
        found = test["returns"].get(name)
        return None if found is None else np.asarray(found, float)

    def mean(self, method: str, seed: int, radius: float, name: str = "worst") -> float:
        """Mean test return, tasks of all kinds weighing the same; NaN where it was not measured."""
        found = self.returns(method, seed, radius, name)
        if found is None:
            return float("nan")
        kinds = self.results["strata"]
        return float(found.mean() if kinds is None else scores.stratified_mean(found, kinds))

    def error(self, returns: np.ndarray) -> float:
        """Standard error of the mean over tasks; within kinds of tasks where they come in kinds."""
        kinds = self.results["strata"]
        groups = [returns] if kinds is None else [returns[np.asarray(kinds) == k] for k in set(kinds)]
        variances = [group.var(ddof=1) / len(group) for group in groups if len(group) > 1]
        return float(np.sqrt(np.sum(variances))) / max(len(groups), 1)

    def rows(self, **where: Any) -> list[Row]:
        """Entries that match."""
        return [row for row in self.results["rows"] if all(row[k] == v for k, v in where.items())]

    def is_learned(self, row: Row) -> bool:
        """Whether an entry's member learns."""
        return self.results["members"][row["member"]]["kind"] == LEARNED

    def kind(self, row: Row) -> str:
        """An entry's kind, as the sanity checks count them."""
        is_own = row["entry"] not in (TRANSFERRED, REFINED)
        return self.results["members"][row["member"]]["kind"] if is_own else TRANSFER

    def scores(self) -> list[Score]:
        """What was measured on test tasks, for the sanity checks."""
        found = []
        for test in self.results["tests"]:
            victim = self.victim(test["method"], test["seed"])
            where = (test["method"], test["seed"], test["radius"])
            for row in self.rows(**dict(zip(("method", "seed", "radius"), where, strict=True))):
                returns = self.returns(*where, row["entry"])
                if returns is None:
                    continue
                left = self.mean(*where, row["entry"])
                found.append(
                    Score(victim, test["radius"], row["entry"], self.kind(row), left, self.error(returns))
                )
        return found

    def checks(self) -> list[Check]:
        """The sanity checks, and whether the worst attacker of each cell that learns in steps had converged.

        One that is fitted in a single update has no curve that could fall.
        """
        found = sanity_checks(self.scores())
        for test in self.results["tests"]:
            cell = {name: test[name] for name in ("method", "seed", "radius")}
            learned = [row for row in self.rows(**cell) if self.is_learned(row) and len(row["effort"]) > 1]
            if not learned:
                continue
            worst = end_of_line(learned, lowest(learned))
            victim = self.victim(test["method"], test["seed"])
            clean = self.mean(test["method"], test["seed"], 0)
            effort = converged(victim, test["radius"], worst["entry"], worst["effort"], clean=clean)
            found.append(effort)
        return found


def lowest(rows: Sequence[Row]) -> Row:
    """The row that left least: on the final tasks, if any of them was judged there."""
    judged = [row for row in rows if row["final"] is not None]
    name = "final" if judged else "validation"
    return min(judged or rows, key=lambda row: row[name])


def end_of_line(rows: Sequence[Row], row: Row) -> Row:
    """The last that went on from an attacker, for as long at least, and found nothing stronger.

    Args:
        rows: of one cell, in the order of the suite.
        row: the attacker where the line begins.
    """
    for later in rows[rows.index(row) + 1 :]:
        is_same = later["origin"] == row["entry"] and later["validation"] == row["validation"]
        if is_same and len(later["effort"]) >= len(row["effort"]):
            row = later
    return row
