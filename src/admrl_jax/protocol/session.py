"""What the stages of a run share: parts, devices, files, the held-out tasks, and requests to stop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.config import Config, task_counts, validate
from admrl_jax.evaluation import HeldOut, hold_out
from admrl_jax.protocol.parts import Parts, build_parts
from admrl_jax.runs import hosts
from admrl_jax.runs.devices import Devices, choose_num_devices
from admrl_jax.runs.metrics import MetricsLog
from admrl_jax.runs.programs import Programs
from admrl_jax.runs.progress import Progress
from admrl_jax.runs.signals import Interrupted, StopRequest


class Journal:
    """What a run writes as it goes: metrics, progress, and how long its stages took."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.writes = hosts.is_first()
        """Whether this process writes the files of the run."""
        self.log = MetricsLog(directory, writes=self.writes)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Progress]:
        """Progress of a stage, shown by the process that writes; its time counts if it ends well."""
        start = time.monotonic()
        progress = Progress(name, total, done, shown=self.writes)
        try:
            yield progress
        finally:
            progress.close()
        self.seconds[name] = time.monotonic() - start


class Session(NamedTuple):
    """One run, from its config to its files.

    Attributes:
        parts: environment, policy, learners, defences, attacks.
        devices: where it is computed.
        programs: compiled so far.
        journal: what it writes.
        stop: requests to stop.
        held_out: the meta-test's tasks.
        seed_keys: `[S]` keys of the seeds.
    """

    parts: Parts
    devices: Devices
    programs: Programs
    journal: Journal
    stop: StopRequest
    held_out: HeldOut
    seed_keys: jax.Array

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.parts.config

    @property
    def directory(self) -> Path:
        """Where the run is kept."""
        return self.journal.directory

    def stop_signal(self) -> int:
        """The signal that asked the run to stop, whichever process received it; 0 if none did.

        Every process must ask at the same points, so that all of them stop at the same one.
        """
        return hosts.largest(self.stop.signal or 0)

    def check_stop(self) -> None:
        """Raises `Interrupted` if a signal asked for it."""
        number = self.stop_signal()
        if number:
            raise Interrupted(number)


def open_session(config: Config, directory: Path) -> Session:
    """Builds what the stages share; touches no file.

    Raises:
        ConfigError: a setting does not suit the environment or this machine.
        SimulatorError: the engine cannot run here.
    """
    parts = build_parts(config)
    config = parts.config
    num_devices = config.num_devices or choose_num_devices(list(task_counts(config).values()))
    validate(replace(config, num_devices=num_devices))
    devices = Devices(num_devices, config.task_block)
    return Session(
        parts=parts,
        devices=devices,
        programs=Programs(devices),
        journal=Journal(directory),
        stop=StopRequest(),
        held_out=hold_out(parts.env, config.eval.seed, config.eval.num_tasks),
        seed_keys=jnp.stack([jax.random.key(seed) for seed in config.seeds]),
    )


def check_budget(excess: Any, where: str) -> None:
    """Refuses results of an attack that went beyond its budget."""
    if np.any(np.asarray(excess) > 0):
        raise RuntimeError(
            f"{where}: an attack broke its budget by {float(np.max(excess)):.3g}; this is a bug in the attack"
        )
