"""Entrypoints at toy size: a whole run, kill and resume to the same bits, clear refusals."""

import csv
import dataclasses
import functools
import importlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import TOY_STRENGTHS, ToyRun
from helpers import assert_trees_equal

from admrl_jax import simulators
from admrl_jax.attacks.registry import ATTACKS
from admrl_jax.commands import paper as paper_command
from admrl_jax.commands.experiment import label_of, main
from admrl_jax.commands.merge import merge_main
from admrl_jax.commands.paper import paper_main
from admrl_jax.config import (
    MACHINE_SETTINGS,
    AttackerConfig,
    Config,
    DefenceConfigs,
    EvalConfig,
    ScheduleConfig,
    flatten,
    from_dict,
)
from admrl_jax.defences.adgan import AdGANTrainingConfig
from admrl_jax.defences.registry import DEFENCES
from admrl_jax.envs.navigation import Navigation2D
from admrl_jax.envs.registry import ENVS
from admrl_jax.methods import METHODS, PAPER_METHODS
from admrl_jax.protocol import run as protocol_run
from admrl_jax.protocol.eval_stages import MetaTest
from admrl_jax.protocol.eval_stages import Test as OneAttack
from admrl_jax.protocol.parts import build_parts
from admrl_jax.protocol.paths import save_paths
from admrl_jax.protocol.session import open_session
from admrl_jax.protocol.train_stages import pretrain
from admrl_jax.report.results import read_results
from admrl_jax.runs.artefact import load_policy, read_policies, save_policies
from admrl_jax.runs.directory import RunError, open_run
from admrl_jax.runs.files import read_arrays
from admrl_jax.runs.progress import Progress
from admrl_jax.runs.signals import Interrupted
from admrl_jax.sampling import SamplingConfig
from admrl_jax.saved.attack_plan import effort_of, set_aside
from admrl_jax.saved.decisions import measure_decisions
from admrl_jax.simulators import SimulatorError
from admrl_jax.suites import SUITES
from admrl_jax.training import init_train_state, outer_step
from benchmarks.protocol import count_cells
from experiments import halfcheetah_dir, navigation_2d
from experiments.paper import PRESETS as PAPER_PRESETS
from experiments.paper import SEEDS as PAPER_SEEDS
from experiments.train import run as run_by_name
from faults.damaged import truncate
from faults.toy_runs import TOY, fingerprint

ROOT = Path(__file__).parent.parent


def run(argv: list[str], module=navigation_2d) -> int:
    """One experiment inside this process."""
    return main(f"experiments.{module.__name__.rsplit('.')[-1]}", "", module.PRESETS, argv)


def toy(run_dir: Path) -> list[str]:
    return [*TOY, *TOY_STRENGTHS, f"--run-dir={run_dir}"]


