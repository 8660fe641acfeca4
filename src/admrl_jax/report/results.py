"""What a run left behind, for the report: its results, its rows by name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from admrl_jax.attacks.registry import CLEAN
from admrl_jax.runs.files import DamagedFileError, read_arrays, read_text, stored

Row = Mapping[str, Any]
Panel = tuple[str, str]
"""An attack and, for one that learns, the protocol."""
Cell = tuple[str, str]
"""Support and query, each clean or attacked."""

RESULTS = "results.json"
CLEAN_PANEL: Panel = (CLEAN, "")
PROTOCOLS = {"": "", "paper": ", paper protocol", "adaptive": ", adaptive"}
CELLS: tuple[Cell, ...] = (
    ("clean", "clean"),
    ("attacked", "clean"),
    ("clean", "attacked"),
    ("attacked", "attacked"),
)


# Files


def read_results(run_dir: Path) -> dict[str, Any]:
    """`results.json` of a run or an attack, also packed: settings, what methods and attacks are, tables.

    The tables of a run are the `rows` of the meta-test, the `curves` of policies in training and those of
    `opponents` in training, which a run has had since they are measured.

    Raises:
        DamagedFileError: it is not as it was written.
        OSError: it is not there or the disk fails.
    """
    path = run_dir / RESULTS
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DamagedFileError(f"{stored(path)} is damaged") from error


def has_results(run_dir: Path) -> bool:
    """Whether a run, or an attack, is finished."""
    return stored(run_dir / RESULTS).exists()


def read_trajectories(run_dir: Path) -> dict[str, np.ndarray]:
    """`trajectories.npz`; empty where the run has none.

    Raises:
        DamagedFileError: it is there and cannot be read.
    """
    path = run_dir / "trajectories.npz"
    return read_arrays(path) if path.exists() else {}


# Names


def method_label(results: Row, method: str) -> str:
    """A method's name for people."""
    return results["methods"][method]["label"]


def panel_label(results: Row, panel: Panel) -> str:
    """An attack's name for people, with its protocol."""
    attack, protocol = panel
    return results["attacks"][attack]["label"] + PROTOCOLS[protocol]


def strength_label(results: Row, attack: str) -> str:
    """What an attack's strength means."""
    return results["attacks"][attack]["strength"]


# Rows


def seed_values(rows: Iterable[Row], field: str = "post", **where: Any) -> dict[int, float]:
    """`field` per seed, in the order of seeds, of the rows that match `where`."""
    matching = (row for row in rows if all(row[name] == value for name, value in where.items()))
    return dict(sorted((row["seed"], row[field]) for row in matching))


def cell_values(
    rows: Iterable[Row], panel: Panel, strength: float, cell: Cell, method: str, field: str = "post"
) -> dict[int, float]:
    """`seed_values` of one attack, strength and (support, query) cell; clean-clean needs no attack."""
    support, query = cell
    if cell == ("clean", "clean"):
        panel, strength = CLEAN_PANEL, 0.0
    where = {"attack": panel[0], "protocol": panel[1], "strength": strength}
    return seed_values(rows, field, method=method, support=support, query=query, **where)


def mean(values: Mapping[int, float]) -> float:
    """Mean over seeds; NaN without any."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def panels_of(results: Row) -> dict[Panel, list[float]]:
    """The attacks that were measured, in the order of `results["attacks"]`, with their strengths."""
    found = {(row["attack"], row["protocol"], row["strength"]) for row in results["rows"]}
    panels = {
        (attack, protocol): sorted(s for a, p, s in found if (a, p) == (attack, protocol))
        for attack in results["attacks"]
        for protocol in PROTOCOLS
        if (attack, protocol) != CLEAN_PANEL
    }
    return {panel: strengths for panel, strengths in panels.items() if strengths}


def learned_panels(results: Row) -> list[Panel]:
    """The measured attacks that learn."""
    return [panel for panel in panels_of(results) if results["attacks"][panel[0]]["is_learned"]]


def headline_panel(results: Row) -> Panel:
    """The first attack that was trained against each policy, else the last that was measured, if any."""
    adaptive = [panel for panel in learned_panels(results) if panel[1] == "adaptive"]
    return adaptive[0] if adaptive else [CLEAN_PANEL, *panels_of(results)][-1]


def methods_of(results: Row, rows: Iterable[Row]) -> list[str]:
    """The methods in some rows, in the order of `results["methods"]`."""
    found = {row["method"] for row in rows}
    return [method for method in results["methods"] if method in found]


def methods_under(results: Row, panel: Panel) -> list[str]:
    """The methods on which an attack was measured."""
    rows = (row for row in results["rows"] if (row["attack"], row["protocol"]) == panel)
    return methods_of(results, rows)


def setting(results: Row, path: str) -> Any:
    """A nested value of the configuration, by dotted path."""
    value: Any = results["config"]
    for name in path.split("."):
        value = value.get(name, "not recorded") if isinstance(value, dict) else value
    return ", ".join(map(str, value)) if isinstance(value, list) else value
