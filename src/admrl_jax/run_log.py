"""A run's directory and what is written into it: config, metrics, TensorBoard events, progress."""

# Protocol buffers make their classes when they are imported.
# pyright: reportAttributeAccessIssue=false

import contextlib
import csv
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from admrl_jax.config import Config, flatten, from_dict, to_dict
from admrl_jax.files import write_text

LOCK = ".lock"
KEY_COLUMNS = ("seed", "method", "stage", "step")
MAY_CHANGE = ("num_threads", "num_devices", "lanes", "schedule.max_bad_steps")
"""Settings with which a run may go on differently: they say not what is computed; roundings may differ."""
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
        if old[name] != new[name] and name not in MAY_CHANGE
    )


class MetricsLog:
    """`metrics.csv` (a row per seed, method and step) and TensorBoard events.

    Rows are written before the checkpoint that covers them. Those that a resumed stage will produce
    again are replaced where they stand, so a row is never missing, never there twice, and never
    elsewhere than in an uninterrupted run. With several processes the first one `writes`, and the
    others' logs do nothing.
    """

    def __init__(self, directory: Path, *, writes: bool = True):
        self._writes = writes
        self._directory = directory
        self._path = directory / "metrics.csv"
        self._columns: list[str] = list(KEY_COLUMNS)
        self._repeated: set[tuple[str, ...]] = set()
        self._writers: dict[tuple[str, str], EventFile] = {}
        if writes and self._path.exists():
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), list(KEY_COLUMNS))

    def rewind(self, method: str, stage: str, step: int) -> None:
        """Notes rows of a stage beyond `step`, which will come again, and drops torn lines."""
        if not self._writes:
            return
        rows = self._read()
        kept = [row for row in rows if len(row) == len(self._columns)]
        if len(kept) != len(rows) or not self._ends_whole():
            self._rewrite(kept)
        self._repeated |= {
            tuple(row[:4]) for row in kept if row[1:3] == [method, stage] and int(row[3]) > step
        }

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
            old, width = self._read(), len(self._columns)
            self._columns += new
            self._rewrite([row + [""] * len(new) for row in old if len(row) == width])
        rows = []
        for t in range(next(iter(metrics.values())).shape[1]):
            for i, seed in enumerate(seeds):
                values = {name: repr(float(array[i, t])) for name, array in metrics.items()}
                key = [str(seed), method, stage, str(first_step + t)]
                rows.append(key + [values.get(name, "") for name in self._columns[4:]])
        repeated = {tuple(row[:4]): row for row in rows if tuple(row[:4]) in self._repeated}
        if repeated:
            self._rewrite([repeated.get(tuple(row[:4]), row) for row in self._read()])
            self._repeated -= set(repeated)
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(row for row in rows if tuple(row[:4]) not in repeated)
            file.flush()
            os.fsync(file.fileno())
        for i, seed in enumerate(seeds):
            events = self._events(f"{method}-seed{seed}", stage, first_step)
            for t in range(next(iter(metrics.values())).shape[1]):
                events.add(first_step + t, {name: float(array[i, t]) for name, array in metrics.items()})
            events.flush()

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()

    def _events(self, run: str, stage: str, step: int) -> "EventFile":
        if (run, stage) not in self._writers:
            self._writers[run, stage] = EventFile(self._directory / "tensorboard" / stage / run, step)
        return self._writers[run, stage]

    def _read(self) -> list[list[str]]:
        """The rows without the header; none where there is no file yet."""
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return list(csv.reader(file))[1:]

    def _ends_whole(self) -> bool:
        return not self._path.exists() or self._path.read_bytes().endswith(b"\n")

    def _rewrite(self, rows: list[list[str]]) -> None:
        lines = [",".join(row) for row in [self._columns, *rows]]
        write_text(self._path, "\n".join(lines) + "\n")


class EventFile:
    """TensorBoard's scalars, written by the calling thread.

    tensorboardX's `SummaryWriter` writes from a thread of its own; on a full disk that thread dies, and
    the run waits for ever at its full queue.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(
            str(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        )
        self._write(file_version="brain.Event:2")
        # Hides what an interrupted run wrote from this step on.
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; what did not go to the disk when it was written does not go now either."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


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
