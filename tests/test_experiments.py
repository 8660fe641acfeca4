"""Entrypoints at toy size: a whole run, kill and resume to the same bits, clear refusals."""

import csv
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
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from admrl_jax import simulators
from admrl_jax.config import (
    METHODS,
    Config,
    EvalConfig,
    MAMLConfig,
    ScheduleConfig,
    TrainConfig,
    flatten,
    from_dict,
)
from admrl_jax.env_config import ENV_CONFIGS
from admrl_jax.envs import Navigation2D
from admrl_jax.run_log import Progress
from benchmarks.protocol import count_cells
from experiments import halfcheetah_dir, navigation_2d
from experiments.__main__ import run as run_by_name
from experiments.command_line import main
from experiments.context import Context, Interrupted
from experiments.eval_stages import EvalStages
from tests.faults.damaged import truncate
from tests.faults.toy_runs import TOY, fingerprint

pytestmark = pytest.mark.usefixtures("compilation_cache")
ROOT = Path(__file__).parent.parent


def run(argv: list[str], module=navigation_2d) -> int:
    """One experiment inside this process."""
    return main(f"experiments.{module.__name__.rsplit('.')[-1]}", "", module.PRESETS, argv)


def toy(run_dir: Path) -> list[str]:
    return [*TOY, "--eval.strengths", "0.1", "0.2", f"--run-dir={run_dir}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, compilation_cache: None) -> Path:
    """An uninterrupted toy run of 2D navigation."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert run(toy(directory)) == 0
    return directory


def test_run_leaves_every_result(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    rows = results["rows"]
    # clean + (gaussian, l2_noise, fgsm, adgan x 2 protocols) x 2 strengths x 3 cells; maml also without GAN.
    per_method = 1 + 5 * 2 * 3
    assert len(rows) == 4 * per_method + 2 * 3
    assert {row["method"] for row in rows} == set(METHODS)
    floor = results["floor"]
    assert -8 < floor < 0
    cells = {(r["method"], r["attack"], r["strength"], r["protocol"], r["support"], r["query"]) for r in rows}
    assert len(cells) == len(rows), "one row per cell"
    curves = results["curves"]
    assert {c["step"] for c in curves if c["method"] == "pretrain"} == {0, 2, 4, 6}
    assert {c["step"] for c in curves if c["method"] == "admrl"} == {8, 10}
    assert count_cells(from_dict(results["config"])) == len(rows) + len(curves), (
        "the benchmark counts them all"
    )
    lines = (finished / "metrics.csv").read_text().splitlines()
    # pretrain 6, warmup 2, four arms of 4, five attackers of 2 updates at 2 strengths.
    assert len(lines) == 1 + 6 + 2 + 4 * 4 + 5 * 2 * 2
    for name in ("report.md", "config.json", "trajectories.npz", "figures/strength.png"):
        assert (finished / name).stat().st_size > 0


def test_pretraining_is_shared_and_arms_differ(finished: Path) -> None:
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

    # SIGTERM, as from a job manager, and SIGINT in the middle of an arm: saved, exit code 143 or 130, the
    # command that goes on.
    arguments = [*argv, "--resume"]
    for number, arm, code in ((signal.SIGTERM, "maml", 143), (signal.SIGINT, "random", 130)):
        process = subprocess_run(arguments)
        wait_for((directory / "checkpoints" / f"finetune-{arm}").exists, process)
        process.send_signal(number)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == code, errors
        command = errors.strip().splitlines()[-1].strip()
        assert command.startswith("python -m experiments.navigation_2d") and command.endswith("--resume")
        arguments = shlex.split(command)[3:]

    assert run(arguments) == 0
    for name in ("results.json", "metrics.csv", "config.json", "report.md", "trajectories.npz"):
        assert (directory / name).read_bytes() == (finished / name).read_bytes(), name


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
        ("--train.maml.num-tasks=0", ("train.maml.num_tasks", "0", "from 1 to 10000")),
        ("--units=metres", ("units", "metres", "normalised")),
        ("--train.adversary.gan-loss=wgan", ("gan_loss", "wgan", "lsgan")),
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
    assert run_by_name(["walker"]) == 2
    assert "'walker'" in capsys.readouterr().err
    assert run_by_name([]) == 2
    assert "navigation_2d" in capsys.readouterr().err


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
    other = [*toy(finished), "--resume", "--train.maml.inner-lr=0.2"]
    refused(other, capsys, "another config", "train.maml.inner_lr: 0.1 -> 0.2")
    assert (finished / "results.json").read_bytes() == saved
    (tmp_path / "notes.txt").write_text("mine")
    refused(["--preset=quick", f"--run-dir={tmp_path}"], capsys, "not empty")
    assert os.listdir(tmp_path) == ["notes.txt"]
    refused(["--preset=quick", "--run-dir=/proc/nothing/here"], capsys, "cannot be written")


def test_second_run_in_one_directory_is_refused(finished: Path, capsys) -> None:
    from admrl_jax.run_log import open_run

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
    stages = EvalStages(Context(navigation_2d.PRESETS["quick"], tmp_path))

    def interrupted(*_) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(stages, "evaluate", interrupted)
    victim = SimpleNamespace(policy_params=())
    for stage in (
        lambda: stages._test("maml", victim, "none", "", [()]),
        lambda: stages._curve("maml", victim, (), [1], "none", ()),
    ):
        closed.clear()
        with pytest.raises(Interrupted):
            stage()
        assert len(closed) == 1


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
    assert last.startswith(
        "error: pretrain: pretrain: step 3, seed 0: numbers were not finite for 3 outer steps"
    )
    checkpoint = tmp_path / "bad" / "checkpoints" / "pretrain-pretrain" / "2"
    assert last.endswith(f"last good checkpoint: {checkpoint}") and checkpoint.is_dir()
    rows = list(csv.DictReader((tmp_path / "bad" / "metrics.csv").read_text().splitlines()))
    # 2 tasks x 4 episodes, before and after adaptation.
    assert [row["train/diverged"] for row in rows] == ["16.0"] * 3
    # Once the environment is mended the run goes on, also with another limit.
    monkeypatch.setattr(Navigation2D, "step", step)
    assert run([*toy(tmp_path / "bad"), "--until=pretrain", "--resume"]) == 0


def test_help_lists_every_setting(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in flatten(navigation_2d.PRESETS["paper"]):
        assert f"--{name.replace('_', '-')}" in shown, name


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
    assert {row["method"] for row in rows} == {"pretrain", *METHODS}


def rows_by_key(directory: Path) -> dict[tuple[str, ...], dict[str, str]]:
    rows = csv.DictReader((directory / "metrics.csv").read_text().splitlines())
    return {(row["seed"], row["method"], row["stage"], row["step"]): row for row in rows}


def test_arms_train_side_by_side_in_one_program(finished: Path, tmp_path: Path, capsys) -> None:
    directory = tmp_path / "together"
    argv = [*toy(directory), "--lanes=4"]
    shutil.copytree(
        finished / "checkpoints" / "pretrain-pretrain", directory / "checkpoints/pretrain-pretrain"
    )
    shutil.copytree(finished / "checkpoints" / "warmup-admrl", directory / "checkpoints/warmup-admrl")
    shutil.copy(finished / "config.json", directory)
    assert run([*argv, "--resume"]) == 0
    shown = capsys.readouterr().err
    assert "4 arms: finetune" in shown, "one seed of four methods is four lanes"
    assert "2 arms: adaptive" in shown, "one seed at two strengths is two lanes"
    rows, alone = rows_by_key(directory), rows_by_key(finished)
    assert rows.keys() == {key for key in alone if key[2] not in ("pretrain", "warmup")}
    for key, row in rows.items():
        # Each has what it trains, and no more.
        assert {name for name in row if row[name]} == {name for name in row if alone[key][name]}, key
        if key[2:] == ("finetune", "7"):
            # Each is under its own attack: in the first step only roundings differ.
            for name in ("train/pre_return", "train/post_return", "train/env_steps", "attack/size"):
                found, expected = float(row[name]), float(alone[key][name])
                assert math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-6), (key, name)
    # Killed between the checkpoints of two arms: all go on from the last step that they share.
    prints = fingerprint(directory)
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    shutil.rmtree(broken / "checkpoints" / "finetune-admrl" / "4")
    assert run([*argv[:-2], f"--run-dir={broken}", "--lanes=4", "--resume", "--until=finetune"]) == 0
    assert fingerprint(broken) == prints


def test_arms_that_come_from_different_places_train_one_by_one(
    finished: Path, tmp_path: Path, capsys
) -> None:
    directory = tmp_path / "uneven"
    shutil.copytree(finished, directory)
    for name in ("random", "admrl"):
        shutil.rmtree(directory / "checkpoints" / f"finetune-{name}")
    assert run([*toy(directory), "--lanes=4", "--resume", "--until=finetune"]) == 0
    assert "4 arms" not in capsys.readouterr().err
    assert fingerprint(directory) == fingerprint(finished)


def test_devices_must_divide_the_tasks(tmp_path: Path, capsys) -> None:
    argv = [*toy(tmp_path / "never"), "--num-devices=3"]
    refused(argv, capsys, "num_devices: 3 is not accepted", "a divisor of train.maml.num_tasks (2)")


def tiny(preset: Config) -> Config:
    """Every stage once, on as little as possible."""
    return replace(
        preset,
        env=replace(preset.env, horizon=4),
        train=TrainConfig(maml=MAMLConfig(num_tasks=2, num_trajectories=2)),
        schedule=ScheduleConfig(
            pretrain_steps=1,
            warmup_steps=1,
            finetune_steps=1,
            chunk_steps=1,
            checkpoint_every=1,
            snapshot_every=1,
        ),
        eval=EvalConfig(
            num_tasks=2,
            num_trajectories=2,
            strengths=(0.2,),
            adaptive_steps=1,
            adaptive_tasks=2,
            adaptive_trajectories=2,
        ),
        units="normalised",
    )


@pytest.mark.parametrize("name", sorted(ENV_CONFIGS.keys() - {"navigation_2d", "halfcheetah_dir"}))
def test_every_experiment_trains_under_attack(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"experiments.{name}")
    assert set(module.PRESETS) == {"paper", "quick"}
    assert module.PRESETS["paper"].env.name == name
    argv = [f"--run-dir={tmp_path / name}", "--preset=quick", "--until=finetune"]
    assert main(f"experiments.{name}", "", {"quick": tiny(module.PRESETS["quick"])}, argv) == 0
    rows = list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines()))
    assert {row["method"] for row in rows if row["stage"] == "finetune"} == set(METHODS)
    assert all(math.isfinite(float(row["train/post_return"])) for row in rows)
    assert not (tmp_path / name / "report.md").exists()


def test_a_run_at_the_ends_of_schedule_and_meta_test(tmp_path: Path) -> None:
    counts = [f"schedule.{f.name}" for f in fields(ScheduleConfig)] + [
        f"eval.{f.name}" for f in fields(EvalConfig) if f.name not in ("strengths", "curve_strength", "seed")
    ]
    counts += [f"train.maml.{name}" for name in ("num_tasks", "num_trajectories")]
    counts += ["train.adversary.num_minibatches", "env.horizon"]
    settings = dict.fromkeys(counts, 1) | {"schedule.warmup_steps": 0, "eval.curve_strength": 1e6}
    settings |= {"seeds": 2**31 - 1, "eval.seed": 2**31 - 1}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    argv += ["--preset=quick", "--eval.strengths", "1e-6", "1e6", f"--run-dir={tmp_path / 'ends'}"]
    assert run(argv) == 0
    results = json.loads((tmp_path / "ends" / "results.json").read_text())
    assert {row["strength"] for row in results["rows"]} == {0.0, 1e-6, 1e6}
    assert all(math.isfinite(row["post"]) for row in results["rows"] + results["curves"])
    assert "nan" not in (tmp_path / "ends" / "report.md").read_text().lower().split()


def test_until_refuses_unknown_stages(tmp_path: Path, capsys) -> None:
    refused(
        ["--preset=quick", "--until=lunch", f"--run-dir={tmp_path / 'never'}"],
        capsys,
        "until: 'lunch' is not known; accepted: pretrain, finetune, report",
    )
    assert not (tmp_path / "never").exists()


def test_halfcheetah_goes_through_every_stage(tmp_path: Path) -> None:
    directory = tmp_path / "cheetah"
    argv = [f"--run-dir={directory}", "--preset=quick"]
    quick = tiny(halfcheetah_dir.PRESETS["quick"])
    assert main("experiments.halfcheetah_dir", "", {"quick": quick}, argv) == 0
    results = json.loads((directory / "results.json").read_text())
    assert results["simulator"] == "mujoco"
    assert abs(results["floor"]) < 1, "a cheetah that does nothing goes nowhere"
    sizes = [
        r["attack_size"] for r in results["rows"] if r["attack"] == "l2_noise" and r["query"] == "attacked"
    ]
    assert sizes and all(abs(size - 0.2) < 1e-3 for size in sizes), "sizes are in normalised units"
