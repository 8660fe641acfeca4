"""Environments of a user's own go through the protocol: `experiments.train --env module:function`."""

import json
from pathlib import Path

import pytest

from experiments import train

TINY = [
    "--preset",
    "quick",
    "--seeds",
    "0",
    "--policy.hidden-sizes",
    "4",
    "--num-devices",
    "1",
    "--sampling.num-tasks",
    "2",
    "--sampling.num-trajectories",
    "2",
    "--schedule.pretrain-steps",
    "1",
    "--schedule.finetune-steps",
    "1",
    "--schedule.snapshot-every",
    "1",
    "--defences.adgan.warmup-steps",
    "1",
    "--eval.undefended-attacks",
    "--eval.curve-attacks",
    "--eval.strengths",
    "0.2",
    "--eval.num-tasks",
    "2",
    "--eval.num-trajectories",
    "2",
    "--eval.attacker.steps",
    "1",
    "--eval.attacker.num-tasks",
    "2",
    "--eval.attacker.num-trajectories",
    "4",
]


CLEAN = ["--methods", "maml", "--eval.attacks", "l2_noise"]
WHOLE = ["--methods", "maml", "admrl", "--eval.attacks", "adgan"]


@pytest.mark.parametrize(
    ("factory", "parts"), [("reach", WHOLE), ("brax_pendulum", CLEAN), ("slider", CLEAN)]
)
def test_an_environment_of_ones_own_runs_the_protocol(factory: str, parts: list[str], tmp_path: Path):
    argv = ["--env", f"tests.own_envs:{factory}", *TINY, *parts, "--run-dir", str(tmp_path / "run")]
    assert train.run(argv) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["env"] == {"name": "custom", "factory": f"tests.own_envs:{factory}"}
    assert {row["method"] for row in results["rows"]} == set(results["config"]["methods"])
    assert (tmp_path / "run" / "policies.npz").exists() and (tmp_path / "run" / "report.md").exists()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("nope", "accepted: navigation_2d"),
        ("no_such_module:make", "cannot be imported"),
        ("tests.own_envs:nothing", "cannot be imported"),
        ("tests.own_envs:not_an_env", "int has no obs_size, action_size"),
        ("a b:c", "module:function"),
    ],
)
def test_what_is_no_environment_is_one_line(
    env: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train.run([f"--env={env}", "--run-dir", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: env: ") and said in lines[0]
    assert not (tmp_path / "run").exists()
