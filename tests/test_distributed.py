"""Two processes on loopback train like one, stop together, and share checkpoints with one."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import assert_trees_close

from admrl_jax.commands.experiment import main
from admrl_jax.core.settings import ConfigError
from admrl_jax.runs.artefact import load_policy
from admrl_jax.runs.hosts import join, join_cluster
from experiments import halfcheetah_dir, navigation_2d

ROOT = Path(__file__).parent.parent
TOY = [
    "--preset=quick",
    "--until=pretrain",
    "--seeds=0",
    "--env.horizon=4",
    "--policy.hidden-sizes=8",
    "--sampling.num-tasks=2",
    "--sampling.num-trajectories=4",
    # As in test_devices: what is left is the order of sums.
    "--learners.maml-trpo.trpo.cg-iterations=3",
    "--learners.maml-trpo.trpo.cg-damping=0.1",
    "--defences.adgan.adversary.hidden-sizes=8",
    "--defences.adgan.adversary.num-minibatches=2",
    "--schedule.chunk-steps=1",
    "--schedule.checkpoint-every=1",
    "--schedule.snapshot-every=1",
    "--eval.num-tasks=2",
    "--eval.attacker.num-tasks=2",
]
SECONDS = 240
"""When to give up on processes that wait for each other."""


@contextmanager
def two_processes(module: str, argv: list[str]) -> Iterator[list[subprocess.Popen]]:
    """One experiment as two processes in double precision; whatever still runs in the end is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", f"experiments.{module}", *argv, "--num-devices=0", "--num-processes=2"]
    command.append(f"--coordinator=127.0.0.1:{port}")
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    processes = [
        subprocess.Popen(
            [*command, f"--process-id={i}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def rows_of(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "metrics.csv").read_text().splitlines()))


def assert_rows_agree(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """To the tolerance of test_devices."""
    for row, same in zip(rows, expected, strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - {"method", "stage"}:
            value, other = float(row[name]), float(same[name])
            # A share of the gradient: its rounding is that of 1, and weights are in single precision.
            atol = 1e-6 if name == "train/cg_residual" else 1e-9
            np.testing.assert_allclose(value, other, rtol=1e-6, atol=atol, err_msg=name)


@pytest.fixture
def double() -> Iterator[None]:
    """Double precision in every thread: Orbax reads in threads of its own."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def run_alone(module, directory: Path, *argv: str) -> int:
    name = f"experiments.{module.__name__.rsplit('.')[-1]}"
    return main(name, "", module.PRESETS, [*TOY, "--num-devices=1", f"--run-dir={directory}", *argv])


def test_two_processes_stop_together_and_one_goes_on(double: None, tmp_path: Path) -> None:
    steps = ["--schedule.pretrain-steps=100", "--schedule.checkpoint-every=50"]
    directory = tmp_path / "two"
    with two_processes("navigation_2d", [*TOY, *steps, f"--run-dir={directory}"]) as processes:
        end = time.monotonic() + SECONDS
        while not (directory / "metrics.csv").exists() or len(rows_of(directory)) < 3:
            assert time.monotonic() < end and all(p.poll() is None for p in processes)
            time.sleep(0.02)
        # The process that writes no files is told to stop; the other one learns of it.
        processes[1].send_signal(signal.SIGTERM)
        first, second = (process.communicate(timeout=SECONDS)[1] for process in processes)
        assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, first
    assert "go on with" in first and "go on with" not in second
    done = len(rows_of(directory))
    assert 3 <= done < 100

    assert run_alone(navigation_2d, tmp_path / "one", "--schedule.pretrain-steps=3") == 0
    assert_rows_agree(rows_of(directory)[:3], rows_of(tmp_path / "one"))

    assert run_alone(navigation_2d, directory, *steps, "--resume") == 0
    assert [int(row["step"]) for row in rows_of(directory)] == list(range(1, 101))


def test_two_processes_go_on_where_one_was(double: None, tmp_path: Path) -> None:
    # Each process has a C engine of its own.
    steps = "--schedule.pretrain-steps=3"
    alone, directory = tmp_path / "one", tmp_path / "two"
    assert run_alone(halfcheetah_dir, alone, steps) == 0
    shutil.copytree(alone, directory)
    shutil.rmtree(directory / "checkpoints" / "pretrain-pretrain" / "3")
    argv = [*TOY, steps, f"--run-dir={directory}", "--resume"]
    with two_processes("halfcheetah_dir", argv) as processes:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
    assert "pretrain: 3/3" in errors[0] and "pretrain: 3/3" not in errors[1]
    assert_rows_agree(rows_of(directory), rows_of(alone))
    # The last row was computed anew: it differs in its last digits.
    assert rows_of(directory)[-1] != rows_of(alone)[-1]
    together, expected = (load_policy(folder, "pretrain").params for folder in (directory, alone))
    assert_trees_close(together, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (("127.0.0.1", 2, 0), "coordinator: '127.0.0.1' is not accepted; accepted: host:port"),
        (("127.0.0.1:1", 0, 0), "num_processes: 0 is not accepted"),
        (("127.0.0.1:1", 2, 2), r"process_id: 2 is not accepted; accepted: from 0 to .* \(1\)"),
    ],
)
def test_bad_numbers_are_named_before_anything_connects(numbers: tuple, message: str) -> None:
    coordinator, num_processes, process_id = numbers
    with pytest.raises(ConfigError, match=message):
        join(coordinator=coordinator, num_processes=num_processes, process_id=process_id)


def test_unknown_cluster_is_named() -> None:
    with pytest.raises(ConfigError, match="distributed: 'lunch' is not accepted; accepted: off, auto, slurm"):
        join_cluster("lunch")


def test_all_devices_must_divide_the_tasks(tmp_path: Path) -> None:
    # None may be left out, and how many there are is known only once all have joined.
    directory = tmp_path / "never"
    argv = [*TOY, "--sampling.num-tasks=3", f"--run-dir={directory}"]
    with two_processes("navigation_2d", argv) as processes:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert "num_devices: 2 is not accepted; accepted: 0 or a divisor of sampling.num_tasks (3)" in errors[0]
    assert not directory.exists()
