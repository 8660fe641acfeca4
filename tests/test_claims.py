"""Claims: the rule of their verdicts, and effects of known sign."""

import json
from pathlib import Path

import numpy as np
import pytest

from admrl_jax.methods import METHODS, PAPER_METHODS
from admrl_jax.report.attacked import Attacked
from admrl_jax.report.claims import CLAIMS, judge
from admrl_jax.report.compared import TwiceError, differences
from admrl_jax.report.measured import ADMRL, FGSM, MAML, PAPER_ENVS, RANDOM, Measured
from admrl_jax.report.paper import paper_text
from admrl_jax.stats.claims import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    UNMEASURED,
    agreement,
    bounded,
    effect_of,
    one_of_many,
    overall,
    paired,
    spread_ratio,
    weakest,
)
from admrl_jax.stats.intervals import t_interval


def test_a_verdict_follows_the_interval() -> None:
    assert effect_of([1.0, 1.1, 0.9]).verdict == SUPPORTED
    assert effect_of([-1.0, -1.1, -0.9]).verdict == CONTRADICTED
    assert effect_of([1.0, -1.0, 0.5]).verdict == UNDECIDED
    # Two seeds decide nothing, however far apart.
    assert effect_of([100.0, 101.0]).verdict == UNDECIDED
    assert effect_of([]).verdict == UNMEASURED
    effect = paired({0: 3.0, 1: 5.0, 2: 4.5, 7: 1.0}, {0: 1.0, 1: 2.0, 2: 2.0})
    assert effect.seeds == 3 and effect.value == pytest.approx(2.5)


def test_a_claim_of_parts_needs_all_of_them() -> None:
    good, bad, open_ = effect_of([1, 1.1, 0.9]), effect_of([-1, -1.1, -0.9]), effect_of([1, -1, 0.5])
    assert weakest([good, good]).verdict == SUPPORTED
    assert weakest([good, open_]).verdict == UNDECIDED
    assert weakest([good, open_, bad]).verdict == CONTRADICTED
    assert weakest([good, effect_of([])]).verdict == UNMEASURED
    # A part with too few seeds, wherever it stands.
    few = effect_of([5.0, 6.0])
    assert weakest([good, few]).verdict == weakest([few, good]).verdict == UNDECIDED
    assert overall([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert overall([SUPPORTED, UNMEASURED]) == UNDECIDED
    assert overall([SUPPORTED, CONTRADICTED, UNMEASURED]) == CONTRADICTED
    assert overall([UNMEASURED, UNMEASURED]) == UNMEASURED == overall([])


def test_a_part_of_many_is_contradicted_by_chance_no_more_often_than_one_alone() -> None:
    rng = np.random.default_rng(1)
    # Five environments, one method of four that is said to be the best, and none is.
    returns = rng.normal(size=(400, 5, 4, 5))
    wrong, alone = 0, 0
    for one in returns:
        gaps = [[effect_of(env[0] - other) for other in env[1:]] for env in one]
        alone += any(gap.verdict == CONTRADICTED for env in gaps for gap in env)
        parts = [weakest([one_of_many(gap, 15) for gap in env]) for env in gaps]
        wrong += overall(part.verdict for part in parts) == CONTRADICTED
    assert alone / 400 > 0.15, "without a correction"
    assert wrong / 400 < 0.05, "with it: 0.025 at most, but for chance"
    effect = effect_of([1.0, -1.0, 0.5])
    assert one_of_many(effect, 1) == effect
    assert one_of_many(effect, 3).low == effect.low and one_of_many(effect, 3).high > effect.high


def test_a_bound_decides_to_its_own_side_only() -> None:
    good, bad = effect_of([1, 1.1, 0.9]), effect_of([-1, -1.1, -0.9])
    verdicts = {
        (effect.value > 0, high, low): bounded(effect, is_too_high=high, is_too_low=low).verdict
        for effect in (good, bad)
        for high in (False, True)
        for low in (False, True)
    }
    assert verdicts == {
        (True, False, False): SUPPORTED,
        (True, False, True): SUPPORTED,
        (True, True, False): UNDECIDED,
        (True, True, True): UNDECIDED,
        (False, False, False): CONTRADICTED,
        (False, True, False): CONTRADICTED,
        (False, False, True): UNDECIDED,
        (False, True, True): UNDECIDED,
    }
    assert bounded(effect_of([]), is_too_high=True, is_too_low=True).verdict == UNMEASURED


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=(4000, 6))
    # A seventh seed of the same kind is inside the prediction interval 95 times in 100.
    inside = [agreement(x[:5], float(x[5])).verdict == UNDECIDED for x in seeds]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)
    # Equal spreads: the interval of the ratio covers 0 as often.
    pairs = zip(seeds[:2000, :5], seeds[2000:, :5], strict=True)
    covers = [spread_ratio(x, y).verdict == UNDECIDED for x, y in pairs]
    assert np.mean(covers) == pytest.approx(0.95, abs=0.016)
    assert spread_ratio(10 * seeds[0], seeds[1]).verdict == SUPPORTED
    # One printed number that is excluded outweighs all that are not.
    parts = [agreement(seeds[0], 0.0), agreement(seeds[1], 50.0)]
    assert [x.verdict for x in parts] == [UNDECIDED, CONTRADICTED] and weakest(parts).verdict == CONTRADICTED
    assert weakest(parts[:1]).verdict == UNDECIDED


