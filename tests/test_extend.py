"""Going on after the end: what stays, what is refused, and the bits of a run that was as long at once."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from admrl_jax.commands.experiment import main as run_experiment
from admrl_jax.commands.extend import extend_main
from admrl_jax.config import Config, from_dict, to_dict
from admrl_jax.core.settings import ConfigError
from admrl_jax.protocol.extend import changes, extend_run
from admrl_jax.report.results import read_results
from admrl_jax.runs.artefact import KEPT_ATTACKERS, read_policies
from admrl_jax.runs.files import read_arrays
from experiments import navigation_2d
from faults.toy_runs import TOY


def extend(argv: list[str]) -> int:
    return extend_main("experiments.extend RUN", "", argv)


def rows(directory: Path) -> list[dict[str, str]]:
    """Metrics of the training stages."""
    lines = (directory / "metrics.csv").read_text().splitlines()
    return [row for row in csv.DictReader(lines) if not row["stage"].startswith("attack")]


def attack_rows(directory: Path, method: str) -> list[dict[str, str]]:
    """Metrics of a method's attackers, in one order."""
    lines = (directory / "metrics.csv").read_text().splitlines()
    found = [r for r in csv.DictReader(lines) if r["stage"].startswith("attack") and r["method"] == method]
    # Columns that only other methods fill are not there in a run without them.
    rows = [{name: value for name, value in row.items() if value} for row in found]
    return sorted(rows, key=lambda row: (row["stage"], row["seed"], int(row["step"])))


