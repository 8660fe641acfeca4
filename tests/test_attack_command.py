"""`experiments.attack` from a saved run to its report: finished, stopped, gone on with, refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from admrl_jax.commands.attack import attack_main
from admrl_jax.core.lanes import Lanes
from admrl_jax.judging import Judge
from admrl_jax.report.attacked import Attacked, end_of_line
from admrl_jax.report.attacks import report_text
from admrl_jax.runs.signals import Interrupted
from admrl_jax.saved.attack_cell import CellFile
from admrl_jax.saved.attack_plan import Cell, cells_of, make_plan
from admrl_jax.saved.attack_results import attack_results
from admrl_jax.saved.attack_run import AttackRun
from admrl_jax.saved.attack_victims import KEY, load_victims
from admrl_jax.suite import CONTINUED, MIN_UPDATES, ROUNDS, is_from_elsewhere
from admrl_jax.suites import SUITES, Member, Suite, untrained

TINY = Suite(
    members=(
        *untrained("l2_noise", "fgsm", "stuck_sensor"),
        Member(
            name="fit",
            attack="counter_action",
            settings=(("hidden_sizes", (4,)), ("num_steps", 3), ("knows_task", True)),
            starts=2,
            updates=2,
        ),
        Member(
            name="pipeline",
            attack="pipeline",
            settings=(("hidden_sizes", (4,)), ("num_steps", 2)),
            updates=1,
            goes_on_from=("fit",),
        ),
    ),
    num_tasks=2,
    tasks_together=2,
    rank_tasks=2,
    finalists=2,
    final_tasks=2,
    validation_tasks=2,
    test_tasks=4,
)
RADII = ("--radii", "0.1", "0.3")


@pytest.fixture(scope="module", autouse=True)
def tiny_suite():
    """A suite that takes seconds, under a name that the command line knows."""
    patch = pytest.MonkeyPatch()
    patch.setitem(SUITES, "quick", TINY)
    yield
    patch.undo()


def attack(source: Path, *flags: str) -> int:
    return attack_main("experiments.attack RUN", "", [str(source), "--suite", "quick", *flags])


@pytest.fixture(scope="module")
def attacked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attack on two methods of the toy run, undisturbed."""
    folder = tmp_path_factory.mktemp("attacks") / "whole"
    assert attack(finished, *RADII, "--methods", "maml", "admrl", "--out", str(folder)) == 0
    return folder


def test_an_attack_leaves_numbers_cards_checks_and_figures(attacked: Path, finished: Path) -> None:
    results = json.loads((attacked / "results.json").read_text())
    seeds = json.loads((finished / "config.json").read_text())["seeds"]
    cells = {(row["method"], row["seed"], row["radius"]) for row in results["rows"]}
    assert cells == {(m, s, r) for m in ("maml", "admrl") for s in seeds for r in (0.1, 0.3)}
    for cell in cells:
        rows = [row for row in results["rows"] if (row["method"], row["seed"], row["radius"]) == cell]
        entries = {row["entry"] for row in rows}
        assert {member.name for member in TINY.members} | {"transferred"} <= entries
        assert all(np.isfinite(row["validation"]) for row in rows)
        elsewhere = [row["validation"] for row in rows if row["entry"].startswith("transferred")]
        assert len(elsewhere) == 3 and min(elsewhere) == elsewhere[-1]
        test = next(t for t in results["tests"] if (t["method"], t["seed"], t["radius"]) == cell)
        assert {"none", "blind", test["worst"]} <= set(test["returns"])
        # Of what came from elsewhere, the stronger.
        assert any(is_from_elsewhere(entry) for entry in test["returns"])
        assert all(len(returns) == 4 for returns in test["returns"].values())
        # Those that left least are judged on other tasks, and the lowest there is the worst.
        finals = {row["entry"]: row["final"] for row in rows if row["final"] is not None}
        began = [row for row in rows if CONTINUED not in row["entry"]]
        continued = {row["entry"] for row in rows if row not in began}
        # Two that differ: one that is another one once more takes no place.
        lowest = sorted({row["validation"] for row in began})[:2]
        first = {row["entry"]: row["validation"] for row in began if row["entry"] in finals}
        assert sorted(first.values()) == lowest and set(finals) == set(first) | continued
        assert test["worst"] == min(finals, key=lambda entry: finals[entry])
    text = (attacked / "report.md").read_text()
    for words in ("## Sanity checks", "## Threat cards", "## Effort", "stuck", "Doing nothing returns"):
        assert words in text
    for name in ("radius", "effort"):
        assert (attacked / "figures" / f"{name}.png").stat().st_size > 1000