def made_up(**attacked: float) -> Measured:
    """Results of 2D navigation over four seeds: clean -12 for all, and a return under adGAN by method."""
    rows, curves = [], []
    noise = (0.0, 0.1, -0.1, 0.05)
    cells = [("none", "", 0.0, "clean")]
    cells += [(a, "", s, "attacked") for a in ("gaussian", "l2_noise") for s in (0.2, 0.5, 0.8)]
    cells += [("adgan", p, s, "attacked") for p in ("paper", "adaptive") for s in (0.2, 0.5, 0.8)]
    for number, method in enumerate(PAPER_METHODS):
        for seed in range(4):
            for attack, protocol, strength, side in cells:
                left = -12.0 if attack == "none" else attacked[method] if attack == "adgan" else -20.0
                rows.append(
                    {
                        "method": method,
                        "seed": seed,
                        "attack": attack,
                        "protocol": protocol,
                        "strength": strength,
                        "support": side,
                        "query": side,
                        "post": left + noise[(seed + number) % 4],
                    }
                )
            for step in (350, 400):
                curves += [
                    {"method": method, "seed": seed, "attack": attack, "step": step, "post": -20 + step / 50}
                    for attack in ("none", "gaussian", "adgan")
                ]
    results = {
        "env": "navigation_2d",
        "floor": -38.0,
        "preset": "paper",
        "device": "cpu",
        "simulator": "none",
        "versions": {"jax": "0"},
        "methods": {method: METHODS[method]._asdict() for method in PAPER_METHODS},
        "config": {
            "eval": {"curve_strength": 0.2},
            "seeds": [0, 1, 2, 3],
            "env": {"horizon": 100},
            "sampling": {"num_tasks": 20, "num_trajectories": 20},
            "schedule": {"pretrain_steps": 300, "finetune_steps": 200},
        },
        "rows": rows,
        "curves": curves,
        "opponents": [
            {"method": ADMRL, "seed": seed, "step": step, "post": -12 - (step - 300) / 20 - noise[seed]}
            for step in (300, 350, 400)
            for seed in range(4)
        ],
    }
    # One attacked decision: harm of about a quarter by adGAN, half of that by noise.
    decisions = [
        {"seed": seed, "attack": attack, "strength": s, "worse": 0.5 + x, "better": 0.5 - harm, "change": -x}
        for seed, x in enumerate(noise)
        for attack, harm in (("adgan", 0.25), ("l2_noise", 0.125))
        for s in (0.2, 0.8)
    ]
    return Measured(json.loads(json.dumps(results)), decisions=json.loads(json.dumps(decisions)))


def verdicts(run: Measured) -> dict[str, str]:
    """Of every claim, as far as 2D navigation goes."""
    return {
        one.claim.code: one.effects["navigation_2d"].verdict
        for one in judge({"navigation_2d": run})
        if "navigation_2d" in one.effects
    }


SUPPORTABLE = ("T1", "T1'", "T2", "T3", "C2", "A1", "N4", "S3", "S3'")


def test_verdicts_turn_with_the_returns() -> None:
    as_claimed = {MAML: -50.0, RANDOM: -45.0, FGSM: -60.0, ADMRL: -30.0}
    found = verdicts(made_up(**as_claimed))
    assert {code: found[code] for code in SUPPORTABLE} == dict.fromkeys(SUPPORTABLE, SUPPORTED)
    assert found["A4"] == found["A4'"] == SUPPORTED
    assert made_up(**as_claimed).grown(ADMRL) == pytest.approx(dict.fromkeys(range(4), 5.0))
    assert found["W1"] == UNMEASURED and found["N1"] == UNDECIDED and found["W0"] == SUPPORTED
    reverse = {MAML: -15.0, RANDOM: -45.0, FGSM: -30.0, ADMRL: -60.0}
    found = verdicts(made_up(**reverse))
    assert {found[code] for code in ("T1", "T2", "T3", "A1")} == {CONTRADICTED}


