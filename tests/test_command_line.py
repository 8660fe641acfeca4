"""Wrong command lines: one line that names the flag and what is accepted, exit code 2, nothing touched."""

import contextlib
import dataclasses
import io
import re
import shlex
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admrl_jax.commands import experiment
from admrl_jax.commands.arguments import Arguments, parse
from admrl_jax.commands.experiment import main
from admrl_jax.config import Config, flatten
from admrl_jax.core.settings import fields_of
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.runs.signals import Interrupted
from experiments import navigation_2d

PRESETS = {"paper": Config(env=HalfCheetahDirConfig())}

REFUSED = {
    "--sampling.num-tasks=abc": "sampling.num_tasks: 'abc' is not accepted; accepted: "
    "a whole number from 1 to 10000",
    "--sampling.num_tasks 2.5": "sampling.num_tasks: '2.5' is not accepted; accepted: a whole number ",
    "--sampling.num-tasks=0": "sampling.num_tasks: 0 is not accepted; accepted: a whole number from 1 to 1",
    "--env.horizon 3 4": "env.horizon: '3 4' is not accepted; accepted: a whole number from 1 to 1000000",
    "--env.horizon=": "env.horizon: '' is not accepted; accepted: a whole number from 1 to 1000000",
    "--env.action-scale --resume": "env.action_scale: no value is not accepted; accepted: a number from ",
    "--env.action-scale -1 --env.horizon=x": "env.horizon: 'x' is not accepted; accepted: a whole number ",
    "--env.torso-position=maybe": "env.torso_position: 'maybe' is not accepted; accepted: "
    "--env.torso-position or --env.no-torso-position, without a value",
    "--env.no-torso-position maybe": "env.torso_position: 'maybe' is not accepted; accepted: --env.torso-pos",
    "--no-resume=1": "resume: '1' is not accepted; accepted: --resume or --no-resume, without a value",
    "--seeds 1 b": "seeds: '1 b' is not accepted; accepted: one or more different whole numbers from 0 ",
    "--seeds": "seeds: () is not accepted; accepted: one or more different whole numbers from 0 ",
    "--eval.strengths 0.2 -0.5": "eval.strengths: (0.2, -0.5) is not accepted; accepted: one or more ",
    "--methods maml lunch": "methods: ('maml', 'lunch') is not accepted; accepted: one or more different "
    "names of methods: maml, random, fgsm, admrl, ",
    "--eval.attacks none": "eval.attacks: ('none',) is not accepted; accepted: one or more different names "
    "of attacks: gaussian, ",
    "--attacks.adgan.gan-loss=wgan": "attacks.adgan.gan_loss: 'wgan' is not accepted; accepted: one of ls",
    "--process-id=first": "process_id: 'first' is not accepted; accepted: a whole number from 0 to ",
    "--num-processes=0": "num_processes: 0 is not accepted; accepted: a whole number from 1 to ",
    "--distributed=lunch": "distributed: 'lunch' is not accepted; accepted: one of off, auto, slurm",
    "--until": "until: no value is not accepted; accepted: one of pretrain, finetune, report",
    "--until=lunch": "until: 'lunch' is not accepted; accepted: one of pretrain, finetune, report",
    "--run-dir": "run_dir: no value is not accepted; accepted: one directory",
    "--compilation-cache": "compilation_cache: no value is not accepted; accepted: one directory, off or ",
    "--preset": "preset: '' is not known; accepted: paper",
    "--preset=fast": "preset: 'fast' is not known; accepted: paper",
    "--num-devices=-1": "num_devices: -1 is not accepted; accepted: a whole number from 0 to 10000",
    "--sampling.num-task=3": "command line: '--sampling.num-task' is not known; accepted: what --help "
    "lists, such as --sampling.num-tasks, ",
    "--num-tasks 3": "command line: '--num-tasks' is not known; accepted: what --help lists, such as "
    "--eval.num-tasks, ",
    "--config": "command line: '--config' is not known; accepted: what --help lists, such as --",
    "--env.name=x": "command line: '--env.name' is not known; accepted: what --help lists, such as --env.",
    "-x": "command line: '-x' is not known; accepted: what --help lists, such as --",
    "walk": "command line: 'walk' is not known; accepted: what --help lists, such as --",
}
"""Command lines and the beginnings of what is said of them."""


