"""Checkpoints on disk: two are kept, damage is found and named, another run's are refused, no pickle."""

import ast
import dataclasses
import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_trees_equal

from admrl_jax.config import Config
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.runs import checkpoint
from admrl_jax.runs.checkpoint import MANIFEST, StageCheckpoints
from admrl_jax.runs.directory import RunError
from faults.damaged import DAMAGES

CONFIG = Config(env=NavigationConfig(), seeds=(0,))
ROOT = Path(__file__).parent.parent


def state(step: int) -> dict[str, Any]:
    """What a stage might save."""
    key = jax.random.key(step)
    return {"key": key, "layers": [jax.random.normal(key, (5, 3)), jnp.zeros(2)], "step": jnp.int32(step)}


def assert_states_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert_trees_equal(
        {**a, "key": jax.random.key_data(a["key"])}, {**b, "key": jax.random.key_data(b["key"])}
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that has saved steps 2, 4 and 6."""
    directory = tmp_path_factory.mktemp("checkpoints") / "finetune-maml"
    with StageCheckpoints(directory, CONFIG) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, state(step))
    return directory


@pytest.fixture
def stage(saved: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints" / saved.name))


def test_the_two_newest_are_kept(saved: Path) -> None:
    assert {path.name for path in saved.iterdir() if path.name.isdigit()} == {"4", "6"}
    with StageCheckpoints(saved, CONFIG) as checkpoints:
        assert checkpoints.latest_step == 6
        for step in (4, 6):
            assert_states_equal(checkpoints.load(step, state(0)), state(step))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda x: x.__name__)
def test_damage_is_found_and_the_checkpoint_before_serves(damage, stage: Path, saved: Path, capsys) -> None:
    names = sorted(str(path.relative_to(stage / "6")) for path in (stage / "6").rglob("*") if path.is_file())
    assert len(names) >= 8 and MANIFEST in names
    for name in names:
        shutil.rmtree(stage)
        shutil.copytree(saved, stage)
        before = (stage / "6" / name).read_bytes()
        damage(stage / "6" / name)
        if before == b"" and (stage / "6" / name).exists():
            continue  # an empty file that was emptied
        with StageCheckpoints(stage, CONFIG) as checkpoints:
            said = capsys.readouterr().err.strip()
            assert f"{stage / '6'} is damaged" in said and "\n" not in said, name
            assert name in said and said.endswith("going on from step 4")
            assert checkpoints.latest_step == 4
            assert_states_equal(checkpoints.load(4, state(0)), state(4))
    # It is kept for whoever wants to look, and its place is free again.
    assert (stage.parent / "damaged" / "finetune-maml-6").is_dir()
    with StageCheckpoints(stage, CONFIG) as checkpoints:
        checkpoints.save(6, state(6))
    with StageCheckpoints(stage, CONFIG) as checkpoints:
        assert_states_equal(checkpoints.load(6, state(0)), state(6))
    assert capsys.readouterr().err == ""


def test_when_all_are_damaged_the_stage_starts_anew(stage: Path, capsys) -> None:
    for step in ("4", "6"):
        os.remove(stage / step / MANIFEST)
    with StageCheckpoints(stage, CONFIG) as checkpoints:
        assert checkpoints.latest_step is None
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert all(line.endswith("going on from the start of the stage") for line in lines)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seeds": (1,)}, "seeds: (0,) -> (1,)"),
        ({"env": HalfCheetahDirConfig()}, "env: navigation_2d -> halfcheetah_dir"),
        ({"units": "normalised"}, "units: paper -> normalised"),
        ({"simulator": "mjx"}, "simulator: auto -> mjx"),
    ],
)
def test_another_runs_checkpoint_is_refused(changes: dict[str, Any], difference: str, stage: Path) -> None:
    with pytest.raises(RunError) as error:
        StageCheckpoints(stage, dataclasses.replace(CONFIG, **changes))
    assert str(error.value) == f"checkpoint: {stage / '6'} belongs to another config: {difference}"
    assert (stage / "6").is_dir(), "nothing is moved"


def test_what_changes_no_number_is_not_another_run(stage: Path) -> None:
    schedule = dataclasses.replace(CONFIG.schedule, max_bad_steps=3)
    changes: list[dict[str, Any]] = [{"schedule": schedule}]
    changes += [{name: 2} for name in ("num_threads", "num_devices", "lanes", "task_block")]
    for change in changes:
        with StageCheckpoints(stage, dataclasses.replace(CONFIG, **change)) as checkpoints:
            assert checkpoints.latest_step == 6, change


def test_another_schema_is_refused(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = checkpoint.SCHEMA
    monkeypatch.setattr(checkpoint, "SCHEMA", old + 1)
    with pytest.raises(RunError, match=f"another version of the code: schema {old} -> {old + 1}"):
        StageCheckpoints(stage, CONFIG)


def test_settings_of_another_version_are_refused_by_name(stage: Path) -> None:
    content = json.loads((stage / "6" / MANIFEST).read_text())
    del content["sha256"], content["config"]["units"]
    digest = checkpoint._digest(content)
    (stage / "6" / MANIFEST).write_text(json.dumps({"sha256": digest, **content}))
    with pytest.raises(RunError, match="another config: config: unknown or missing settings: units"):
        StageCheckpoints(stage, CONFIG)


def test_a_full_disk_is_an_oserror_and_harms_no_checkpoint(stage: Path, monkeypatch) -> None:
    with pytest.raises(OSError) as error, StageCheckpoints(stage, CONFIG) as checkpoints:

        def full(*_: object) -> None:
            # As the array library says it, seen on a full tmpfs.
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

        monkeypatch.setattr(checkpoints._checkpointer, "save", full)
        checkpoints.save(8, state(8))
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(stage / "8")
    with StageCheckpoints(stage, CONFIG) as checkpoints:
        assert checkpoints.latest_step == 6


def test_other_errors_of_saving_are_not_taken_for_a_full_disk(stage: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="not an array"), StageCheckpoints(stage, CONFIG) as checkpoints:

        def broken(*_: object) -> None:
            raise ValueError("not an array")

        monkeypatch.setattr(checkpoints._checkpointer, "save", broken)
        checkpoints.save(8, state(8))


ODD_NAMES = (
    "hidden_sizes=[64,64],seed=0",
    "a[b/c",
    "a\\b",
    "**",
    "st*r",
    "gs:",
    "runs gs:/x",
    "é ü",
    "new\nline",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_of_a_folder_will_do(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "checkpoints" / "finetune-maml"
    with StageCheckpoints(folder, CONFIG) as checkpoints:
        checkpoints.save(2, state(2))
    assert (folder / "2" / MANIFEST).is_file()
    with StageCheckpoints(folder, CONFIG) as checkpoints:
        assert checkpoints.latest_step == 2
        assert_states_equal(checkpoints.load(2, state(0)), state(2))


def test_what_cannot_be_read_back_is_no_checkpoint(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StageCheckpoints(stage, CONFIG) as checkpoints:
        for step, found, reason in (
            (8, lambda *args: state(7), "does not hold what was written"),
            (9, lambda *args: {}["gone"], "cannot be read back: 'gone'"),
        ):
            monkeypatch.setattr(checkpoints, "load", found)
            with pytest.raises(RunError, match=f"^checkpoint: .*/{step} {reason}$"):
                checkpoints.save(step, state(step))
            monkeypatch.undo()
            assert not (stage / str(step) / MANIFEST).exists()


def test_nothing_is_pickled(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    with StageCheckpoints(stage, CONFIG) as checkpoints:
        checkpoints.save(8, state(8))
        assert_states_equal(checkpoints.load(8, state(0)), state(8))
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("experiments/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib"}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_checkpoints_do_not_tell_where_they_were_made(saved: Path) -> None:
    for path in saved.rglob("*"):
        assert not path.is_file() or str(saved).encode() not in path.read_bytes(), path