def test_a_longer_run_has_the_bits_of_one_that_was_begun_as_long(finished: Path, tmp_path: Path) -> None:
    more = ["--schedule.finetune-steps=6", "--until=finetune"]
    assert extend([str(finished), f"--run-dir={tmp_path / 'longer'}", *more]) == 0
    argv = [*TOY, "--eval.strengths", "0.1", "0.2", f"--run-dir={tmp_path / 'long'}", *more]
    assert run_experiment("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 0
    extended, whole = (read_policies(tmp_path / name) for name in ("longer", "long"))
    assert extended.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(extended[name], whole[name], err_msg=name)
    longer, long = rows(tmp_path / "longer"), rows(tmp_path / "long")
    key = lambda row: (row["method"], row["stage"], int(row["step"]))  # noqa: E731
    assert sorted(longer, key=key) == sorted(long, key=key)
    assert not (tmp_path / "longer" / "returns").exists(), "of the shorter run"
    # The run that it came from is as it was.
    assert json.loads((finished / "config.json").read_text())["schedule"]["finetune_steps"] == 4
    assert max(int(row["step"]) for row in rows(finished)) == 10


def test_methods_are_added_to_what_is_there(finished: Path, tmp_path: Path, capsys) -> None:
    config = from_dict(json.loads((finished / "config.json").read_text()))
    directory = tmp_path / "more"
    argv = [str(finished), f"--run-dir={directory}", "--methods", *config.methods, "smooth"]
    assert extend([*argv, "--until=finetune"]) == 0
    before, after = read_policies(finished / "policies.npz"), read_policies(directory / "policies.npz")
    added = {name for name in after if name not in before}
    assert added and all("smooth" in name for name in added)
    assert all((after[name] == before[name]).all() for name in before if name.startswith("policies/"))
    for path in (finished / "returns").iterdir():
        assert (directory / "returns" / path.name).read_bytes() == path.read_bytes()
    said = capsys.readouterr().err
    assert "policies, attackers, returns" in said
    assert "smooth: finetune" in said and "maml: finetune" not in said and "pretrain" not in said


def test_strengths_are_added_to_what_is_there(finished: Path, tmp_path: Path, capsys) -> None:
    config = from_dict(json.loads((finished / "config.json").read_text()))
    strengths = ["--eval.strengths", "0.1", "0.2", "0.4"]
    directory = tmp_path / "more"
    assert extend([str(finished), f"--run-dir={directory}", *strengths]) == 0
    said = capsys.readouterr().err
    assert "attack-adgan: 2/2" in said and "finetune" not in said
    before, after = (read_arrays(path / "attackers.npz") for path in (finished, directory))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert {name.split("/")[3] for name in after.keys() - before.keys()} == {"0.4"}
    old, new = (read_results(path)["rows"] for path in (finished, directory))
    assert [row for row in new if row["strength"] != 0.4] == old
    assert sum(row["strength"] == 0.4 for row in new) == len([r for r in old if r["strength"] == 0.1])
    # What a run that was begun with all of them has; of one method, to save time.
    argv = [*TOY, *strengths, "--methods=maml", f"--run-dir={tmp_path / 'whole'}"]
    assert run_experiment("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 0
    mine = [row for row in new if row["method"] == "maml" and row["protocol"] != "paper"]
    assert [row for row in read_results(tmp_path / "whole")["rows"] if row["protocol"] != "paper"] == mine
    assert attack_rows(tmp_path / "whole", "maml") == attack_rows(directory, "maml")
    # An extended run is extended like any other.
    capsys.readouterr()
    attacks = ["--eval.attacks", *config.eval.attacks, "corner_noise"]
    assert extend([str(directory), f"--run-dir={tmp_path / 'again'}", *attacks]) == 0
    last = read_results(tmp_path / "again")["rows"]
    assert [row for row in last if row["attack"] != "corner_noise"] == new
    assert "attack-adgan" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "settings: nothing changes; --resume goes on with a run as it is"),
        (["--schedule.finetune-steps=3"], "schedule.finetune_steps: 3 is not accepted; accepted: 4 or more"),
        (
            ["--methods", "random"],
            "methods: 'random' is not accepted; accepted: maml, random, fgsm, admrl",
        ),
        (["--policy.init-std=2"], "policy.init_std: 2.0 is not accepted; accepted: 1.0, as the run has it"),
        (["--seeds", "0", "1"], "seeds: (0, 1) is not accepted; accepted: (0,), as the run has it"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused(
    flags: list[str], message: str, finished: Path, tmp_path: Path, capsys
) -> None:
    assert extend([str(finished), f"--run-dir={tmp_path / 'new'}", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"strengths": (0.1, 0.2, 0.3)}, ["attackers", "returns"]),
        ({"strengths": (0.2, 0.1)}, []),
        ({"num_tasks": 3}, ["attackers"]),
        ({"seed": 1}, ["attackers"]),
        ({"attacks": ("gaussian", "fgsm", "adgan", "corner_noise")}, ["attackers", "returns"]),
        ({"curve_strength": 0.1}, ["attackers", "returns"]),
    ],
)
def test_a_changed_meta_test_keeps_what_it_does_not_touch(
    changed: dict, kept: list[str], finished: Path, tmp_path: Path
) -> None:
    config = from_dict(json.loads((finished / "config.json").read_text()))
    wanted = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changed))
    assert extend_run(finished, tmp_path / "new", wanted) == kept

    def names(folder: str, start: str = "") -> set[str]:
        return {path.name for path in (tmp_path / "new" / folder).glob(f"{start}*")}

    assert (tmp_path / "new" / KEPT_ATTACKERS).exists() == ("attackers" in kept)
    assert not names("checkpoints", "attack-"), "what is trained is in the file"
    assert names("checkpoints", "finetune-")
    before = {path.name for path in (finished / "returns").iterdir()}
    curves = {name for name in before if name.startswith(("curve.", "opponent."))}
    assert len({name.split(".")[0] for name in curves}) == 2 and before - curves
    gone = curves if "curve_strength" in changed else set()
    assert names("returns") == (before - gone if "returns" in kept else set())


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"attacker": {"steps": 1}}, set()),
        ({"attacks": ("gaussian", "adgan")}, {"attack-adgan-0.1", "attack-adgan-0.2"}),
        ({"strengths": (0.1, 0.2, 0.3)}, {"attack-adgan-0.1", "attack-adgan-0.2"}),
    ],
)
def test_metrics_of_attackers_that_are_dropped_go_too(
    changed: dict, kept: set[str], finished: Path, tmp_path: Path
) -> None:
    config = from_dict(json.loads((finished / "config.json").read_text()))
    if "attacker" in changed:
        changed = {"attacker": dataclasses.replace(config.eval.attacker, **changed["attacker"])}
    wanted = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changed))
    wanted = dataclasses.replace(wanted, eval=dataclasses.replace(wanted.eval, undefended_attacks=()))
    before = [row["stage"] for row in csv.DictReader((finished / "metrics.csv").read_text().splitlines())]
    assert any(stage.startswith("attack-adgan_no_gan") for stage in before)
    extend_run(finished, tmp_path / "new", wanted)
    lines = (tmp_path / "new" / "metrics.csv").read_text().splitlines()
    after = [row["stage"] for row in csv.DictReader(lines)]
    assert {stage for stage in after if stage.startswith("attack-")} == kept
    assert [s for s in after if s in kept or not s.startswith("attack-")] == after
    trained = [stage for stage in before if not stage.startswith("attack-")]
    assert [stage for stage in after if not stage.startswith("attack-")] == trained