@pytest.mark.parametrize(("line", "message"), REFUSED.items(), ids=REFUSED)
def test_refused_command_lines_end_in_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main("experiments.any", "", PRESETS, line.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}") and err.count("\n") == 1 and not out, err
    assert not list(tmp_path.iterdir())


def test_every_option_says_what_it_accepts() -> None:
    for name, _, accepts in fields_of(Arguments(config=PRESETS["paper"])):
        assert accepts is not None and len(accepts.words) > 5, name


def test_accepted_command_lines_change_what_they_name() -> None:
    argv = ["--seeds", "4", "7", "--env.no-torso-position", "--learners.maml_trpo.inner-lr=0.2"]
    argv += ["--methods", "smooth", "--eval.curve-attacks", "--resume", "--run-dir=here"]
    found = parse("", "", PRESETS, argv)
    before, after = flatten(PRESETS["paper"]), flatten(found.config)
    assert {name: value for name, value in after.items() if before[name] != value} == {
        "seeds": (4, 7),
        "env.torso_position": False,
        "learners.maml_trpo.inner_lr": 0.2,
        "methods": ("smooth",),
        "eval.curve_attacks": (),
    }
    assert found == dataclasses.replace(
        Arguments(config=found.config), resume=True, run_dir=Path("here"), preset="paper"
    )


def test_a_preset_is_the_start_of_the_other_flags() -> None:
    found = parse("", "", navigation_2d.PRESETS, ["--seeds=5", "--preset", "quick"])
    assert found.config == dataclasses.replace(navigation_2d.PRESETS["quick"], seeds=(5,))


def test_help_lists_every_setting(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main("experiments.navigation_2d", "What it is.", navigation_2d.PRESETS, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "What it is." in shown and "python -m experiments.navigation_2d" in shown
    for name in flatten(navigation_2d.PRESETS["paper"]):
        assert f"--{name.replace('_', '-')}" in shown, name


NAMES = sorted(flatten(PRESETS["paper"]))
WORDS = st.text(max_size=8) | st.sampled_from(["nan", "-1", "1e-300", "True", "None", "--seeds", "a\nb"])


@given(st.sampled_from(NAMES), WORDS)
@settings(max_examples=20, deadline=None)
def test_any_word_on_the_command_line_is_read_or_refused_in_one_line(name: str, word: str) -> None:
    error = io.StringIO()
    argv = [f"--{name.replace('_', '-')}={word}", "--until=nothing"]
    with contextlib.redirect_stderr(error):
        assert main("experiments.any", "", PRESETS, argv) == 2
    assert re.match(r"error: [a-z_.]+: .*accepted: .*\n\Z", error.getvalue()), error.getvalue()


@pytest.mark.parametrize("module", ["experiments.navigation_2d", "experiments.train --env navigation_2d"])
def test_a_stopped_run_says_how_to_go_on(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(experiment, "run_protocol", stopped)
    argv = [
        "--preset=quick",
        "--seeds",
        "0",
        "1",
        "--compilation-cache=off",
        f"--run-dir={tmp_path / 'a run'}",
    ]
    assert main(module, "", navigation_2d.PRESETS, argv) == 130
    *said, command = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"saved in {tmp_path / 'a run'}; go on with"
    assert shlex.split(command) == ["python", "-m", *module.split(), *argv, "--resume"]
    # Once more, it is the same command.
    assert main(module, "", navigation_2d.PRESETS, shlex.split(command)[len(module.split()) + 2 :]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == command
