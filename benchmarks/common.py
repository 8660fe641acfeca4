"""What all benchmarks share: timing after warm-up, a machine description, a table, JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


def compile_and_time(function: Callable, *args: Any, repeats: int = 5) -> tuple[float, float, Any]:
    """Compiles, warms up once, then times.

    Returns:
        `(compile seconds, median seconds per call, last result)`.
    """
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    return compile_seconds, *median_seconds(compiled, *args, repeats=repeats)


def median_seconds(function: Callable, *args: Any, repeats: int = 5) -> tuple[float, Any]:
    """Median wall time of a call after one warm-up, waiting for the device."""
    result = jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - start)
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


def report(title: str, rows: Sequence[dict[str, Any]], json_path: Path | None) -> None:
    """Prints a table and, if asked, writes the same rows with the machine as JSON."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(
            json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1) + "\n"
        )


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