def test_the_worst_attacker_is_trained_until_it_is_flat_or_has_had_its_rounds(attacked: Path) -> None:
    found = Attacked(json.loads((attacked / "results.json").read_text()))
    more = 0
    for test in found.results["tests"]:
        cell = {name: test[name] for name in ("method", "seed", "radius")}
        continued = [row for row in found.rows(**cell) if CONTINUED in row["entry"]]
        is_flat = found.had_converged(found.end_of_effort(**cell)).holds
        assert is_flat or len(continued) == ROUNDS
        for number, row in enumerate(continued, 1):
            assert row["entry"].endswith(f"{CONTINUED} {number}")
            # From an attacker of this cell, with more updates than it had, judged where the worst is chosen.
            (before,) = [x for x in found.rows(**cell) if x["entry"] == row["origin"]]
            assert len(row["effort"]) >= min(MIN_UPDATES, 2 * len(before["effort"]))
            assert row["final"] is not None and row["member"] == before["member"]
        more += len(continued)
    # Two or three updates are seldom enough.
    assert more


def test_a_seed_counts_once(attacked: Path, finished: Path, capsys) -> None:
    assert attack(finished, *RADII, "--seeds", "0", "0", "0", "--out", str(attacked)) == 2
    assert "seeds: (0, 0, 0) is not accepted; accepted: different seeds of the run" in capsys.readouterr().err


def test_victims_of_several_learners_are_reported_together(attacked: Path, finished: Path) -> None:
    plan = make_plan(finished, suite="quick", methods=("maml", "admrl"), radii=(0.1, 0.3))
    both = load_victims(plan, TINY, Lanes())["maml"]
    # As if each had a learner, and so a runner, of its own.
    apart = {method: both._replace(trained={method: both.trained[method]}) for method in plan.methods}
    cell = Cell("admrl", plan.seeds[0], 0.1)
    file = AttackRun(plan, attacked, Lanes()).file(cell)
    assert file.results and file.tests
    found = attack_results(plan, TINY, apart, {cell: file})
    assert {row["method"] for row in found["rows"]} == {"admrl"} and found["env"] == "navigation_2d"


def test_the_worst_attackers_can_be_loaded(attacked: Path, finished: Path) -> None:
    plan = make_plan(finished, suite="quick", radii=(0.1, 0.3), methods=("maml", "admrl"))
    run = AttackRun(plan, attacked)
    cell = run.cells[0]
    file = run.file(cell)
    runner = run.victims[cell.method].runner
    case = run.victims[cell.method].case(plan, cell)
    for name in ("fit", "pipeline"):
        best = file.results[name].best
        again = runner.judge.validation(case, best.member, [best.params])[0]
        # The same attacker leaves the same returns.
        np.testing.assert_allclose(again, best.validation, rtol=1e-3, atol=1e-3)