def test_the_strongest_attack_is_taken_seed_by_seed() -> None:
    run = made_up(**{MAML: -15.0, RANDOM: -45.0, FGSM: -30.0, ADMRL: -60.0})
    # Noise leaves -20 and takes MAML lower than its adGANs do; adMRL's adGANs are the stronger ones.
    for method, least in ((MAML, -20.0), (ADMRL, -60.0)):
        found = run.strongest(method)
        assert sorted(found) == [0, 1, 2, 3] and all(
            x == pytest.approx(least, abs=0.2) for x in found.values()
        )
    for row in run.results["rows"]:
        if (row["method"], row["seed"], row["protocol"]) == (MAML, 2, "paper"):
            row["post"] = -90.0
    assert run.strongest(MAML)[2] == -90.0 and run.strongest(MAML)[1] == pytest.approx(-20, abs=0.2)
    # What only one of them had to meet decides nothing.
    run.results["rows"] += [
        row | {"attack": "adgan_no_gan", "protocol": "adaptive", "post": -99.0}
        for row in run.results["rows"]
        if row["method"] == MAML
    ]
    assert run.strongest(MAML)[1] == pytest.approx(-20, abs=0.2)


def test_one_attacked_decision_is_told_in_shares() -> None:
    run = made_up(**{MAML: -50.0, RANDOM: -45.0, FGSM: -60.0, ADMRL: -30.0})
    assert run.made_worse("adgan") == pytest.approx({0: 0.25, 1: 0.35, 2: 0.15, 3: 0.3})
    assert run.made_worse("gaussian") == {}
    lines = paper_text([], {"navigation_2d": run}).splitlines()
    assert "| navigation_2d | adGAN | 0.8 | 51.2 % | 25.0 % | -0.01 [-0.15, 0.12] |" in lines
    assert sum(line.startswith("| navigation_2d | L2 noise |") for line in lines) == 2
    assert "## One attacked decision" not in paper_text([], {"navigation_2d": Measured(run.results)})


def test_the_ledger_has_every_claim_and_says_what_is_missing() -> None:
    run = made_up(**{MAML: -50.0, RANDOM: -45.0, FGSM: -60.0, ADMRL: -30.0})
    judged = judge({"navigation_2d": run})
    assert {claim.code for claim in CLAIMS} <= {one.claim.code for one in judged}
    # Told where not all of the paper's strengths count.
    assert "navigation_2d (at 0.2)" in next(
        line for line in paper_text(judged, {"navigation_2d": run}).splitlines() if line.startswith("| A3 |")
    )
    # That another method is best in 2D navigation (N3) does not contradict that adMRL mostly is (N2).
    n2 = next(one for one in judged if one.claim.code == "N2")
    assert "navigation_2d" not in n2.effects
    # One of five environments supports nothing that is said of five.
    assert next(one for one in judged if one.claim.code == "T1").verdict == UNDECIDED
    text = paper_text(
        judged, {"navigation_2d": run}, {"navigation_2d": [Path("../nav/figures/strength.png")]}
    )
    for env in PAPER_ENVS[1:]:
        assert f"| {env} | 0 |" in text
    assert "| T1 | adMRL is best under adGAN |" in text and "**undecided**" in text
    assert "![strength](../nav/figures/strength.png)" in text
    assert "at the paper's sizes" not in text and "Not finished" not in text
    missing = paper_text(judged, {"navigation_2d": run}, missing=["reacher, seed 1, paper (training)"])
    assert "Not finished: reacher, seed 1, paper (training)." in missing
    run.results["preset"] = "quick"
    assert "**Not at the paper's sizes: navigation_2d. Effects" in paper_text(judged, {"navigation_2d": run})


DEFENCE_OF = {"maml": "none", "smooth": "smooth", "pretrain": None}


def attacked(left: dict[str, dict[int, float]], memory: str = "", side: str = "both") -> Attacked:
    """2D navigation at radius 0.2: what every seed of a method is left; clean it returns 10 more."""
    tests = [
        {
            "method": method,
            "seed": seed,
            "radius": 0.2,
            "worst": "pgd",
            "returns": {"none": [value + 10.0] * 3, "pgd": [value] * 3},
        }
        for method, values in left.items()
        for seed, value in values.items()
    ]
    return Attacked(
        {
            "env": "navigation_2d",
            "assumption": memory,
            "plan": {
                "suite": "standard",
                "side": side,
                "units": "paper",
                "methods": [*left],
                "seeds": sorted({t["seed"] for t in tests}),
                "radii": [0.2],
            },
            "methods": {m: {"label": m.upper(), "defence": DEFENCE_OF[m]} for m in left},
            "members": {},
            "rows": [],
            "strata": None,
            "floor": -40.0,
            "tests": tests,
        }
    )


