"""`metrics.csv` and TensorBoard events: what training measured, a row per seed, method and step."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from admrl_jax.runs import tensorboard
from admrl_jax.runs.files import read_text, stored, write_text
from admrl_jax.runs.tensorboard import EventFile

KEY_COLUMNS = ("seed", "method", "stage", "step")


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
        """Marks rows of a stage beyond `step`, which will be written again, and drops incomplete lines."""
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
            stage: pretrain, warmup, finetune or attack-<attack>-<strength>.
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
                # The shortest decimals that read back as the same number.
                values = {name: str(array[i, t]) for name, array in metrics.items()}
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
        if not tensorboard.is_available():
            return
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


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.csv`, also packed; numbers as floats, empty cells left out.

    Empty where the run has none.
    """
    path = run_dir / "metrics.csv"
    if not stored(path).exists():
        return []
    text = read_text(path)
    words = KEY_COLUMNS[1:3]
    cells = ({name: cell for name, cell in row.items() if cell} for row in csv.DictReader(io.StringIO(text)))
    return [{name: cell if name in words else float(cell) for name, cell in row.items()} for row in cells]
