"""Sanity checks of a robustness result. A claim whose check fails is a claim about a weak attacker."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from admrl_jax.stats.scores import stratified_error, stratified_mean

NOISE, UNTRAINED, LEARNED, TRANSFER = "noise", "untrained", "learned", "transfer"
"""Kinds of attackers: random; gradients of the policy itself; trained against the victim; against another."""


class Score(NamedTuple):
    """What an attacker left a victim.

    Attributes:
        victim: its name.
        radius: of the budget; 0 without attack.
        attacker: its name.
        kind: `NOISE`, `UNTRAINED`, `LEARNED` or `TRANSFER`.
        returns: `[N]`, one per task; all of a victim's are of the same tasks and episodes.
        strata: `[N]` the kind of each task, see `stratified_mean`; all of one kind by default.
    """

    victim: str
    radius: float
    attacker: str
    kind: str
    returns: np.ndarray
    strata: Sequence[int] | None = None

    @property
    def value(self) -> float:
        """Mean return, tasks of all kinds weighing the same."""
        return float(stratified_mean(self.returns, self.labels))

    @property
    def labels(self) -> np.ndarray:
        """`[N]` the kind of each task."""
        return np.zeros(len(self.returns)) if self.strata is None else np.asarray(self.strata)


class Check(NamedTuple):
    """What a check found.

    Attributes:
        name: what should hold.
        victim: for whom it was checked.
        radius: at which; of two, that whose number may be too high.
        holds: whether it does.
        detail: the numbers.
    """

    name: str
    victim: str
    radius: float
    holds: bool
    detail: str


MONOTONE = "a larger radius does at least as much harm"
WHITE_BOX = "trained against the victim does at least as much harm as trained against another"
BEATS_UNTRAINED = "learned attackers do at least as much harm as noise and gradients"
CONVERGED = "more effort does no more harm"


def sanity_checks(scores: Iterable[Score], *, errors: float = 2.0) -> list[Check]:
    """Every check that the scores allow, victim by victim.

    A difference within `errors` of its standard errors is no failure. Tasks and episodes are the same, so
    it is the differences of single tasks that scatter.

    Args:
        scores: one per victim, radius and attacker.
        errors: how many standard errors are forgiven.
    """
    scores = list(scores)
    found = []
    for victim in dict.fromkeys(score.victim for score in scores):
        mine = [score for score in scores if score.victim == victim]
        for kind, name, others in (
            (LEARNED, WHITE_BOX, (TRANSFER,)),
            (LEARNED, BEATS_UNTRAINED, (NOISE, UNTRAINED)),
        ):
            found += _compare(victim, name, mine, kind, others, errors)
        found += _monotone(victim, mine, errors)
    return found


def expected_lowest(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """`[n]` what the lowest of one, two, ... of `n` numbers is on average, over which of them are drawn."""
    x = np.sort(np.asarray(values, float))
    n = len(x)
    return np.array(
        [
            sum(math.comb(n - 1 - i, count - 1) * x[i] for i in range(n - count + 1)) / math.comb(n, count)
            for count in range(1, n + 1)
        ]
    )


FLAT_SHARE = 0.05
"""Share of the whole drop that the last third of an attacker's updates may bring, where it counts as flat."""


def last_third(returns: Sequence[float], clean: float) -> float:
    """Share of the whole drop that the last third of the updates brought.

    A drop of less than 2 % of the clean return counts as one of 2 %: it is within the noise.

    Args:
        returns: `[T]` what was left, update by update; the lowest so far counts.
        clean: return without attack.
    """
    best = np.minimum.accumulate(np.asarray(returns, float))
    start, end = best[max(0, len(best) * 2 // 3 - 1)], best[-1]
    return float((start - end) / max(clean - end, 0.02 * abs(clean), 1e-12))


def is_flat(returns: Sequence[float], clean: float) -> bool:
    """Whether more effort would bring next to nothing; a single return is no curve, and tells nothing.

    Args:
        returns: `[T]` what was left.
        clean: return without attack.
    """
    return len(returns) > 1 and last_third(returns, clean) <= FLAT_SHARE


NEARLY = 0.9
"""Share of its whole drop after which an attacker has done most of its work."""


def updates_to_most(returns: Sequence[float], clean: float) -> int:
    """Updates after which an attacker had brought `NEARLY` of its whole drop.

    Args:
        returns: `[T]` what was left, update by update; the lowest so far counts.
        clean: return without attack.
    """
    drop = clean - np.minimum.accumulate(np.asarray(returns, float))
    return int(np.argmax(drop >= min(NEARLY * drop[-1], drop[-1]))) + 1


def converged(
    victim: str,
    radius: float,
    attacker: str,
    returns: Sequence[float],
    *,
    clean: float,
    unit: str = "updates",
) -> Check:
    """Whether the return against effort is flat at its end: the last third of it brought next to nothing.

    Args:
        victim: its name.
        radius: of the budget.
        attacker: its name.
        returns: `[T]` what was left, update by update; a mean over batches is less noisy.
        clean: return without attack.
        unit: in which effort is counted.
    """
    share = f"{100 * last_third(returns, clean):.0f} %"
    words = f"the last third of {len(returns)} {unit} brought {share} of the drop"
    if len(returns) < 2:
        words = f"one of {unit} is all it had"
    holds = is_flat(returns, clean)
    return Check(CONVERGED, victim, radius, holds, f"radius {radius:g}: {attacker}: {words}")


def is_claim_sound(checks: Iterable[Check], victim: str) -> bool:
    """Whether every check of a victim holds, and there is one."""
    mine = [check.holds for check in checks if check.victim == victim]
    return bool(mine) and all(mine)


def _lowest(scores: Sequence[Score], radius: float, kinds: Sequence[str]) -> Score | None:
    chosen = [score for score in scores if score.radius == radius and score.kind in kinds]
    return min(chosen, key=lambda score: score.value, default=None)


def _radii(scores: Sequence[Score]) -> list[float]:
    return sorted({score.radius for score in scores if score.radius > 0})


def _exceeds(a: Score, b: Score, errors: float) -> bool:
    """Whether `a` is above `b` by more than chance, on the same tasks and episodes."""
    # What is not finite is no evidence.
    if not np.all(np.isfinite([a.returns, b.returns])):
        return True
    return a.value > b.value + errors * stratified_error(a.returns - b.returns, a.labels)


def _compare(
    victim: str, name: str, scores: Sequence[Score], kind: str, others: Sequence[str], errors: float
) -> list[Check]:
    found = []
    for radius in _radii(scores):
        own, other = _lowest(scores, radius, [kind]), _lowest(scores, radius, others)
        if own is None or other is None:
            continue
        detail = (
            f"radius {radius:g}: {own.attacker} leaves {own.value:.1f}, {other.attacker} {other.value:.1f}"
        )
        found.append(Check(name, victim, radius, not _exceeds(own, other, errors), detail))
    return found


def _monotone(victim: str, scores: Sequence[Score], errors: float) -> list[Check]:
    kinds = (NOISE, UNTRAINED, LEARNED, TRANSFER)
    worst = [_lowest(scores, radius, kinds) for radius in _radii(scores)]
    found = []
    for small, large in itertools.pairwise(worst):
        assert small is not None and large is not None
        detail = f"{small.value:.1f} at {small.radius:g}, {large.value:.1f} at {large.radius:g}"
        found.append(Check(MONOTONE, victim, large.radius, not _exceeds(large, small, errors), detail))
    return found
