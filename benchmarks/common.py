"""What all benchmarks share: timing after warm-up, a machine description, a table, JSON."""

import contextlib
import fcntl
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from admrl_jax.config import Config
from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.base import BuiltInConfig
from admrl_jax.envs.registry import ENVS
from admrl_jax.report.figures import png
from admrl_jax.runs.devices import CPU_DEVICES, Devices, make_cpu_devices, start_devices
from experiments.train import presets_of

BUILT_IN = tuple(name for name, spec in ENVS.items() if issubclass(spec.config, BuiltInConfig))
"""Names of the environments that need no code of the user's."""


DPI = 110
"""Of pictures."""
LOCK = "BENCHMARKS_LOCK"
"""Environment variable with the path of a file; benchmarks that share it take turns at timing."""


@contextlib.contextmanager
def timing(lock: Path | None = None) -> Iterator[None]:
    """Around what is timed: waits until no other benchmark is.

    Args:
        lock: a file; by default that of `LOCK`. Where there is none nothing is waited for.
    """
    path = lock or os.environ.get(LOCK)
    if path is None:
        yield
        return
    with Path(path).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def start(num_devices: int = CPU_DEVICES) -> None:
    """Devices as experiments have them.

    Args:
        num_devices: into which a CPU is divided.
    """
    make_cpu_devices(num_devices)
    start_devices()


def preset_of(name: str, preset: str) -> Config:
    """The config of an experiment's preset.

    Raises:
        ConfigError: there is no such environment or preset.
    """
    presets = presets_of(name)
    if preset not in presets:
        raise ConfigError(f"preset: {preset!r} is not known; accepted: {', '.join(presets)}")
    return presets[preset]


def compile_seconds(function: Callable, *args: Any) -> tuple[float, Callable]:
    """Compiles for these arguments: `(seconds, compiled function)`."""
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return time.perf_counter() - begin, compiled


def compile_spread(
    devices: Devices, function: Callable, in_specs: Sequence[PartitionSpec], out_specs: Any, *args: Any
) -> tuple[float, Callable[[], Any]]:
    """Compiles `function` for every device: `(seconds, function of nothing)`.

    Args:
        devices: of the benchmark.
        function: see `Devices.spread`.
        in_specs: how each argument lies; it is put there once.
        out_specs: see `Devices.spread`.
        args: arrays or trees of them.
    """
    if devices.mesh is not None:
        shardings = [NamedSharding(devices.mesh, spec) for spec in in_specs]
        args = tuple(jax.device_put(x, sharding) for x, sharding in zip(args, shardings, strict=True))
    seconds, compiled = compile_seconds(devices.spread(function, tuple(in_specs), out_specs), *args)
    return seconds, functools.partial(compiled, *args)


def time_in_turn(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, by name; all are timed in turn, so that a drifting machine touches all alike.

    Each is called once before, and the device is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with timing():
        for i in range(repeats + 1):
            for name, function in functions.items():
                begin = time.perf_counter()
                jax.block_until_ready(function())
                if i:
                    seconds[name].append(time.perf_counter() - begin)
    return seconds


def compile_and_time(function: Callable, *args: Any, repeats: int = 5) -> tuple[float, float, Any]:
    """Compiles, warms up once, then times.

    Returns:
        `(compile seconds, median seconds per call, last result)`.
    """
    seconds, compiled = compile_seconds(function, *args)
    return seconds, *median_seconds(compiled, *args, repeats=repeats)


def median_seconds(function: Callable, *args: Any, repeats: int = 5) -> tuple[float, Any]:
    """Median wall time of a call after one warm-up, waiting for the device."""
    seconds = []
    with timing():
        result = jax.block_until_ready(function(*args))
        for _ in range(repeats):
            begin = time.perf_counter()
            result = jax.block_until_ready(function(*args))
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def machine() -> dict[str, Any]:
    """Device, cores and versions, which belong to every figure."""
    device = jax.devices()[0]
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
        cpu = names[0] if names else cpu
    packages = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "numpy")
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def report(
    title: str,
    rows: Sequence[dict[str, Any]],
    json_path: Path | None,
    *,
    bars: Sequence[str] = (),
    labels: Sequence[str] = (),
    unit: str = "",
) -> None:
    """Prints a table and, if asked, writes the same rows with the machine as JSON, and a picture.

    Args:
        title: of the table.
        rows: the same columns in each.
        json_path: where to; the picture lies beside it.
        bars: columns that the picture shows, side by side for each row; none, no picture.
        labels: columns that name a row in the picture.
        unit: of the bars.
    """
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)
    write_rows(title, rows, json_path)
    if json_path is not None and bars:
        where = machine()
        figure = bar_chart(f"{title}\n{where['cpu']}, {where['device']}", rows, bars, labels, unit)
        json_path.with_suffix(".png").write_bytes(png(figure, DPI))


def write_rows(title: str, rows: Sequence[dict[str, Any]], json_path: Path | None) -> None:
    """Writes rows with the machine as JSON, if asked; also of a benchmark that has not ended."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(
            json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1) + "\n"
        )


def bar_chart(
    title: str, rows: Sequence[dict[str, Any]], bars: Sequence[str], labels: Sequence[str], unit: str
) -> Figure:
    """Horizontal bars, one group for each row; what is no number is left out.

    Where values differ more than a thousandfold the axis is logarithmic.
    """
    height = 0.8 / len(bars)
    figure = Figure(figsize=(8, 1.3 + 0.3 * len(rows) * max(1, 0.7 * len(bars))), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    place = np.arange(len(rows), dtype=float)
    for i, name in enumerate(bars):
        values = [float(row[name]) if isinstance(row[name], (int, float)) else 0.0 for row in rows]
        drawn = ax.barh(place + (i - (len(bars) - 1) / 2) * height, values, height, label=name)
        written = [f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" if v else "" for v in values]
        ax.bar_label(drawn, written, padding=3, fontsize=7)
    ax.set_yticks(place, [", ".join(str(row[label]) for label in labels) for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    numbers = [v for row in rows for v in map(row.get, bars) if isinstance(v, (int, float)) and v > 0]
    if numbers and max(numbers) > 1000 * min(numbers):
        ax.set_xscale("log")
    ax.set_xlabel(unit)
    ax.set_title(title, fontsize=9)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=8, frameon=False)
    return figure


def markdown_table(rows: Sequence[dict[str, Any]], number: str) -> str:
    """A table for a document; floats are formatted as `number` says."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---" for _ in columns) + "|"]
    for row in rows:
        cells = [format(v, number) if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace_section(document: Path, name: str, text: str) -> None:
    """Puts `text` between the markers `<!-- name: begin -->` and `<!-- name: end -->` of a document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = document.read_text().split(begin)
    after = rest.split(end)[1]
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
