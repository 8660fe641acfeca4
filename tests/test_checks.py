"""Sanity checks: the first HalfCheetah-Dir run must fail them, sound numbers must pass."""

from pathlib import Path

import numpy as np
import pytest

from admrl_jax.report.results import read_results
from admrl_jax.stats.checks import (
    BEATS_UNTRAINED,
    CONVERGED,
    LEARNED,
    MONOTONE,
    NOISE,
    TRANSFER,
    UNTRAINED,
    WHITE_BOX,
    Score,
    converged,
    expected_lowest,
    is_claim_sound,
    sanity_checks,
    updates_to_most,
)

RESULTS = Path(__file__).parent.parent / "results" / "halfcheetah_dir"
KINDS = {"gaussian": NOISE, "l2_noise": NOISE, "fgsm": UNTRAINED}


def first_run() -> list[Score]:
    """The committed first run: seed 0, support and query attacked."""
    scores = []
    for row in read_results(RESULTS)["rows"]:
        if (row["support"], row["query"]) != ("attacked", "attacked"):
            continue
        kind = {"paper": TRANSFER, "adaptive": LEARNED}.get(row["protocol"]) or KINDS[row["attack"]]
        left = np.array([row["post"]])
        scores.append(Score(row["method"], row["strength"], row["attack"], kind, left))
    return scores


def test_the_claim_of_the_first_halfcheetah_run_is_withheld() -> None:
    scores = first_run()
    # Random at 0.8: 236.7 by its own attacker, 179.4 by transfer, 142.6 under Gaussian noise.
    own = {
        s.kind: s.value for s in scores if s.victim == "random" and s.radius == 0.8 and s.attacker != "fgsm"
    }
    assert own[LEARNED] == pytest.approx(236.7, abs=0.1) and own[TRANSFER] == pytest.approx(179.4, abs=0.1)
    found = sanity_checks(scores)
    failed = {(check.victim, check.name) for check in found if not check.holds}
    assert ("random", WHITE_BOX) in failed and ("random", BEATS_UNTRAINED) in failed
    assert not is_claim_sound(found, "random")
    # FGSM's own attacker leaves 221.5 at 0.5 and 235.8 at 0.8.
    fgsm = [s for s in scores if s.victim == "fgsm" and s.kind == LEARNED]
    assert [s.value for s in fgsm] == pytest.approx([fgsm[0].value, 221.5, 235.8], abs=0.1)
    assert [c.holds for c in sanity_checks(fgsm) if c.name == MONOTONE] == [fgsm[0].value >= 221.4, False]


def test_sound_numbers_pass_and_chance_is_forgiven() -> None:
    rng = np.random.default_rng(0)

    def score(radius: float, attacker: str, kind: str, mean: float) -> Score:
        chance = rng.normal(size=40)
        return Score("maml", radius, attacker, kind, mean + 10 * (chance - chance.mean()))

    scores = [
        score(0.2, "noise", NOISE, 300.0),
        score(0.2, "fit", LEARNED, 302.0),
        score(0.2, "other's", TRANSFER, 310.0),
        score(0.5, "fit", LEARNED, 304.0),
    ]
    found = sanity_checks(scores)
    assert {check.name for check in found} == {MONOTONE, WHITE_BOX, BEATS_UNTRAINED}
    assert {check.name: check.radius for check in found} == {
        MONOTONE: 0.5,
        WHITE_BOX: 0.2,
        BEATS_UNTRAINED: 0.2,
    }
    assert is_claim_sound(found, "maml") and not is_claim_sound(found, "nobody")
    assert not is_claim_sound(sanity_checks(scores, errors=0.1), "maml")


def test_what_all_attackers_meet_alike_hides_no_difference() -> None:
    # Tasks differ by 100, attackers by 1 on each.
    tasks = np.linspace(0.0, 100.0, 40)
    scores = [Score("maml", 0.2, "pgd", UNTRAINED, tasks), Score("maml", 0.2, "fit", LEARNED, tasks + 1)]
    assert [check.holds for check in sanity_checks(scores)] == [False]
    # Kinds of tasks weigh the same, however many there are of each: this one is below by 0.5.
    kinds = [0] * 30 + [1] * 10
    better = tasks + np.where(np.array(kinds) == 0, 1.0, -2.0)
    scores = [
        Score("maml", 0.2, name, kind, left, kinds)
        for name, kind, left in (("pgd", UNTRAINED, tasks), ("fit", LEARNED, better))
    ]
    assert scores[1].value == pytest.approx(scores[0].value - 0.5)
    assert [check.holds for check in sanity_checks(scores)] == [True]


def test_most_of_the_harm_is_done_after_so_many_updates() -> None:
    # From 100 down to 0: 90 % of the drop is there once 10 are left; a rebound undoes nothing.
    assert updates_to_most([80, 40, 60, 10, 0, 30], 100.0) == 4
    assert updates_to_most([0, 0, 0], 100.0) == 1
    # Who does no harm has no such point, and gets the end of what it did.
    assert updates_to_most([120, 110], 100.0) == 2


def test_the_lowest_of_so_many_does_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=7)
    found = expected_lowest(values)
    np.testing.assert_allclose(found, expected_lowest(values[::-1]))
    assert found[0] == pytest.approx(values.mean()) and found[-1] == values.min()
    draws = [np.min(rng.choice(values, 3, replace=False)) for _ in range(4000)]
    assert found[2] == pytest.approx(np.mean(draws), abs=0.03)


def test_what_is_not_finite_is_no_evidence() -> None:
    scores = [
        Score("maml", 0.2, "noise", NOISE, np.full(4, 50.0)),
        Score("maml", 0.2, "fit", LEARNED, np.full(4, np.inf)),
    ]
    assert [check.holds for check in sanity_checks(scores)] == [False]


def test_effort_is_flat_or_not() -> None:
    # From 300 to 100; the last two of six updates bring 4 of 200.
    flat = converged("maml", 0.8, "fit", [250, 150, 120, 104, 101, 100], clean=300)
    assert flat.holds and flat.name == CONVERGED and "2 %" in flat.detail
    assert not converged("maml", 0.8, "fit", [300, 290, 280, 260, 240, 200], clean=300).holds
    # Who had one start, or one update, may do more harm with a second.
    alone = converged("maml", 0.8, "misstep", [100.0], clean=300, unit="starts")
    assert not alone.holds and "one of starts is all it had" in alone.detail
    # A lower batch by chance does not count twice: the lowest so far is compared.
    assert converged("maml", 0.8, "fit", [100, 250, 120, 104, 101, 180], clean=300).holds