def test_methods_are_compared_by_seed_with_the_undefended_one() -> None:
    maml = attacked({"maml": {0: -30.0, 1: -34.0, 2: -32.0}})
    smooth = [
        attacked({"smooth": {seed: left}, "pretrain": {seed: -1.0}})
        for seed, left in ((0, -20.0), (1, -26.0), (2, -21.0), (7, 0.0))
    ]
    found = differences([("hard", one) for one in smooth], [("maml", maml)])
    # Seeds of several attacks come together; seed 7 has no partner, and a pre-trained policy no defence.
    assert [(one.run, one.method, one.base, one.radius) for one in found] == [
        ("hard", "SMOOTH", "MAML of maml", 0.2)
    ]
    assert found[0].failed == 0
    assert found[0].worst.value == pytest.approx((10 + 8 + 11) / 3) and found[0].worst.seeds == 3
    low, high = t_interval([10.0, 8.0, 11.0])
    assert (found[0].worst.low, found[0].worst.high) == pytest.approx((low, high))
    assert found[0].clean == found[0].worst
    # What remembers its actions is compared with what does, whatever else is there.
    remembers = attacked({"maml": {0: -50.0}, "smooth": {0: -15.0}}, "a clock is safe")
    (one,) = differences([("memory", remembers)], [("maml", maml)])
    assert one.kind == "navigation_2d, with memory" and one.worst.value == pytest.approx(35)
    # The undefended one is looked for among the bases first.
    mine = attacked({"maml": {0: -50.0}, "smooth": {0: -15.0}})
    assert differences([("mine", mine)])[0].worst.value == pytest.approx(35)
    (one,) = differences([("mine", mine)], [("maml", maml)])
    assert one.worst.value == pytest.approx(15) and one.base == "MAML of maml"
    # One MAML, or the other: seeds that the base lacks are left out, not taken from elsewhere.
    more = attacked({"maml": {0: -50.0, 9: -60.0}, "smooth": {0: -15.0, 9: -15.0}})
    (one,) = differences([("mine", more)], [("maml", maml)])
    assert (one.worst.seeds, one.worst.value) == (1, pytest.approx(15))
    # Where a check of the base fails, its number is too high: a loss against it is no contradiction.
    worse = attacked({"smooth": {0: -50.0, 1: -52.0, 2: -51.0}})
    (one,) = differences([("hard", worse)], [("maml", maml)])
    assert one.worst.verdict == CONTRADICTED and (one.failed, one.failed_base) == (0, 0)
    unsound = attacked({"maml": {0: -30.0, 1: -34.0, 2: -32.0}})
    unsound.unsound = lambda: {("MAML, seed 1", 0.2), ("MAML, seed 0", 0.5)}
    (one,) = differences([("hard", worse)], [("maml", unsound)])
    assert one.worst.verdict == UNDECIDED and (one.failed, one.failed_base) == (0, 1)
    (one,) = differences([("hard", attacked({"smooth": {0: -20.0, 1: -26.0, 2: -21.0}}))], [("m", unsound)])
    assert one.worst.verdict == SUPPORTED and one.worst.high == np.inf
    # Other tasks, or another environment by the same name: doing nothing returns something else.
    elsewhere = attacked({"smooth": {0: -12.0}})
    elsewhere.floor = -400.0
    assert not differences([("elsewhere", elsewhere)], [("maml", maml)])
    # Attacked otherwise, it is no partner; and no policy counts twice.
    query = attacked({"smooth": {0: -12.0}}, side="query")
    assert not differences([("query", query)], [("maml", maml)])
    for name, value in (("seed", 1), ("effort", "of older code")):
        other = attacked({"smooth": {0: -12.0}})
        other.results["plan"][name] = value
        assert not differences([("other", other)], [("maml", maml)]), "other tasks, or other attackers"
    with pytest.raises(TwiceError, match="mine has MAML, seed 0"):
        differences([("mine", mine), ("mine", mine)])
    run = made_up(**{MAML: -50.0, RANDOM: -45.0, FGSM: -60.0, ADMRL: -30.0})
    run.attacks.append(maml)
    text = paper_text([], {"navigation_2d": run}, {}, [("hard", one) for one in smooth])
    (line,) = (line for line in text.splitlines() if line.startswith("| hard | navigation_2d |"))
    assert "found elsewhere" not in text
    numbers = "9.67 [5.87, 13.46] | 9.67 [5.87, 13.46]"
    assert (
        line == f"| hard | navigation_2d | SMOOTH - MAML of navigation_2d | 0.2 | 3 | {numbers} | "
        "0 of 3 | 0 of 3 | supported |"
    )
    smooth[0].results["plan"]["transfer_from"] = ["elsewhere"]
    assert "tried too on all or some seeds of: hard; on" in paper_text([], {}, {}, [("hard", smooth[0])])
    assert "With nothing to compare with: query." in paper_text(
        [], {"navigation_2d": run}, {}, [("query", query)]
    )
