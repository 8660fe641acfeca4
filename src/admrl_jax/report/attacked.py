"""What an attack on saved policies left, by victim, radius and attacker, and the sanity checks on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from admrl_jax.attacks.registry import CLEAN
from admrl_jax.stats import scores
from admrl_jax.stats.checks import LEARNED, TRANSFER, Check, Score, converged, sanity_checks
from admrl_jax.suite import CONTINUED, is_from_elsewhere

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
        self.floor: float = results.get("floor", float("nan"))
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
        # Every radius has the clean return, and not all may have been attacked yet.
        least = min(known for *victim, known in self._tests if victim == [method, seed])
        test = self._tests[method, seed, radius or least]
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

    def rows(self, **where: Any) -> list[Row]:
        """Entries that match."""
        return [row for row in self.results["rows"] if all(row[k] == v for k, v in where.items())]

    def is_learned(self, row: Row) -> bool:
        """Whether an entry's member learns."""
        return self.results["members"][row["member"]]["kind"] == LEARNED

    def is_drawn(self, member: str) -> bool:
        """Whether a member's effort is counted in starts."""
        card = next(card for card in self.results["suite"]["members"] if card["name"] == member)
        return card.get("is_drawn", False)

    def kind(self, row: Row) -> str:
        """An entry's kind, as the sanity checks count them."""
        if is_from_elsewhere(row["entry"]):
            return TRANSFER
        return self.results["members"][row["member"]]["kind"]

    def scores(self) -> list[Score]:
        """What was measured on test tasks, for the sanity checks."""
        found = []
        for test in self.results["tests"]:
            victim = self.victim(test["method"], test["seed"])
            where = (test["method"], test["seed"], test["radius"])
            for row in self.rows(**dict(zip(("method", "seed", "radius"), where, strict=True))):
                returns = self.returns(*where, row["entry"])
                if returns is not None:
                    kind, strata = self.kind(row), self.results["strata"]
                    found.append(Score(victim, test["radius"], row["entry"], kind, returns, strata))
        return found

    def checks(self) -> list[Check]:
        """The sanity checks, and whether the worst attacker of each cell that learns had converged."""
        found = sanity_checks(self.scores())
        for test in self.results["tests"]:
            worst = self.end_of_effort(test["method"], test["seed"], test["radius"])
            if worst is not None:
                found.append(self.had_converged(worst))
        return found

    def unsound(self) -> set[tuple[str, float]]:
        """Victims and radii for which a check fails: their numbers may be too high."""
        return {(check.victim, check.radius) for check in self.checks() if not check.holds}

    def end_of_effort(self, method: str, seed: int, radius: float) -> Row | None:
        """The end of the line of the worst attacker that learned here; None if none did."""
        rows = self.rows(method=method, seed=seed, radius=radius)
        learned = [row for row in rows if self.is_learned(row) and row["effort"]]
        if not learned:
            return None
        worst = lowest(learned)
        return end_of_line(learned, worst, is_drawn=self.is_drawn(worst["member"]))

    def had_converged(self, row: Row) -> Check:
        """Whether more updates, or starts, of an attacker would do no more harm."""
        method, seed = row["method"], row["seed"]
        return converged(
            self.victim(method, seed),
            row["radius"],
            row["entry"],
            row["effort"],
            clean=self.mean(method, seed, 0),
            unit="starts" if self.is_drawn(row["member"]) else "updates",
        )


def lowest(rows: Sequence[Row]) -> Row:
    """The row that left least: on the final tasks, if any of them was judged there."""
    judged = [row for row in rows if row["final"] is not None]
    name = "final" if judged else "validation"
    return min(judged or rows, key=lambda row: row[name])


def end_of_line(rows: Sequence[Row], row: Row, *, is_drawn: bool = False) -> Row:
    """The last that went on from an attacker in vain, if those that did had as many updates together.

    What is stronger is told on the final tasks, or on fewer where one of the two was not judged there.

    Args:
        rows: of one cell, in the order in which they were found.
        row: the attacker where the line begins.
        is_drawn: its starts are drawn. Nobody goes on from them, so all later rounds of its name count, and
            the curve of those that were in vain is flat.
    """
    spent, name = 0, row["entry"].split(CONTINUED)[0]
    for later in rows[rows.index(row) + 1 :]:
        if later["final"] is not None and row["final"] is not None:
            is_in_vain = later["final"] >= row["final"]
        else:
            is_in_vain = later["validation"] == row["validation"]
        is_next = later["entry"].split(CONTINUED)[0] == name if is_drawn else later["origin"] == row["entry"]
        if is_next and is_in_vain:
            spent += len(later["effort"])
            if spent >= len(row["effort"]):
                flat = {"effort": [row["validation"]] * len(later["effort"])}
                row, spent = {**later, **flat} if is_drawn else later, 0
    return row