def test_run_leaves_every_result(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    rows = results["rows"]
    # clean + (gaussian, l2_noise, fgsm, adgan x 2 protocols) x 2 strengths x 3 cells; maml also without GAN.
    per_method = 1 + 5 * 2 * 3
    assert len(rows) == 4 * per_method + 2 * 3
    assert {row["method"] for row in rows} == set(results["methods"]) == set(PAPER_METHODS)
    assert {row["attack"] for row in rows} == set(results["attacks"])
    floor = results["floor"]
    assert -8 < floor < 0
    cells = {(r["method"], r["attack"], r["strength"], r["protocol"], r["support"], r["query"]) for r in rows}
    assert len(cells) == len(rows), "one row per cell"
    curves = results["curves"]
    assert {c["step"] for c in curves if c["method"] == "pretrain"} == {0, 2, 4, 6}
    assert {c["step"] for c in curves if c["method"] == "admrl"} == {8, 10}
    opponents = results["opponents"]
    assert [(c["method"], c["attack"], c["step"]) for c in opponents] == [
        ("admrl", "adgan", s) for s in (6, 8, 10)
    ]
    assert len({c["post"] for c in opponents}) == 3, "it learns, and the policy stands still"
    assert count_cells(from_dict(results["config"])) == len(rows) + len(curves) + len(opponents), (
        "the benchmark counts them all"
    )
    lines = (finished / "metrics.csv").read_text().splitlines()
    # pretrain 6, warmup 2, four methods of 4, five attackers of 2 updates at 2 strengths.
    assert len(lines) == 1 + 6 + 2 + 4 * 4 + 5 * 2 * 2
    stages = {row["stage"] for row in csv.DictReader(lines)}
    attackers = {f"attack-{name}-{s}" for name in ("adgan", "adgan_no_gan") for s in (0.1, 0.2)}
    assert stages == {"pretrain", "warmup", "finetune"} | attackers
    for name in ("report.md", "config.json", "trajectories.npz", "policies.npz", "figures/strength.png"):
        assert (finished / name).stat().st_size > 0


def test_pretraining_is_shared_and_methods_differ(finished: Path) -> None:
    rows = json.loads((finished / "results.json").read_text())["rows"]
    clean = {r["method"]: r["post"] for r in rows if r["attack"] == "none"}
    assert len(set(clean.values())) == 4


def subprocess_run(argv: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.navigation_2d", *argv]
    # Compiled as in this process, whose bits must come out.
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations"))),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, "the run did not get there in time"
        time.sleep(0.02)


def test_killed_and_interrupted_run_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    argv = toy(directory)
    # SIGKILL in the middle of pre-training, after the checkpoint of step 2.
    process = subprocess_run(argv)
    wait_for((directory / "checkpoints" / "pretrain-pretrain" / "2").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (directory / "results.json").exists()

    # SIGTERM, as from a job manager, and SIGINT in the middle of a method: saved, exit code 143 or 130, the
    # command that goes on.
    arguments = [*argv, "--resume"]
    for number, method, code in ((signal.SIGTERM, "maml", 143), (signal.SIGINT, "random", 130)):
        process = subprocess_run(arguments)
        wait_for((directory / "checkpoints" / f"finetune-{method}").exists, process)
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == code, errors
        command = errors.strip().splitlines()[-1].strip()
        assert command.startswith("python -m experiments.navigation_2d") and command.endswith("--resume")
        arguments = shlex.split(command)[3:]

    assert run(arguments) == 0
    for name in ("results.json", "metrics.csv", "config.json", "report.md"):
        assert (directory / name).read_bytes() == (finished / name).read_bytes(), name
    assert fingerprint(directory) == fingerprint(finished)


def test_finished_run_is_not_run_again(finished: Path, capsys: pytest.CaptureFixture) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "returns").iterdir()}
    results = (finished / "results.json").read_bytes()
    assert run([*toy(finished), "--resume"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (finished / "returns").iterdir()} == before
    assert (finished / "results.json").read_bytes() == results


def refused(argv: list[str], capsys: pytest.CaptureFixture, *words: str) -> None:
    assert run(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in ("error:", *words):
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--simulator=pybullet", ("simulator", "pybullet", "mujoco")),
        ("--preset=fast", ("preset", "fast", "quick")),
        ("--schedule.finetune-steps=-1", ("schedule.finetune_steps", "-1", "from 1 to 1000000")),
        ("--sampling.num-tasks=0", ("sampling.num_tasks", "0", "from 1 to 10000")),
        ("--units=metres", ("units", "metres", "normalised")),
        ("--attacks.adgan.gan-loss=wgan", ("gan_loss", "wgan", "lsgan")),
        ("--schedule.checkpoint-every=7", ("schedule.checkpoint_every", "7", "multiple")),
    ],
)
def test_bad_settings_are_named(argument: str, words, tmp_path: Path, capsys) -> None:
    directory = tmp_path / "never"
    refused(["--preset=quick", f"--run-dir={directory}", argument], capsys, *words)
    assert not directory.exists()


def test_bad_strength_is_named(tmp_path: Path, capsys) -> None:
    argv = ["--preset=quick", f"--run-dir={tmp_path / 'never'}", "--eval.strengths", "0.2", "-0.5"]
    refused(argv, capsys, "eval.strengths", "-0.5", "from 1e-06")


def test_unknown_environment_is_named(capsys) -> None:
    for argv, words in (
        (["--env=walker"], "env: 'walker' is not accepted; accepted: navigation_2d, "),
        (["--env"], "env: '' is not accepted; accepted: navigation_2d, "),
        ([], "env: '' is not accepted; accepted: navigation_2d, "),
        (["--preset=quick"], "env: '' is not accepted; accepted: navigation_2d, "),
        (["--env=custom"], "env: 'custom' is not accepted; accepted: navigation_2d, "),
    ):
        assert run_by_name(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {words}") and error.count("\n") == 1, error
        assert "module:function" in error


def test_missing_simulator_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    real = simulators.importlib.util.find_spec
    monkeypatch.setattr(
        simulators.importlib.util, "find_spec", lambda name: None if name == "mujoco.mjx" else real(name)
    )
    argv = ["--preset=quick", "--simulator=mjx", f"--run-dir={tmp_path / 'never'}"]
    assert run(argv, halfcheetah_dir) == 2
    assert "mujoco-mjx, which is not installed" in capsys.readouterr().err


def test_run_directory_is_never_overwritten(finished: Path, tmp_path: Path, capsys) -> None:
    saved = (finished / "results.json").read_bytes()
    refused(toy(finished), capsys, "holds this run already", "--resume")
    other = [*toy(finished), "--resume", "--learners.maml-trpo.inner-lr=0.2"]
    refused(other, capsys, "another config", "learners.maml_trpo.inner_lr: 0.1 -> 0.2")
    assert (finished / "results.json").read_bytes() == saved
    (tmp_path / "notes.txt").write_text("mine")
    refused(["--preset=quick", f"--run-dir={tmp_path}"], capsys, "not empty")
    assert os.listdir(tmp_path) == ["notes.txt"]
    refused(["--preset=quick", "--run-dir=/proc/nothing/here"], capsys, "cannot be written")


def test_going_on_from_a_pretrained_policy_is_as_if_it_had_been_trained_here(
    finished: Path, tmp_path: Path, capsys
) -> None:
    directory = tmp_path / "on"
    argv = [
        *toy(directory),
        "--methods",
        "maml",
        "population",
        f"--pretrained={finished}",
        "--until=finetune",
    ]
    argv += ["--defences.population.num-generators=2", "--defences.population.warmup-steps=2"]
    argv += ["--defences.population.fit.num-steps=2"]
    assert run(argv) == 0
    assert (directory / "checkpoints" / "warmup-population" / "2").is_dir()
    ours, theirs = (read_policies(folder) for folder in (directory, finished))
    names = [name for name in theirs if name in ours and name.startswith(("policy/", "normaliser/"))]
    assert any("policy/population/" in name for name in ours)
    assert any("policy/maml/" in name for name in names) and any("policy/pretrain/" in name for name in names)
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert not (directory / "checkpoints" / "pretrain-pretrain").exists()
    for flags, words in (
        ([f"--pretrained={tmp_path / 'gone'}"], "policy: there is no"),
        ([f"--pretrained={finished}", "--schedule.pretrain-steps=7"], "schedule.pretrain_steps: "),
        ([f"--pretrained={finished}", "--policy.hidden-sizes=5"], "policy.hidden_sizes: "),
        (
            [f"--pretrained={finished}", "--methods", "promp"],
            "it was trained with maml_trpo; accepted for promp",
        ),
    ):
        fresh = tmp_path / f"refused-{len(words)}"
        assert run([*toy(fresh), "--methods", "maml", "--until=finetune", *flags]) == 2
        error = capsys.readouterr().err
        assert words in error and error.splitlines()[-1].startswith("error: "), error


def test_settings_of_jax_that_decide_numbers_stay(finished: Path, tmp_path: Path, capsys) -> None:
    directory = tmp_path / "double"
    shutil.copytree(finished, directory)
    path = directory / "jax.json"
    saved = json.loads(path.read_text())
    assert saved["jax_enable_x64"] is False and saved["jax_default_matmul_precision"] is None
    path.write_text(json.dumps(saved | {"jax_enable_x64": True}))
    refused([*toy(directory), "--resume"], capsys, "other settings of JAX: jax_enable_x64: True -> False")
    path.write_text("{")
    refused([*toy(directory), "--resume"], capsys, "jax.json cannot be read")


def test_second_run_in_one_directory_is_refused(finished: Path, capsys) -> None:
    config = from_dict(json.loads((finished / "config.json").read_text()))
    lock = open_run(finished, config, resume=True)
    refused([*toy(finished), "--resume"], capsys, "in use")
    os.close(lock)


def test_a_damaged_checkpoint_is_named_and_costs_no_bit(finished: Path, tmp_path: Path, capsys) -> None:
    # Not the newest of the run: the metrics that come again must go where they stood.
    directory = tmp_path / "damaged"
    shutil.copytree(finished, directory)
    newest = directory / "checkpoints" / "pretrain-pretrain" / "6"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert run([*toy(directory), "--resume"]) == 0
    errors = capsys.readouterr().err
    assert f"checkpoint {newest} is damaged" in errors and "going on from step 4" in errors
    for name in ("results.json", "metrics.csv", "report.md"):
        assert (directory / name).read_bytes() == (finished / name).read_bytes(), name
    assert newest.is_dir()


def test_damaged_returns_are_named_and_measured_again(finished: Path, tmp_path: Path, capsys) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(finished, directory)
    damaged = ["returns/maml.fgsm.npz", "returns/curve.admrl.none.npz", "trajectories.npz"]
    for name in damaged:
        truncate(directory / name)
    assert run([*toy(directory), "--resume"]) == 0
    errors = capsys.readouterr().err.splitlines()
    for name in damaged:
        assert f"{directory / name} is damaged; it is measured again" in errors
    for name in ("results.json", "report.md"):
        assert (directory / name).read_bytes() == (finished / name).read_bytes(), name
    assert fingerprint(directory) == fingerprint(finished)


def test_an_interrupted_evaluation_lets_go_of_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(Progress, "close", lambda progress: closed.append(progress))
    test = MetaTest(open_session(navigation_2d.PRESETS["quick"], tmp_path))

    def interrupted(*_) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(test._evaluator, "evaluate", interrupted)
    state = SimpleNamespace(learner=SimpleNamespace(meta_params=()), units=())
    policies: dict = {"arms": {"maml": SimpleNamespace(state=state, snapshots=())}}
    for stage in (
        lambda: test.run("maml", policies["arms"]["maml"], [OneAttack("none", "", [()])]),
        lambda: test.curves("maml", SimpleNamespace(state=state), policies["arms"]),
    ):
        closed.clear()
        with pytest.raises(Interrupted):
            stage()
        assert len(closed) == 1


def test_curves_are_attacked_in_the_units_of_their_method(tmp_path: Path, monkeypatch) -> None:
    test = MetaTest(open_session(navigation_2d.PRESETS["quick"], tmp_path))
    met = []

    def noted(method: str, policy: object, units: object, *_) -> None:
        met.append(units)
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(test._evaluator, "evaluate", noted)
    first, mine = (SimpleNamespace(state=SimpleNamespace(units=units)) for units in ("first", "mine"))
    mine.snapshots = ()
    with pytest.raises(Interrupted):
        test.curves("maml", first, {"maml": mine})
    assert met == ["mine"]


def test_an_optimiser_that_starts_anew_is_said(finished: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    trained = load_policy(finished, "pretrain")
    for method in ("maml", "promp"):
        config = dataclasses.replace(trained.config, methods=(method,))
        path = folder / "policies.npz"
        save_policies(path, config, {"pretrain": trained.params}, trained.inputs, config.seeds)
        capsys.readouterr()
        session = open_session(dataclasses.replace(config, pretrained=str(folder)), tmp_path / method)
        pretrain(session, method)
        said = capsys.readouterr().err
        assert ("pretrained: the optimiser of promp starts anew" in said) == (method == "promp")


def test_a_checkpoint_of_another_run_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    directory = tmp_path / "mixed"
    argv = [*toy(directory), "--resume", "--seeds", "3"]
    shutil.copytree(finished / "checkpoints", directory / "checkpoints")
    config = json.loads((finished / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "seeds": [3]}))
    assert run(argv) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: checkpoint: ") and last.endswith("another config: seeds: (0,) -> (3,)")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_later(
    finished: Path, tmp_path: Path, capsys
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk), "-o"]
    if subprocess.run([*mount, "size=300k"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("may not mount")
    try:
        argv = [*toy(disk / "run"), "--until=pretrain"]
        assert run(argv) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(errors) == 1 and "No space left on device" in errors[0] and "--resume" in errors[0]
        subprocess.run([*mount, "remount,size=8m"], check=True)
        assert run([*argv, "--resume"]) == 0
        rows = (disk / "run" / "metrics.csv").read_text().splitlines()
        expected = (finished / "metrics.csv").read_text().splitlines()[: len(rows)]
        # The finished run has more columns, of later stages.
        assert rows == [line[: len(row)] for line, row in zip(expected, rows, strict=True)]
        subprocess.run([*mount, "remount,ro"], check=True)
        capsys.readouterr()
        refused([*argv, "--resume"], capsys, "cannot be written", "Read-only")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_too_many_bad_steps_stop_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    step = Navigation2D.step

    def broken(self, state, action, task):
        state, new = step(self, state, action, task)
        return state, new._replace(reward=new.reward * math.nan)

    monkeypatch.setattr(Navigation2D, "step", broken)
    argv = [*toy(tmp_path / "bad"), "--schedule.max-bad-steps=3", "--until=pretrain"]
    assert run(argv) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: pretrain: step 3, seed 0: numbers were not finite for 3 outer steps")
    checkpoint = tmp_path / "bad" / "checkpoints" / "pretrain-pretrain" / "2"
    assert last.endswith(f"last good checkpoint: {checkpoint}") and checkpoint.is_dir()
    rows = list(csv.DictReader((tmp_path / "bad" / "metrics.csv").read_text().splitlines()))
    # 2 tasks x 4 episodes, before and after adaptation.
    assert [row["train/diverged"] for row in rows] == ["16.0"] * 3
    # Once the environment is mended the run goes on, also with another limit.
    monkeypatch.setattr(Navigation2D, "step", step)
    assert run([*toy(tmp_path / "bad"), "--until=pretrain", "--resume"]) == 0


def test_a_run_moves_from_one_device_to_two(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "moves"
    assert run([*toy(directory), "--until=pretrain", "--num-devices=1"]) == 0
    rows, expected = (
        list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        for folder in (directory, finished)
    )
    assert len(rows) == 6
    # The first step differs by the order of sums alone; conjugate gradients on the few samples of
    # a toy run amplify that in the step (1 % seen), and everything after it amplifies it further.
    for name, tolerance in {
        "train/pre_return": 1e-5,
        "train/post_return": 1e-3,
        "train/kl": 0.05,
    }.items():
        first, same = float(rows[0][name]), float(expected[0][name])
        assert math.isclose(first, same, rel_tol=tolerance), name
    assert run([*toy(directory), "--resume", "--until=finetune"]) == 0
    rows = list(csv.DictReader((directory / "metrics.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"pretrain", *PAPER_METHODS}


def rows_by_key(directory: Path) -> dict[tuple[str, ...], dict[str, str]]:
    rows = csv.DictReader((directory / "metrics.csv").read_text().splitlines())
    return {(row["seed"], row["method"], row["stage"], row["step"]): row for row in rows}


TWO_SEEDS = (
    *("--seeds", "0", "1", "--methods", "admrl", "--eval.attacks", "gaussian", "adgan"),
    *("--eval.undefended-attacks", "--eval.curve-attacks"),
)


@pytest.fixture(scope="module")
def seeds_apart(toy_run: ToyRun) -> Path:
    """A toy run of two seeds, one after the other."""
    return toy_run("apart", *TWO_SEEDS, "--lanes=1")


def without(run_dir: Path, copy: Path, *parts: str) -> Path:
    """A copy of a run in which some stages are not done."""
    shutil.copytree(run_dir, copy)
    for part in parts:
        for path in copy.glob(part):
            shutil.rmtree(path)
    return copy


def assert_rows_agree(row: dict, same: dict, names: tuple[str, ...], rel_tol: float) -> None:
    for name in names:
        assert math.isclose(float(row[name]), float(same[name]), rel_tol=rel_tol, abs_tol=1e-6), name


def test_lanes_learn_side_by_side_as_one_by_one(seeds_apart: Path, tmp_path: Path) -> None:
    directory = without(seeds_apart, tmp_path / "together", "checkpoints/warmup-*", "checkpoints/finetune-*")
    assert run([*toy(directory), *TWO_SEEDS, "--lanes=2", "--resume", "--until=finetune"]) == 0
    rows, alone = rows_by_key(directory), rows_by_key(seeds_apart)
    assert list(rows) == list(alone) and {key[0] for key in rows} == {"0", "1"}
    changed = {key[2] for key in rows if rows[key] != alone[key]}
    assert changed == {"warmup", "finetune"}, "what was there is not computed again"
    for key, row in rows.items():
        assert {name for name in row if row[name]} == {name for name in alone[key] if alone[key][name]}, key
        if key[3] == "7" and key[2] in changed:
            # In the first step only roundings differ; later ones amplify them.
            names = ("train/pre_return", "train/post_return", "train/env_steps", "attack/size")
            assert_rows_agree(row, alone[key], names, 1e-3)


def test_lanes_are_attacked_and_tested_side_by_side_as_one_by_one(seeds_apart: Path, tmp_path: Path) -> None:
    directory = without(seeds_apart, tmp_path / "together", "checkpoints/attack-*", "returns")
    assert run([*toy(directory), *TWO_SEEDS, "--lanes=2", "--resume"]) == 0
    rows, alone = rows_by_key(directory), rows_by_key(seeds_apart)
    assert list(rows) == list(alone)
    for key, row in rows.items():
        if key[2].startswith("attack-") and key[3] == "1":
            names = ("train/pre_return", "train/post_return", "adversary/raw_size", "attack/size")
            assert_rows_agree(row, alone[key], names, 1e-3)
    tested, expected = (
        json.loads((folder / "results.json").read_text())["rows"] for folder in (directory, seeds_apart)
    )
    # Clean, and (gaussian, adgan by two protocols) x 2 strengths x 3 cells.
    assert len(tested) == len(expected) == 2 * (1 + 3 * 2 * 3)
    for row, same in zip(tested, expected, strict=True):
        # Fresh attackers differ by what their training amplified.
        rel_tol = 0.05 if row["protocol"] == "adaptive" else 1e-3
        assert_rows_agree(row, same, ("seed", "strength", "pre", "post", "attack_size"), rel_tol)


def test_a_seed_has_the_bits_that_it_has_alone(seeds_apart: Path, tmp_path: Path) -> None:
    directory = tmp_path / "alone"
    assert run([*toy(directory), *TWO_SEEDS, "--seeds=1", "--until=finetune"]) == 0
    rows, among_others = rows_by_key(directory), rows_by_key(seeds_apart)
    assert len(rows) == 6 + 2 + 4
    for key, row in rows.items():
        assert key[0] == "1" and row == {name: among_others[key][name] for name in row}, key


@pytest.fixture(scope="module")
def units(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same seeds in runs of their own, where `experiments.paper` has its units."""
    out = tmp_path_factory.mktemp("paper")
    for seed in (0, 1):
        alone = toy_run(f"seed-{seed}", *TWO_SEEDS, f"--seeds={seed}", "--lanes=1")
        shutil.copytree(alone, out / "navigation_2d" / f"seed-{seed}")
    return out


def test_runs_of_single_seeds_are_merged_to_what_one_run_of_all_leaves(
    seeds_apart: Path, units: Path, tmp_path: Path, capsys
) -> None:
    alone = [units / "navigation_2d" / f"seed-{seed}" for seed in (0, 1)]
    merged = tmp_path / "merged"
    assert merge_main("experiments.merge RUN RUN ...", "", [*map(str, alone), "--out", str(merged)]) == 0
    expected = {
        k: v for k, v in fingerprint(seeds_apart).items() if k.endswith((".json", ".csv", ".md", ".npz"))
    }
    (merged / "checkpoints").mkdir()
    assert fingerprint(merged) == expected
    assert load_policy(merged, "admrl", seed=1).config.seeds == (0, 1)
    other = tmp_path / "other"
    shutil.copytree(alone[1], other)
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"inner_lr": 0.1', '"inner_lr": 0.2'))
    for runs, out, words in (
        ([alone[0]], "a", "one is nothing to merge"),
        ([alone[0], alone[0]], "a", "seed 0 is in"),
        ([alone[0], other], "a", "has other settings than"),
        ([alone[0], tmp_path / "gone"], "a", "has no config.json; accepted: directories of finished runs"),
        (alone, "merged", "is not empty; name another folder"),
    ):
        capsys.readouterr()
        assert (
            merge_main("experiments.merge RUN RUN ...", "", [*map(str, runs), "--out", str(tmp_path / out)])
            == 2
        )
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def paper(*flags: str) -> int:
    return paper_main("experiments.paper", "", PAPER_PRESETS, PAPER_SEEDS, flags)


def test_the_paper_is_reported_from_the_units_that_are_finished(
    units: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "paper"
    shutil.copytree(units, out)
    flags = ("--envs", "navigation_2d", "--suite", "none", "--out", str(out), "--presets", "paper")
    assert paper(*flags, "--seeds", "1") == 0
    assert not (out / "navigation_2d" / "all").exists(), "one seed is a run already"
    assert paper(*flags, "--seeds", "0", "1") == 0
    text, claims = (out / "report.md").read_text(), json.loads((out / "claims.json").read_text())
    assert read_results(out / "navigation_2d" / "all")["config"]["seeds"] == [0, 1]
    assert {claim["code"] for claim in claims} >= {"T1", "N4", "A1", "W1"}
    assert {claim["verdict"] for claim in claims} <= {"undecided", "not measured"}, "two seeds decide nothing"
    assert "| navigation_2d | adMRL | -47.70 |" in text and "navigation_2d/all/figures/strength.png" in text
    capsys.readouterr()
    # Runs that are there already, from where they are.
    merged = out / "navigation_2d" / "all"
    again = tmp_path / "again"
    assert paper("--runs", str(merged), "--out", str(again)) == 0
    assert json.loads((again / "claims.json").read_text()) == claims
    assert (again / "report.md").read_text() == text.replace(
        "](navigation_2d/all/", "](../paper/navigation_2d/all/"
    )
    # Attacks on other policies, by the names of their runs.
    attack = Path(__file__).parent.parent / "results" / "navigation_2d_hardened" / "attack"
    assert paper("--runs", str(merged), "--attacks", str(attack), "--out", str(again)) == 0
    text = (again / "report.md").read_text()
    mine = "navigation_2d_hardened"
    line = f"| {mine} | navigation_2d, with memory | MAML, smooth - MAML of {mine} |"
    assert text.count(line) == 3 and "With nothing to compare with" not in text
    # So do units that are finished and were attacked.
    beyond = out / "navigation_2d" / "hardened" / "seed-0"
    shutil.copytree(attack, beyond / "attack")
    (beyond / "report.md").write_text("whole")
    both = ("--envs", "navigation_2d", "--out", str(out), "--report-only", "--seeds", "0")
    (out / "navigation_2d" / "seed-0" / "report.md").touch()
    assert paper(*both) == 0
    mine = "navigation_2d, hardened"
    line = f"| {mine} | navigation_2d, with memory | MAML, smooth - MAML of {mine} |"
    text = (out / "report.md").read_text()
    assert text.count(line) == 3
    # That attack is of an older suite, and the other unit has met none.
    assert (
        "**Not finished: navigation_2d, seed 0, paper (attack); navigation_2d, seed 0, hardened (attack).**"
        in text
    )
    capsys.readouterr()
    # What is left to do, a command each.
    assert paper(*flags, "--seeds", "0", "1", "2", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "--envs navigation_2d --seeds 2 --until units" in lines[0]
    assert paper(*flags, "--seeds", "2", "--list", "--compilation-cache", "off") == 0
    assert capsys.readouterr().out.strip().endswith(" --compilation-cache off")
    for wrong, words in (
        (("--envs", "ant_goal"), "envs: ('ant_goal',) is not accepted; accepted: navigation_2d, "),
        (("--out", str(tmp_path / "empty"), "--seeds", "9", "--envs"), "has no finished unit"),
        (("--suite", "hard"), "suite: 'hard' is not accepted"),
        (("--runs", str(merged), str(merged.parent / "seed-1")), "are both of navigation_2d; accepted: one"),
        (("--runs", str(tmp_path)), "has no config.json; accepted: directories of finished runs"),
        (("--runs", str(merged), "--attacks", str(tmp_path)), "accepted: folders of finished attacks"),
        (("--runs", str(merged), "--attacks", str(merged)), "is no attack but a run"),
        (("--runs", str(merged), "--seeds", "1"), "seeds: nothing is run where --runs names finished runs"),
        (("--runs", str(merged), "--attacks", str(attack), str(attack)), "attacks: ("),
        (("--attacks", str(merged)), "attacks: they are reported beside runs; name these with --runs"),
        (
            ("--presets", "paper", "quick"),
            "presets: ('paper', 'quick') is not accepted; accepted: paper, hardened",
        ),
    ):
        assert paper(*wrong) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_attacked_decisions_are_measured_with_the_attackers_of_the_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measure_decisions(finished)
    # Of its strengths 0.1 is not the paper's.
    assert [(x["attack"], x["strength"], x["seed"]) for x in rows] == [
        ("adgan", 0.2, 0),
        ("l2_noise", 0.2, 0),
    ]
    assert all(0 < x["worse"] + x["better"] <= 1 and abs(x["change"]) < 1 for x in rows)
    assert paper("--runs", str(finished), "--out", str(tmp_path)) == 0
    text = (tmp_path / "report.md").read_text()
    assert (
        text.count("| navigation_2d | adGAN | 0.2 |") == text.count("| navigation_2d | L2 noise | 0.2 |") == 1
    )
    hardened = Path(__file__).parent.parent / "results" / "navigation_2d_hardened"
    assert measure_decisions(hardened) == [], "it keeps no attackers"


def test_units_of_the_paper_are_run_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, codes = [], iter([0, 0, 143])

    def note(module: str, summary: str, presets: dict[str, Config], argv: list[str]) -> int:
        ran.append((module, presets, argv))
        return next(codes)

    monkeypatch.setattr(paper_command, "main", note)
    begun = tmp_path / "reacher" / "seed-0"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    assert paper("--envs", "navigation_2d", "reacher", "--seeds", "0", "--out", str(tmp_path)) == 143
    (first, presets, flags), (beyond, hardened, others), (second, _, resumed) = ran
    assert first == "experiments.navigation_2d" and "--seeds=0" in flags and "--resume" not in flags
    assert beyond == first and f"--run-dir={tmp_path / 'navigation_2d' / 'hardened' / 'seed-0'}" in others
    assert hardened == {"hardened": PAPER_PRESETS["navigation_2d"]["hardened"]}
    # The paper's settings, with the suite that was asked for.
    assert presets == {"paper": PAPER_PRESETS["navigation_2d"]["paper"]}
    assert "--eval.suite=standard" in flags
    assert second == "experiments.reacher" and "--resume" in resumed
    assert "go on with\n  python -m experiments.paper --envs navigation_2d reacher" in capsys.readouterr().err


def test_one_unit_that_diverges_keeps_none_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"--seeds=0": 3, "--seeds=1": 0, "--seeds=2": 143}
    ran = []

    def note(module: str, summary: str, presets: dict[str, Config], argv: list[str]) -> int:
        ran.append(argv[1])
        return codes[argv[1]]

    monkeypatch.setattr(paper_command, "main", note)
    flags = ("--envs", "reacher", "--presets", "paper", "--out", str(tmp_path))
    assert paper(*flags, "--seeds", "0", "1", "--until", "units") == 3 and ran == ["--seeds=0", "--seeds=1"]
    assert paper(*flags, "--seeds", "2", "0") == 143 and ran[2:] == ["--seeds=2"]
    capsys.readouterr()
    assert paper(*flags, "--seeds", "0", "--report-only") == 2 and len(ran) == 3
    assert "has no finished unit" in capsys.readouterr().err


def test_a_unit_is_finished_once_the_suite_asked_for_has_attacked_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = tmp_path / "navigation_2d" / "seed-0"
    (unit / "attack").mkdir(parents=True)
    (unit / "report.md").write_text("whole")

    def left(suite: str) -> int:
        flags = ("--envs", "navigation_2d", "--seeds", "0", "--presets", "paper", "--list")
        assert paper(*flags, "--suite", suite, "--out", str(tmp_path)) == 0
        return len(capsys.readouterr().out.splitlines())

    assert [left(suite) for suite in ("none", "standard")] == [0, 1]
    plan = {"suite": "standard", "effort": effort_of(SUITES["standard"]), "side": "both"}
    # As it was in an older version, or on one side only, it counts for nothing.
    for changed, standard in (({}, 0), ({"effort": "old"}, 1), ({"side": "query"}, 1)):
        (unit / "attack" / "results.json").write_text(json.dumps({"plan": plan | changed}))
        assert [left(suite) for suite in ("none", "standard", "claim")] == [0, standard, 1]


def test_units_that_were_not_attacked_alike_are_not_put_together(
    units: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "paper"
    shutil.copytree(units, out)
    plan = {"suite": "standard", "effort": "a", "side": "both", "units": "paper", "seed": 0, "radii": [0.2]}
    for seed, effort in ((0, "a"), (1, "b")):
        folder = out / "navigation_2d" / f"seed-{seed}" / "attack"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"plan": plan | {"effort": effort}}))
    flags = ("--envs", "navigation_2d", "--seeds", "0", "1", "--presets", "paper", "--report-only")
    assert paper(*flags, "--out", str(out)) == 2
    assert "were not attacked alike; accepted: equal suite, effort, side" in capsys.readouterr().err


def test_a_run_is_attacked_afterwards_by_another_suite(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    attacked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_run, "_attack", lambda session: attacked.append(session.config.eval.suite))
        assert run([*toy(directory), "--eval.suite=quick", "--resume"]) == 0
    before, after = read_results(finished), read_results(directory)
    assert attacked == ["quick"] and after["config"]["eval"].pop("suite") == "quick"
    assert before["config"]["eval"].pop("suite") == "none" and after == before
    assert (directory / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_another_suite_sets_the_first_one_aside(tmp_path: Path) -> None:
    folder = tmp_path / "attack"
    quick, standard, older = (
        SimpleNamespace(suite=suite, effort=effort)
        for suite, effort in (("quick", "new"), ("standard", "new"), ("quick", "old"))
    )
    set_aside(folder, quick)

    def hold(plan: SimpleNamespace) -> None:
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps(vars(plan)))

    hold(quick)
    set_aside(folder, quick)
    assert folder.exists(), "the same goes on"
    set_aside(folder, standard)
    assert not folder.exists() and (tmp_path / "attack_quick" / "plan.json").exists()
    hold(older)
    set_aside(folder, quick)
    assert not folder.exists() and (tmp_path / "attack_quick_old" / "plan.json").exists()
    hold(quick)
    with pytest.raises(
        RunError, match=r"attack holds the suite quick, and so does .*attack_quick; remove one"
    ):
        set_aside(folder, standard)


def test_of_several_processes_the_one_that_writes_draws_paths_alone(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "trajectories.npz").unlink()

    def as_one_of_two(*arguments) -> None:
        with pytest.MonkeyPatch.context() as two:
            two.setattr(jax, "process_count", lambda: 2)
            save_paths(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_run, "save_paths", as_one_of_two)
        assert run([*toy(directory), "--resume"]) == 0
    drawn, before = (read_arrays(path / "trajectories.npz") for path in (directory, finished))
    assert_trees_equal(drawn, before)


def test_an_engine_that_is_not_here_ends_a_report_in_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((SimulatorError("simulator: not here"), 2), (KeyboardInterrupt(), 130)):

        def fails(run: Path, error=error) -> list:
            raise error

        monkeypatch.setattr(paper_command, "measure_decisions", fails)
        assert paper("--runs", str(finished), "--out", str(tmp_path / "out")) == code
        assert capsys.readouterr().err.count("\n") == 1


def test_seeds_that_were_interrupted_go_on_to_the_same_bits(seeds_apart: Path, tmp_path: Path) -> None:
    lost = ("checkpoints/finetune-admrl/4", "checkpoints/attack-adgan-admrl/2", "returns")
    directory = without(seeds_apart, tmp_path / "broken", *lost)
    assert run([*toy(directory), *TWO_SEEDS, "--lanes=1", "--resume"]) == 0
    assert fingerprint(directory) == fingerprint(seeds_apart)


def test_machine_settings_make_no_other_protocol(finished: Path, tmp_path: Path) -> None:
    presets = navigation_2d.PRESETS
    values = {"simulator": "mjx", "num_threads": 3, "num_devices": 2, "lanes": 2, "task_block": 2}
    assert set(values) == set(MACHINE_SETTINGS)
    for name, preset in presets.items():
        assert label_of(preset, name, presets) == name
        assert label_of(replace(preset, seeds=(7,), **values), name, presets) == name
        suite = replace(preset, eval=replace(preset.eval, suite="claim"))
        assert label_of(suite, name, presets) == name
        for change in ({"units": "normalised"}, {"methods": ("maml",)}):
            assert label_of(replace(preset, **change), name, presets) == "custom"
        schedule = replace(preset.schedule, finetune_steps=3)
        assert label_of(replace(preset, schedule=schedule), name, presets) == "custom"
    # And with none of them, but for the engine, is a run another one.
    directory = tmp_path / "elsewhere"
    shutil.copytree(finished, directory)
    saved = fingerprint(finished)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "simulator"]
    assert run([*toy(directory), *flags, "--resume", "--until=finetune"]) == 0
    # The artefact says where it was computed last.
    found = fingerprint(directory)
    assert found.keys() == saved.keys()
    assert {name for name in found if found[name] != saved[name]} <= {"policies.npz"}
    policies, before = (dict(read_arrays(folder / "policies.npz")) for folder in (directory, finished))
    assert policies.keys() == before.keys()
    for name in policies.keys() - {"config", "sha256", "jax"}:
        # What is measured again, on other devices, is the same up to rounding.
        tolerance = 1e-5 if name.startswith("normaliser/") else 0
        np.testing.assert_allclose(policies[name], before[name], rtol=tolerance)


def test_another_engine_is_another_run(finished: Path, capsys) -> None:
    refused([*toy(finished), "--simulator=mjx", "--resume"], capsys, "another config: simulator: auto -> mjx")


def test_devices_must_divide_the_tasks(tmp_path: Path, capsys) -> None:
    argv = [*toy(tmp_path / "never"), "--num-devices=3"]
    refused(argv, capsys, "num_devices: 3 is not accepted", "a divisor of sampling.num_tasks (2)")


def tiny(preset: Config, **changes) -> Config:
    """Every stage once, on as little as possible."""
    settings = {
        "env": replace(preset.env, horizon=4),
        "sampling": SamplingConfig(num_tasks=2, num_trajectories=2),
        "defences": DefenceConfigs(adgan=AdGANTrainingConfig(warmup_steps=1)),
        "schedule": ScheduleConfig(
            pretrain_steps=1, finetune_steps=1, chunk_steps=1, checkpoint_every=1, snapshot_every=1
        ),
        "eval": EvalConfig(
            num_tasks=2,
            num_trajectories=2,
            strengths=(0.2,),
            attacker=AttackerConfig(steps=1, num_tasks=2, num_trajectories=2),
        ),
        "units": "normalised",
    }
    return replace(preset, **settings | changes)


def assert_hardened_step_traces(preset: Config, method: str, *, has_term: bool) -> None:
    """A preset's parts fit together: a step of a policy with a context can be traced."""
    parts = build_parts(tiny(preset, num_threads=1))
    setup, defence = parts.setup(method), parts.defence(method)
    traced = jax.eval_shape(
        lambda: outer_step(init_train_state(jax.random.key(0), setup, defence), setup=setup, defence=defence)
    )
    assert (defence.loss_term is not None) == has_term and "context" in traced[0].learner.meta_params


@pytest.mark.parametrize("method", ["maml", "random", "admrl"])
def test_navigation_is_hardened_without_memory_too(method: str) -> None:
    preset = navigation_2d.PRESETS["hardened_memoryless"]
    assert method in preset.methods and not preset.env.remembers_actions
    assert_hardened_step_traces(preset, method, has_term=False)


@pytest.mark.parametrize("name", sorted(ENVS.keys() - {"navigation_2d", "halfcheetah_dir", "custom"}))
def test_every_experiment_trains_under_attack(name: str) -> None:
    """What its presets are made of takes a step under attack; stages are the same for all environments."""
    module = importlib.import_module(f"experiments.{name}")
    assert set(module.PRESETS) == {"paper", "quick", "hardened"}
    assert module.PRESETS["paper"].env.name == name
    assert_hardened_step_traces(module.PRESETS["hardened"], "smooth", has_term=True)
    parts = build_parts(tiny(module.PRESETS["quick"], num_threads=1))
    setup, defence = parts.setup("admrl"), parts.defence("admrl")
    state = init_train_state(jax.random.key(0), setup, defence)
    after, metrics = jax.jit(functools.partial(outer_step, setup=setup, defence=defence))(state)
    assert metrics["train/env_steps"] > 0 and metrics["attack/size"] > 0
    assert metrics["train/skipped"] == metrics["adversary/skipped"] == metrics["train/diverged"] == 0
    for part in ("learner", "opponent"):
        before, now = jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(after, part))
        assert all(np.all(np.isfinite(x)) for x in now)
        assert any(np.any(x != y) for x, y in zip(before, now, strict=True)), part


def test_parts_beyond_the_papers_go_through_every_stage(tmp_path: Path) -> None:
    """Every other learner and defence, and attacks that remember, learn offline and learn under attack.

    No method has an opponent that learns.
    """
    others = ["sensor_delay", "critic", "actor"]
    methods = [name for name in METHODS if name not in PAPER_METHODS]
    assert {METHODS[name].learner for name in methods} >= {"promp"}
    assert {METHODS[name].defence for name in (*methods, *PAPER_METHODS)} == set(DEFENCES)
    directory = tmp_path / "others"
    argv = [*toy(directory), "--methods", *methods, "--eval.attacks", *others]
    argv += ["--eval.undefended-attacks", "--eval.curve-attacks", "adgan", "sensor_delay"]
    assert run(argv) == 0
    results = json.loads((directory / "results.json").read_text())
    rows = results["rows"]
    assert {(row["method"], row["attack"]) for row in rows} == {
        (method, attack) for method in methods for attack in ("none", *others)
    }
    protocols = {row["protocol"] for row in rows if ATTACKS[row["attack"]].make_trainer is not None}
    assert protocols == {"adaptive"}, "no attacker was trained along"
    # A curve under an attack that learns needs a method that was trained against it.
    assert {row["attack"] for row in results["curves"]} == {"none", "sensor_delay"}
    metrics = csv.DictReader((directory / "metrics.csv").read_text().splitlines())
    stages = {(row["method"], row["stage"]) for row in metrics}
    learners = {name for name, stage in stages if stage == "pretrain"}
    assert len(learners) == len({METHODS[name].learner for name in methods}), "one pre-training per learner"
    report = (directory / "report.md").read_text()
    for name in methods:
        assert METHODS[name].label in report
    for name in others:
        assert ATTACKS[name].threat.label in report


def test_a_run_at_the_ends_of_schedule_and_meta_test(tmp_path: Path) -> None:
    config = navigation_2d.PRESETS["quick"]
    counts = [f"schedule.{f.name}" for f in dataclasses.fields(ScheduleConfig)]
    counts += [
        name
        for name, value in flatten(config).items()
        if name.startswith("eval.") and isinstance(value, int) and name != "eval.seed"
    ]
    counts += ["sampling.num_tasks", "sampling.num_trajectories", "env.horizon"]
    counts += [name for name in flatten(config) if name.endswith("num_minibatches")]
    settings = dict.fromkeys(counts, 1) | {"defences.adgan.warmup_steps": 0, "eval.curve_strength": 1e6}
    settings |= {"seeds": 2**31 - 1, "eval.seed": 2**31 - 1}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    argv += ["--preset=quick", "--eval.strengths", "1e-6", "1e6", f"--run-dir={tmp_path / 'ends'}"]
    argv += ["--methods", "maml", "admrl", "--eval.attacks", "gaussian", "adgan"]
    assert run(argv) == 0
    results = json.loads((tmp_path / "ends" / "results.json").read_text())
    assert {row["strength"] for row in results["rows"]} == {0.0, 1e-6, 1e6}
    assert all(math.isfinite(row["post"]) for row in results["rows"] + results["curves"])
    assert "nan" not in (tmp_path / "ends" / "report.md").read_text().lower().split()


def test_halfcheetah_goes_through_every_stage(tmp_path: Path) -> None:
    """With a policy that tries contexts, as in the preset `hardened`.

    Every attack and method goes through the same stages on 2D navigation.
    """
    directory = tmp_path / "cheetah"
    argv = [f"--run-dir={directory}", "--preset=quick", "--methods", "smooth", "admrl"]
    argv += ["--policy.context-size=3", "--policy.context-std=1", "--learners.maml-trpo.adapts=context"]
    argv += ["--eval.attacks", "l2_noise", "adgan", "--eval.undefended-attacks"]
    quick = tiny(halfcheetah_dir.PRESETS["quick"])
    assert main("experiments.halfcheetah_dir", "", {"quick": quick}, argv) == 0
    results = json.loads((directory / "results.json").read_text())
    assert results["simulator"] == "mujoco"
    assert abs(results["floor"]) < 1, "a cheetah that does nothing goes nowhere"
    sizes = [
        r["attack_size"] for r in results["rows"] if r["attack"] == "l2_noise" and r["query"] == "attacked"
    ]
    assert sizes and all(abs(size - 0.2) < 1e-3 for size in sizes), "sizes are in normalised units"
