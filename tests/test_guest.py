"""A quiet guest: the surroundings do not leak in, and are left as they were found."""

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import matplotlib
import mujoco
import pytest

from admrl_jax.commands import process
from admrl_jax.commands.experiment import main
from admrl_jax.config import Config
from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.half_cheetah import HalfCheetahDir
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.envs.registry import ENVS, make_env
from admrl_jax.report.figures import new_figure, png
from admrl_jax.report.style import own_style
from admrl_jax.runs import devices, directory
from admrl_jax.runs.checkpoint import StageCheckpoints
from admrl_jax.runs.directory import RunError, open_run
from admrl_jax.runs.signals import StopRequest
from admrl_jax.simulators import Model, SimulatorError, make_simulator
from admrl_jax.simulators.models import load_model
from experiments import navigation_2d

CONFIG = Config(env=NavigationConfig(), seeds=(0,))


def picture() -> bytes:
    """A figure as reports draw them."""
    with own_style():
        figure, axes = new_figure(1, 1, (3, 2))
        axes[0].plot([0, 1], [1, 0], label="a line")
        axes[0].legend()
        return png(figure)


def test_figures_do_not_follow_the_users_style() -> None:
    plain = picture()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "lines.linewidth": 9}):
        assert picture() == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_a_notebooks_backend_does_not_stop_a_report() -> None:
    code = (
        "from admrl_jax.report.style import own_style\n"
        "with own_style():\n    from admrl_jax.report import figures\n"
        "import os; print(os.environ['MPLBACKEND'])"
    )
    backend = "module://matplotlib_inline.backend_inline"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True
    )
    assert done.stdout.strip() == backend, done.stderr


def test_mujocos_warnings_go_where_they_went(tmp_path: Path) -> None:
    heard: list[str] = []
    mujoco.set_mju_user_warning(heard.append)
    try:
        load_model(HalfCheetahDir.model)
        assert mujoco.get_mju_user_warning() is not None
    finally:
        mujoco.set_mju_user_warning(None)
    load_model(HalfCheetahDir.model)
    assert mujoco.get_mju_user_warning() is None


def test_orbax_is_silent_only_while_it_works(tmp_path: Path) -> None:
    log = logging.getLogger("absl")
    log.setLevel(logging.INFO)
    with StageCheckpoints(tmp_path / "stage", CONFIG):
        assert log.level == logging.CRITICAL
    assert log.level == logging.INFO


def test_a_command_leaves_jax_and_signals_as_they_were(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "--xla_cpu_enable_fast_math=false"))
    names = process.CHANGED
    before = [jax.config.values[name] for name in names], dict(os.environ)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    argv = ["--preset=quick", f"--compilation-cache={tmp_path}", "--num-devices=7", "--run-dir=/proc/no"]
    assert main("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 2
    assert capsys.readouterr().err.startswith("error: num_devices: 7 is not accepted")
    assert ([jax.config.values[name] for name in names], dict(os.environ)) == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


SMALL = (
    *("--preset=quick", "--seeds=0", "--env.horizon=4", "--sampling.num-tasks=2", "--num-devices=1"),
    *("--sampling.num-trajectories=2", "--schedule.pretrain-steps=1", "--schedule.chunk-steps=1"),
    *("--schedule.finetune-steps=1", "--schedule.checkpoint-every=1", "--schedule.snapshot-every=1"),
    *("--defences.adgan.warmup-steps=1", "--methods=admrl"),
)


@pytest.mark.parametrize(
    ("setting", "until"), [("jax_debug_nans", "finetune"), ("jax_disable_jit", "pretrain")]
)
def test_a_healthy_run_goes_through_where_somebody_looks_for_errors(
    setting: str, until: str, tmp_path: Path
) -> None:
    before = jax.config.values[setting]
    jax.config.update(setting, True)
    try:
        argv = [*SMALL, f"--until={until}", f"--run-dir={tmp_path / 'run'}"]
        assert main("experiments.navigation_2d", "", navigation_2d.PRESETS, argv) == 0
    finally:
        jax.config.update(setting, before)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") > 1


def test_stop_requests_in_a_thread_and_in_the_main_one() -> None:
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
    before = signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EAGAIN, "is in use by another process"), (errno.EIO, "cannot be locked (Input/output error)")],
)
def test_every_error_of_a_lock_says_what_it_is(number: int, words: str, tmp_path: Path, monkeypatch) -> None:
    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory, "_lock", fail)
    with pytest.raises(RunError) as refusal:
        open_run(tmp_path / "run", CONFIG, resume=False)
    assert str(refusal.value) == f"run-dir: {tmp_path / 'run'} {words}"


def test_file_systems_without_locks_are_no_obstacle(tmp_path: Path, monkeypatch, capsys) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(directory, "_lock", fail)
    os.close(open_run(tmp_path / "run", CONFIG, resume=False))
    assert "without locks" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").is_file()


def test_devices_that_are_not_there_take_one_line(monkeypatch) -> None:
    for error, words in (
        (AssertionError(), "no plugin"),
        (RuntimeError("Unable to\ninitialize"), "Unable to in"),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(devices.jax, "devices", fail)
        with pytest.raises(ConfigError, match=rf"^JAX_PLATFORMS: .* is not accepted here: .*{words}"):
            devices.start_devices()


def test_without_a_home_there_is_no_cache(monkeypatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with process.settings_as_found():
        jax.config.update("jax_compilation_cache_dir", None)
        process.keep_compiled_programs("auto")
        assert jax.config.values["jax_enable_compilation_cache"] is False


@pytest.mark.parametrize("name", sorted(set(ENVS) - {"custom"}))
def test_environments_are_pickled(name: str) -> None:
    env = make_env(name, simulator="mujoco")
    again = pickle.loads(pickle.dumps(env))
    assert again == env and type(again) is type(env)
    if hasattr(env, "simulator"):
        assert again.simulator is env.simulator


def test_a_pickled_engine_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "body.xml"
    body = "<mujoco><worldbody><body><joint/><geom size='{}'/></body></worldbody></mujoco>"
    path.write_text(body.format(1))
    saved = pickle.dumps(make_simulator("mujoco", Model(path), 1, 1))
    path.write_text(body.format(2))
    with pytest.raises(SimulatorError, match=r"body\.xml is another one than when it was pickled$"):
        pickle.loads(saved)