def test_attackers_that_are_only_begun_go_on(finished: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(finished, begun)
    (begun / "attackers.npz").unlink()
    config = from_dict(json.loads((finished / "config.json").read_text()))
    more = dataclasses.replace(config, methods=(*config.methods, "smooth"))
    assert extend_run(begun, tmp_path / "new", more) == ["attackers", "returns"]
    assert (tmp_path / "new" / "checkpoints" / "attack-adgan-maml").is_dir()
    # With other strengths other lanes are trained: what was begun is of no use.
    wanted = dataclasses.replace(config, eval=dataclasses.replace(config.eval, strengths=(0.1, 0.2, 0.4)))
    assert extend_run(begun, tmp_path / "other", wanted) == ["returns"]
    assert not list((tmp_path / "other" / "checkpoints").glob("attack-*"))


def test_damaged_attackers_are_named(finished: Path, tmp_path: Path, capsys) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    (damaged / "attackers.npz").write_bytes((finished / "attackers.npz").read_bytes()[:-100])
    flags = ["--eval.strengths", "0.1", "0.2", "0.4"]
    assert extend([str(damaged), f"--run-dir={tmp_path / 'new'}", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: attacker: {damaged / 'attackers.npz'} is damaged")


def test_places_are_refused_by_name(finished: Path, tmp_path: Path, capsys) -> None:
    flag = "--schedule.finetune-steps=6"
    for argv, message in (
        ([], "run: nothing given"),
        ([str(tmp_path)], f"run: {tmp_path} has no config.json"),
        ([str(finished), flag], "run_dir: nothing given; accepted: a new folder"),
        ([str(finished), flag, f"--run-dir={finished}"], f"run-dir: {finished} is not empty"),
    ):
        assert extend(argv) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")


def with_steps(finetune_steps: int) -> Config:
    plain = to_dict(navigation_2d.PRESETS["quick"])
    plain["schedule"] |= {"finetune_steps": finetune_steps, "snapshot_every": 10}
    return from_dict(plain)


def test_a_last_snapshot_out_of_turn_cannot_be_gone_on_from() -> None:
    with pytest.raises(ConfigError, match=r"which is no multiple of schedule.snapshot_every \(10\)"):
        changes(with_steps(5), with_steps(10))


def test_a_checkpoint_before_the_first_snapshot_is_gone_on_from(tmp_path: Path, capsys) -> None:
    argv = [*TOY, "--until=pretrain", f"--run-dir={tmp_path / 'run'}", "--schedule.snapshot-every=6"]
    assert run_experiment("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 0
    stage = tmp_path / "run" / "checkpoints" / "pretrain-pretrain"
    before = read_policies(tmp_path / "run")
    shutil.rmtree(stage / "6")
    capsys.readouterr()
    assert run_experiment("experiments.navigation_2d", "", navigation_2d.PRESETS, [*argv, "--resume"]) == 0
    after = read_policies(tmp_path / "run")
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert (stage / "6").exists()
