"""What a run left behind, for the report: its files, its rows by name, and the paper's numbers."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from admrl_jax.config import METHODS
from admrl_jax.files import read_arrays

Row = Mapping[str, Any]
Panel = tuple[str, str]
"""An attack and, for adGAN, the protocol."""
Cell = tuple[str, str]
"""Support and query, each clean or attacked."""

PAPER_CLEAN = {"navigation_2d": {"maml": -12.18, "random": -13.37, "fgsm": -21.15, "admrl": -12.50}}
"""Clean returns printed in arXiv:2104.13302, section V-D, "Normal case"; no seeds, no spread."""

PAPER_TABLE_1 = {
    "navigation_2d": {"maml": -50.2, "admrl": -47.7, "random": -47.8, "fgsm": -54.1},
    "halfcheetah_dir": {"maml": 50.3, "admrl": 53.4, "random": 24.3, "fgsm": 0.03},
    "halfcheetah_vel": {"maml": -30.8, "admrl": -30.2, "random": -30.9, "fgsm": -31.4},
    "reacher": {"maml": -561.0, "admrl": -483.0, "random": -516.0, "fgsm": -572.0},
    "ant_vel": {"maml": -18.7, "admrl": -17.8, "random": -18.4, "fgsm": -22.1},
}
"""arXiv:2104.13302, Table I: returns under adGAN; strength, seeds and spread are not stated."""

LABELS = {"maml": "MAML", "random": "Random", "fgsm": "FGSM", "admrl": "adMRL"}
PANELS: dict[Panel, str] = {
    ("gaussian", ""): "Gaussian noise",
    ("l2_noise", ""): "L2 noise",
    ("fgsm", ""): "FGSM",
    ("adgan", "paper"): "adGAN, paper protocol",
    ("adgan", "adaptive"): "adGAN, adaptive",
    ("adgan", "adaptive_no_gan"): "adGAN, adaptive, no GAN loss",
}
STRENGTH_LABELS = {
    "gaussian": "noise std per dimension",
    "l2_noise": "L2 size",
    "fgsm": "L-inf step",
    "adgan": "L2 radius",
}
UNITS = {"paper": "raw observation units", "normalised": "standard deviations of clean observations"}
CELLS: tuple[Cell, ...] = (
    ("clean", "clean"),
    ("attacked", "clean"),
    ("clean", "attacked"),
    ("attacked", "attacked"),
)


# Files


def read_results(run_dir: Path) -> dict[str, Any]:
    """`results.json`: the settings, the meta-test `rows` and the convergence `curves`."""
    return json.loads((run_dir / "results.json").read_text())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.csv`; numbers as floats, empty cells left out."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        cells = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    words = ("method", "stage")
    return [{name: cell if name in words else float(cell) for name, cell in row.items()} for row in cells]


def read_trajectories(run_dir: Path) -> dict[str, np.ndarray]:
    """`trajectories.npz`; empty where the run has none (only 2D navigation does).

    Raises:
        DamagedFileError: it is there and cannot be read.
    """
    path = run_dir / "trajectories.npz"
    return read_arrays(path) if path.exists() else {}


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
        panel, strength = ("none", ""), 0.0
    where = {"attack": panel[0], "protocol": panel[1], "strength": strength}
    return seed_values(rows, field, method=method, support=support, query=query, **where)


def mean(values: Mapping[int, float]) -> float:
    """Mean over seeds; NaN without any."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def panels_of(rows: Iterable[Row]) -> dict[Panel, list[float]]:
    """The attacks that were measured, in report order, with their strengths."""
    found = {(row["attack"], row["protocol"], row["strength"]) for row in rows}
    strengths = {panel: sorted(s for *key, s in found if tuple(key) == panel) for panel in PANELS}
    return {panel: values for panel, values in strengths.items() if values}


def headline_panel(rows: Iterable[Row]) -> Panel:
    """The adaptive adGAN where it was measured, else the last attack that was."""
    panels = panels_of(rows)
    return ("adgan", "adaptive") if ("adgan", "adaptive") in panels else list(panels)[-1]


def methods_of(rows: Iterable[Row]) -> list[str]:
    """The methods that were run, in the order of `METHODS`."""
    found = {row["method"] for row in rows}
    return [method for method in METHODS if method in found]


def setting(results: Row, path: str) -> Any:
    """A nested value of the configuration, by dotted path."""
    value: Any = results["config"]
    for name in path.split("."):
        value = value.get(name, "not recorded") if isinstance(value, dict) else value
    return ", ".join(map(str, value)) if isinstance(value, list) else value