def test_a_stopped_attack_goes_on_to_the_same_numbers(
    attacked: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    flags = (*RADII, "--methods", "maml", "admrl", "--out", str(folder))
    add = CellFile.add

    def stop_after(self: CellFile, entry: str, *more) -> None:
        add(self, entry, *more)
        if entry == "fit":
            raise Interrupted(2)

    with monkeypatch.context() as patch:
        patch.setattr(CellFile, "add", stop_after)
        assert attack(finished, *flags) == 130
    assert not (folder / "results.json").exists()
    # A cell that was damaged meanwhile is measured again.
    damaged = next((folder / "cells").glob("*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert attack(finished, *flags) == 0
    first, second = (json.loads((path / "results.json").read_text()) for path in (attacked, folder))
    for mine, theirs in zip(second["rows"], first["rows"], strict=True):
        assert mine["entry"] == theirs["entry"]
        assert mine["validation"] == pytest.approx(theirs["validation"], rel=1e-4)
    assert [test["returns"] for test in second["tests"]] == [test["returns"] for test in first["tests"]]


def test_a_finished_attack_is_not_run_again(
    attacked: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Judge, "score", refuse)
    assert attack(finished, *RADII, "--methods", "maml", "admrl", "--out", str(attacked)) == 0


def test_the_query_alone_has_its_truth_beside_it(finished: Path, tmp_path: Path) -> None:
    flags = ("--radii", "0.3", "--methods", "maml", "--seeds", "0", "--side", "query")
    assert attack(finished, *flags, "--out", str(tmp_path / "query")) == 0
    results = json.loads((tmp_path / "query" / "results.json").read_text())
    attacked = Attacked(results)
    truth = attacked.mean("maml", 0, 0.3, "truth")
    # Episodes differ and the grid has its error.
    assert truth <= attacked.mean("maml", 0, 0.3) + 0.5
    assert "## Optimality gap" in report_text(attacked, {})


def test_attackers_of_another_attack_are_tried_too(
    attacked: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "again"
    flags = ("--radii", "0.3", "--methods", "random", "--seeds", "0", "--out", str(folder))
    assert attack(finished, *flags) == 0
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert "transferred" not in {row["entry"] for row in rows}, "one cell has no others"
    # What is there is kept; what depends on others is measured again.
    assert attack(finished, *flags, "--transfer-from", str(attacked)) == 0
    results = json.loads((folder / "results.json").read_text())
    (given,) = (row for row in results["rows"] if row["entry"] == "transferred")
    seeds = json.loads((finished / "config.json").read_text())["seeds"]
    assert given["origin"].startswith(f"{attacked}: ") and len(given["starts"]) == 2 * len(seeds)
    assert f"Attackers found in `{attacked}` were tried as well" in (folder / "report.md").read_text()
    capsys.readouterr()
    (other := tmp_path / "cheetah").mkdir()
    with np.load(attacked / "strongest.npz") as saved:
        about = json.loads(str(saved["about"]))
        np.savez(other / "strongest.npz", **dict(saved) | {"about": json.dumps(about | {"env": "reacher"})})
    for flag, radius, words in (
        (tmp_path / "nowhere", "0.3", "there is no"),
        (other, "0.3", "is of 'reacher'; accepted: attacks on 'navigation_2d'"),
        (attacked, "0.7", "has none of these radii; accepted: 0.1, 0.3"),
    ):
        fresh = ("--radii", radius, "--methods", "random", "--out", str(tmp_path / "refused"))
        assert attack(finished, *fresh, "--transfer-from", str(flag)) == 2
        said = capsys.readouterr().err
        assert "transfer_from: " in said and words in said and said.count("\n") == 1
        assert not (tmp_path / "refused").exists()


def test_who_went_on_from_the_worst_in_vain_shows_that_it_had_converged(attacked: Path) -> None:
    rows = json.loads((attacked / "results.json").read_text())["rows"]
    like = next(row for row in rows if row["effort"]) | {"final": None}
    first = like | {"entry": "fit", "origin": "start 0", "validation": -5.0, "effort": [-3.0, -4.0, -5.0]}
    in_vain = like | {"entry": "on", "origin": "fit", "validation": -5.0, "effort": [-5.0] * 12}
    further = like | {"entry": "further", "origin": "fit", "validation": -6.0}
    # The final tasks, where both were judged on them, have the last word.
    first_there, further_there = first | {"final": -5.0}, further | {"effort": [-5.0] * 12}
    assert end_of_line([first_there, further_there], first_there) is first_there
    in_vain_there = further_there | {"final": -4.5}
    assert end_of_line([first_there, in_vain_there], first_there) is in_vain_there
    stronger_there = in_vain_there | {"validation": -5.0, "final": -5.5}
    assert end_of_line([first_there, stronger_there], first_there) is first_there
    assert end_of_line([first, in_vain], first) is in_vain
    # Of another start, or stronger: another attacker.
    assert end_of_line([first, in_vain | {"origin": "start 1"}], first) is first
    assert end_of_line([first, further], first) is first
    # Two updates do not vouch for three, but two and another two do.
    few = in_vain | {"effort": [-5.0] * 2}
    assert end_of_line([first, few], first) is first
    again = few | {"entry": "on again"}
    assert end_of_line([first, few, again], first) is again
    assert end_of_line([first, few, again | {"origin": "on"}], first) is first
    # Of starts that are drawn nobody goes on from another: all rounds of that name count, and are flat.
    more = in_vain | {"entry": "fit, continued 1", "origin": "start 7", "validation": -5.5, "final": -4.9}
    judged = first | {"final": -5.0}
    assert end_of_line([judged, more], judged) is judged
    end = end_of_line([judged, more], judged, is_drawn=True)
    assert end["entry"] == "fit, continued 1" and set(end["effort"]) == {judged["validation"]}
    assert end_of_line([judged, more | {"final": -5.1}], judged, is_drawn=True) is judged


@pytest.mark.parametrize("stronger", ["l2_noise", "transferred", "refined"])
def test_a_failed_check_withholds_the_claim(attacked: Path, stronger: str) -> None:
    results = json.loads((attacked / "results.json").read_text())
    assert results["strata"] is None
    for test in results["tests"]:
        if test["method"] == "admrl":
            # Noise, or what was found elsewhere, does more harm than what was learned here.
            test["returns"] = {name: [-1.0] * 4 for name in test["returns"]} | {stronger: [-1e4] * 4}
            cell = {name: test[name] for name in ("method", "seed", "radius")}
            if stronger == "refined":
                results["rows"].append({**results["rows"][-1], **cell, "entry": "refined"})
    text = report_text(Attacked(results), {})
    line = next(line for line in text.splitlines() if line.startswith("| adMRL"))
    assert "claim withheld" in line
    assert "Failed, so that nothing is claimed" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--suite", "hard"), "suite: 'hard' is not accepted; accepted: one of quick, standard, claim"),
        (("--radii", "-1"), "radii: (-1.0,) is not accepted; accepted: numbers above 0"),
        (("--radii", "two"), "radii: 'two' is not accepted"),
        (("--methods", "mamll"), "methods: 'mamll' is not accepted; accepted: admrl, fgsm, maml"),
        (("--seeds", "77"), "seeds: 77 is not accepted; accepted: "),
        (("--units", "metres"), "units: 'metres' is not accepted"),
        (("--side", "left"), "side: 'left' is not accepted; accepted: one of both, query, support"),
        (("--radius", "1"), "'--radius' is not known"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    flags: tuple[str, ...], words: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        attack_main("experiments.attack RUN", "", [str(finished), *flags, "--out", str(tmp_path / "x")]) == 2
    )
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_wrong_sources_and_folders_are_refused_in_one_line(
    attacked: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, other = tmp_path / "policies.npz", tmp_path / "other"
    damaged.write_bytes((finished / "policies.npz").read_bytes()[:-200])
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    cases = [
        (["--suite", "quick"], "source: nothing given"),
        ([str(tmp_path / "nowhere")], "there is no"),
        ([str(damaged)], "is damaged"),
        ([str(finished), "--suite", "quick", "--out", str(other)], "is not empty and holds no attack"),
        (
            [str(finished), "--suite", "quick", "--seed", "1", "--out", str(attacked)],
            "holds another attack",
        ),
    ]
    for argv, words in cases:
        assert attack_main("experiments.attack RUN", "", argv) == 2, words
        said = capsys.readouterr().err
        assert words in said and len(said.strip().splitlines()) == 1, said
    assert (other / "thesis.txt").read_text() == "mine"


def test_cells_go_from_small_radii_to_large(finished: Path, tmp_path: Path) -> None:
    plan = make_plan(finished, suite="quick", radii=(0.3, 0.1, 0.3), methods=("maml",))
    assert plan.radii == (0.1, 0.3)
    assert [cell.radius for cell in cells_of(plan)][:2] == [0.1, 0.3]
    shutil.copy(finished / "policies.npz", tmp_path)
    # The file alone is enough.
    alone = make_plan(tmp_path / "policies.npz", suite="quick")
    assert alone.methods == make_plan(finished).methods and dataclasses.asdict(alone)["side"] == "both"
    assert KEY < 2**31


def test_a_stopped_attack_prints_the_command_that_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stopped(self: AttackRun) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(AttackRun, "run", stopped)
    argv = [str(finished), "--suite", "quick", *RADII, "--out", str(tmp_path)]
    assert attack_main("experiments.attack RUN_OR_NPZ", "", argv) == 143
    assert f"\n  python -m experiments.attack {' '.join(argv)}\n" in capsys.readouterr().err
