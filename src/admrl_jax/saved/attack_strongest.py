"""The strongest attacker of every cell, kept in one small file to be tried on other policies."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from admrl_jax.core.settings import ConfigError
from admrl_jax.runs.artefact import ArtefactError, flatten_params
from admrl_jax.runs.files import DamagedFileError, read_arrays, write_arrays
from admrl_jax.saved.attack_cell import read_params
from admrl_jax.saved.attack_plan import Cell
from admrl_jax.suite import Found, SuiteRunner

STRONGEST = "strongest.npz"
"""In the folder of an attack."""


def write_strongest(folder: Path, env: str, found: Mapping[Cell, Found]) -> None:
    """Writes `strongest.npz` of an attack: of every cell the strongest attacker that learned.

    NumPy alone reads it: `about` (JSON: environment and cells), `<cell>/words` (JSON: member and where it
    started) and `<cell>/params/<leaf>`.

    Args:
        folder: of the attack.
        env: name of the environment.
        found: by cell.
    """
    arrays = {"about": np.array(json.dumps({"env": env, "cells": [list(cell) for cell in found]}))}
    for cell, best in found.items():
        arrays[f"{cell.stem}/words"] = np.array(json.dumps([best.member, best.origin]))
        arrays |= flatten_params(best.params, f"{cell.stem}/params/")
    write_arrays(folder / STRONGEST, **arrays)


def read_strongest(folder: Path, env: str, runner: SuiteRunner) -> dict[Cell, Found]:
    """What `write_strongest` wrote, to be tried on other victims.

    Args:
        folder: of the attack.
        env: name of the environment.
        runner: of the victims.

    Raises:
        ArtefactError: the file is not there, damaged, or its attackers read other observations.
        ConfigError: it is of another environment, or of members that the suite does not have.
    """
    path = folder / STRONGEST
    if not path.is_file():
        raise ArtefactError(f"transfer_from: there is no {path}; a finished attack leaves it")
    try:
        arrays = read_arrays(path, "about")
    except DamagedFileError as error:
        raise ArtefactError(f"transfer_from: {path} is damaged, or was not left by an attack") from error
    about, found = json.loads(str(arrays["about"])), {}
    if about["env"] != env:
        raise ConfigError(f"transfer_from: {path} is of {about['env']!r}; accepted: attacks on {env!r}")
    for cell in (Cell(*values) for values in about["cells"]):
        member, origin = json.loads(str(arrays[f"{cell.stem}/words"]))
        if member not in runner.attacks:
            known = ", ".join(runner.attacks)
            raise ConfigError(f"transfer_from: {path}: {member!r} is not in this suite; accepted: {known}")
        params = read_params(arrays, f"{cell.stem}/", member, runner)
        found[cell] = Found(member, origin, params, np.zeros((0, 0)))
    return found
