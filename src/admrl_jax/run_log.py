"""A run's directory and what is written into it: config, metrics, TensorBoard events, progress."""

import csv
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensorboardX import SummaryWriter

from admrl_jax.config import Config, flatten, from_dict, to_dict
from admrl_jax.files import write_text

LOCK = ".lock"
KEY_COLUMNS = ("seed", "method", "stage", "step")
QUIET_SECONDS = 30.0
"""Seconds between progress lines where the output is no terminal."""


class RunError(Exception):
    """A run that cannot start or go on; the message is for the user."""


def open_run(directory: Path, config: Config, *, resume: bool) -> int:
    """Creates or reopens a run directory and locks it.

    Args:
        directory: where the run lives.
        config: what is to be run.
        resume: go on with a run that is there already.

    Returns:
        File descriptor that holds the lock for as long as it is open.

    Raises:
        RunError: the directory cannot be written, is in use, holds a run and `resume` is not
            set, or holds a run of another config.
    """
    config_path = directory / "config.json"
    try:
        if not config_path.exists() and directory.exists() and _foreign_files(directory):
            raise RunError(f"run-dir: {directory} is not empty and holds no run; name another --run-dir")
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise RunError(f"run-dir: {directory} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise RunError(f"run-dir: {directory} is in use by another process") from error
    try:
        _claim(config_path, config, resume=resume)
    except OSError as error:
        os.close(lock)
        raise RunError(f"run-dir: {directory} cannot be written ({error.strerror})") from error
    except RunError:
        os.close(lock)
        raise
    return lock


def _foreign_files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name != LOCK]


def _claim(config_path: Path, config: Config, *, resume: bool) -> None:
    """Writes the config of a new run, or refuses a run that is not this one."""
    directory = config_path.parent
    if not config_path.exists():
        write_text(config_path, json.dumps(to_dict(config), indent=2) + "\n")
        return
    try:
        saved = from_dict(json.loads(config_path.read_text()))
    except ValueError as error:
        raise RunError(f"run-dir: {config_path} cannot be read: {error}") from error
    difference = config_difference(saved, config)
    if difference:
        raise RunError(f"run-dir: {directory} holds a run of another config: {difference}")
    if not resume:
        raise RunError(
            f"run-dir: {directory} holds this run already; add --resume to go on, or name another --run-dir"
        )


def config_difference(saved: Config, wanted: Config) -> str:
    """`name: saved -> wanted` for every setting that differs; empty if none does.

    Where a run is computed may change from one session to the next, all but the engine.
    """
    if type(saved.env) is not type(wanted.env):
        return f"env: {saved.env.name} -> {wanted.env.name}"
    old, new = flatten(saved), flatten(wanted)
    return "; ".join(
        f"{name}: {old[name]} -> {new[name]}"
        for name in old
        if old[name] != new[name] and name not in ("num_threads", "num_devices")
    )


class MetricsLog:
    """`metrics.csv` (a row per seed, method and step) and TensorBoard events.

    Rows are written before the checkpoint that covers them; `rewind` drops those that a resumed
    stage will produce again, so a row is never missing and never there twice. With several
    processes the first one `writes`, and the others' logs do nothing.
    """

    def __init__(self, directory: Path, *, writes: bool = True):
        self._writes = writes
        self._directory = directory
        self._path = directory / "metrics.csv"
        self._columns: list[str] = list(KEY_COLUMNS)
        self._writers: dict[tuple[str, str], SummaryWriter] = {}
        if writes and self._path.exists():
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), list(KEY_COLUMNS))

    def rewind(self, method: str, stage: str, step: int) -> None:
        """Drops rows of a stage beyond `step`, and torn lines."""
        if not self._writes or not self._path.exists():
            return
        with self._path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        kept = [
            row
            for row in rows
            if len(row) == len(self._columns)
            and not (row[1] == method and row[2] == stage and int(row[3]) > step)
        ]
        if len(kept) != len(rows):
            self._rewrite(kept)

    def append(
        self,
        method: str,
        stage: str,
        first_step: int,
        seeds: Iterable[int],
        metrics: Mapping[str, np.ndarray],
    ) -> None:
        """Adds the metrics of consecutive steps.

        Args:
            method: training method, or the name of a shared stage.
            stage: pretrain, warmup, finetune or adaptive.
            first_step: step number of the first entry.
            seeds: of the leading axis.
            metrics: arrays `[S, T]`.
        """
        if not self._writes:
            return
        new = [name for name in sorted(metrics) if name not in self._columns]
        if new:
            old = []
            if self._path.exists():
                with self._path.open(newline="") as file:
                    old = list(csv.reader(file))[1:]
            width = len(self._columns)
            self._columns += new
            self._rewrite([row + [""] * len(new) for row in old if len(row) == width])
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            length = next(iter(metrics.values())).shape[1]
            for t in range(length):
                for i, seed in enumerate(seeds):
                    values = {name: repr(float(array[i, t])) for name, array in metrics.items()}
                    row = [str(seed), method, stage, str(first_step + t)]
                    writer.writerow(row + [values.get(name, "") for name in self._columns[4:]])
            file.flush()
            os.fsync(file.fileno())
        for i, seed in enumerate(seeds):
            events = self._events(f"{method}-seed{seed}", stage, first_step)
            for name, array in metrics.items():
                for t in range(array.shape[1]):
                    events.add_scalar(name, float(array[i, t]), first_step + t)
            events.flush()

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()

    def _events(self, run: str, stage: str, step: int) -> SummaryWriter:
        if (run, stage) not in self._writers:
            folder = self._directory / "tensorboard" / stage / run
            self._writers[run, stage] = SummaryWriter(str(folder), purge_step=step)
        return self._writers[run, stage]

    def _rewrite(self, rows: list[list[str]]) -> None:
        lines = [",".join(row) for row in [self._columns, *rows]]
        write_text(self._path, "\n".join(lines) + "\n")


class Progress:
    """One live line per stage on a terminal, a line every half minute elsewhere."""

    def __init__(self, stage: str, total: int, done: int = 0, *, shown: bool = True):
        self._console = Console(stderr=True, highlight=False, quiet=not shown)
        self._stage, self._total, self._first = stage, total, done
        self._start = self._last = time.monotonic()
        self._steps_timed = 0
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._is_live = shown and self._console.is_terminal
        if self._is_live:
            self._live.start()
            self._live.update(Text(f"{stage}: compiling"))

    def update(self, done: int, parts: Mapping[str, float | str]) -> None:
        """Shows `done` of the total and some figures."""
        now = time.monotonic()
        if self._steps_timed == 0:
            # The first chunk holds the compilation; the rate is counted from its end.
            self._start, self._first = now, done
        self._steps_timed += 1
        left = ""
        if done > self._first:
            seconds = (now - self._start) / (done - self._first) * (self._total - done)
            left = f"  left {seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"
        shown = "  ".join(
            f"{name} {value if isinstance(value, str) else format(value, '.4g')}"
            for name, value in parts.items()
        )
        line = f"{self._stage}: {done}/{self._total}  {shown}{left}"
        if self._is_live:
            self._live.update(Text(line))
        elif now - self._last > QUIET_SECONDS or done >= self._total:
            self._last = now
            self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._is_live:
            self._live.stop()


class StopRequest:
    """Turns SIGINT and SIGTERM into a wish that the loop grants at its next safe point.

    A second signal stops at once; the run then goes on from its last checkpoint.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        Console(stderr=True).print("stopping after the current chunk; once more stops at once")
