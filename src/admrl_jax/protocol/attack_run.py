"""Attacks saved policies with a suite and keeps what came out, cell by cell, so that a kill loses one cell.

A cell is one victim (a method and a seed) at one radius. Attackers that were found against one victim are
then tried on the others of the same seed.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.registry import ATTACKS, CLEAN
from admrl_jax.attacks.threat import Units
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Params
from admrl_jax.evaluation import do_nothing_returns
from admrl_jax.runs.artefact import Trained, flatten_params, load_policy
from admrl_jax.runs.devices import Devices
from admrl_jax.runs.files import read_arrays, write_arrays, write_text
from admrl_jax.stats.checks import LEARNED, NOISE, TRANSFER, UNTRAINED, Check, Score, converged, sanity_checks
from admrl_jax.suite import Found, Suite, SuiteResult, SuiteRunner
from admrl_jax.training import Setup


class Cell(NamedTuple):
    """One victim at one radius."""

    method: str
    seed: int
    radius: float

    @property
    def stem(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.seed}-{self.radius:g}"


@dataclass(frozen=True)
class AttackRun:
    """What is attacked, and where the results go.

    Attributes:
        source: run directory or `policies.npz`.
        folder: of the results.
        suite: members and effort.
        suite_name: its name.
        methods: victims.
        seeds: of the victims.
        radii: L2 radii.
        units: `paper` (raw observations) or `normalised` (standard deviations of clean rollouts).
        seed: of the attack.
    """

    source: Path
    folder: Path
    suite: Suite
    suite_name: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    radii: tuple[float, ...]
    units: str = "paper"
    seed: int = 0

    def cells(self) -> Iterator[Cell]:
        """Radii from small to large, so that a larger one goes on from what a smaller one found."""
        for method in self.methods:
            for seed in self.seeds:
                for radius in sorted(self.radii):
                    yield Cell(method, seed, radius)
