"""Ablations: every variant is a run that its flags describe, what is not known is refused, and the report."""

from pathlib import Path

import numpy as np
import pytest

from admrl_jax.commands import ablations
from admrl_jax.commands.ablations import ablations_main, flags_of
from admrl_jax.commands.arguments import parse
from admrl_jax.config import flatten
from admrl_jax.envs.registry import make_env
from admrl_jax.report.ablations import Variant, ablations_text, write_ablations_report
from admrl_jax.report.attacked import Attacked
from admrl_jax.report.results import read_results
from admrl_jax.stats.checks import Check
from admrl_jax.stats.intervals import t_interval
from experiments.ablations import OBS_SIZES, PRESETS, ablations_of

RESULTS = Path(__file__).parent.parent / "results"


@pytest.mark.parametrize("env", PRESETS)
def test_every_variant_changes_what_it_says_and_nothing_else(env: str) -> None:
    assert OBS_SIZES[env] == make_env(env, simulator="mujoco").obs_size
    for preset, config in PRESETS[env].items():
        first, *others = ablations_of(env, config).values()
        assert not first.settings and first.pretrains
        for ablation in others:
            flags = [f"--preset={preset}", *flags_of(ablation.settings)]
            found = flatten(parse("", "", PRESETS[env], flags).config)
            changed = {name for name, value in flatten(config).items() if found[name] != value}
            assert changed == set(ablation.settings)
            # Only what changes the pre-training may not go on from the first one's.
            assert ablation.pretrains == any("pretrain" in name for name in changed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "env: nothing given; accepted: navigation_2d, halfcheetah_dir"),
        (["--env", "pong"], "env: 'pong' is not accepted; accepted: navigation_2d, halfcheetah_dir"),
        (
            ["--env", "navigation_2d", "--only", "gan"],
            "only: 'gan' is not known; accepted: clean, paper, no_gan",
        ),
        (["--env", "navigation_2d", "--radii", "0"], "radii: "),
        (
            ["--env", "navigation_2d", "--suite", "all"],
            "suite: 'all' is not accepted; accepted: one of quick, ",
        ),
    ],
)
def test_what_is_not_known_is_refused_in_a_line(flags: list[str], message: str, capsys) -> None:
    assert ablations_main("experiments.ablations", "", PRESETS, ablations_of, flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1, error


def test_variants_go_on_from_the_first_and_what_is_there_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    runs: list[list[str]] = []
    codes = iter((0, 143))
    monkeypatch.setattr(ablations, "main", lambda *words: runs.append(words[-1]) or 0)
    monkeypatch.setattr(ablations, "attack_main", lambda *words: next(codes))
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "config.json").touch()
    flags = ["--env", "navigation_2d", "--only", "no_hinge", "equal_noise", "--out", str(tmp_path)]
    assert ablations_main("experiments.ablations", "", PRESETS, ablations_of, flags) == 143
    assert capsys.readouterr().err.endswith(f"python -m experiments.ablations {' '.join(flags)}\n")
    # Stopped in the attack on the second; the third was not begun.
    first, second = runs
    # The run itself refuses other settings than it was begun with.
    assert "--resume" in first and not any(word.startswith("--pretrained") for word in first)
    assert "--resume" not in second and f"--pretrained={tmp_path / 'clean'}" in second
    assert "--defences.adgan.adversary.hinge-weight=0.0" in second


def variants() -> list[Variant]:
    """A committed attack of three seeds, as if one of its methods were a change of the other."""
    attacked = Attacked(read_results(RESULTS / "navigation_2d_hardened" / "attack"))
    return [Variant("clean", "nothing", "maml", attacked), Variant("smooth", "the loss", "smooth", attacked)]


def test_the_report_has_the_numbers_of_the_attacks_and_pairs_seeds(tmp_path: Path) -> None:
    first, second = variants()
    path = write_ablations_report(tmp_path, [first, second], "paper")
    assert path.read_text() == ablations_text([first, second], "paper")
    assert (tmp_path / "ablations.png").stat().st_size > 1000
    text = path.read_text()
    assert "say nothing" not in text
    less = np.array(second.returns(0.5)) - np.array(first.returns(0.5))
    low, high = t_interval(less)
    (row,) = (line for line in text.splitlines() if line.startswith("| smooth | ") and "the loss" not in line)
    assert row.endswith(f"| {less.mean():.2f} [{low:.1f}, {high:.1f}] |")
    (row,) = (line for line in text.splitlines() if line.startswith("| smooth | the loss"))
    assert f"| {np.mean(second.returns(0)):.2f} [" in row and row.endswith("| hold |")


def test_a_failed_check_is_said() -> None:
    class Doubtful(Attacked):
        def checks(self) -> list[Check]:
            """Two more, which fail."""
            one = [check for check in super().checks() if check.holds]
            mine = [check._replace(holds=False) for check in one if check.victim == "MAML, smooth, seed 1"]
            return [*one, *mine[:2]]

    first, second = variants()
    # The other method's failure is not its own.
    assert first.failed > 0 and second.failed == 0
    doubtful = second._replace(attacked=Doubtful(second.attacked.results))
    assert doubtful.failed == 2
    assert "| **2 failed** |" in (text := ablations_text([first, doubtful], "quick"))
    assert "say nothing about it" in text
