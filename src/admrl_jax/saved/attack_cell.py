"""What has been found in a cell of an attack, one victim at one radius, on disk."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from admrl_jax.core.types import Params
from admrl_jax.runs.artefact import empty_params, flatten_params, unflatten_params
from admrl_jax.runs.files import is_whole, read_arrays, write_arrays
from admrl_jax.saved.attack_plan import Cell
from admrl_jax.suite import CONTINUED, Found, MemberResult, SuiteRunner, is_from_elsewhere


class CellFile:
    """What has been found in a cell, on disk."""

    def __init__(self, folder: Path, cell: Cell, runner: SuiteRunner, plan: str):
        """Reads what is there.

        Args:
            folder: of the attack.
            cell: the cell.
            runner: of its victim.
            plan: all cells, in words. What depends on the others is dropped where they were other ones.
        """
        self.path = folder / "cells" / f"{cell.stem}.npz"
        self._runner, self._plan = runner, plan
        self.results: dict[str, MemberResult] = {}
        self.seconds: dict[str, float] = {}
        self.finals: dict[str, np.ndarray] = {}
        self.tests: dict[str, np.ndarray] = {}
        if is_whole(self.path):
            self._read()

    def add(self, entry: str, result: MemberResult, seconds: float) -> None:
        """Keeps what an entry has achieved in so many seconds."""
        self.results[entry], self.seconds[entry] = result, seconds
        self._write()

    def add_final(self, entry: str, returns: np.ndarray) -> None:
        """Keeps returns `[N, K]` on the final tasks."""
        self.finals[entry] = returns
        self._write()

    def add_test(self, name: str, returns: np.ndarray) -> None:
        """Keeps returns `[N, K]` on the test tasks."""
        self.tests[name] = returns
        self._write()

    def _write(self) -> None:
        arrays: dict[str, np.ndarray] = {f"test/{name}": x for name, x in self.tests.items()}
        arrays |= {f"final/{entry}": x for entry, x in self.finals.items()}
        arrays["plan"] = np.array(self._plan)
        for entry, result in self.results.items():
            best, at = result.best, f"entry/{entry}/"
            arrays |= flatten_params(best.params, f"{at}params/")
            arrays |= {
                f"{at}words": np.array(json.dumps([best.member, best.origin])),
                f"{at}validation": best.validation,
                f"{at}starts": result.starts,
                f"{at}effort": result.effort,
                f"{at}cost": np.array([self.seconds[entry], result.env_steps]),
            }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(self.path, **arrays)

    def _read(self) -> None:
        arrays = read_arrays(self.path, "plan")
        is_same = str(arrays.pop("plan")) == self._plan
        for name, x in arrays.items():
            kind, entry, *rest = name.split("/")
            if kind == "test" and is_same:
                self.tests[entry] = x
            elif kind == "final" and is_same:
                self.finals[entry] = x
            elif rest == ["words"] and (is_same or not (is_from_elsewhere(entry) or CONTINUED in entry)):
                self.results[entry] = self._read_entry(arrays, f"entry/{entry}/")
                self.seconds[entry] = float(arrays[f"entry/{entry}/cost"][0])

    def _read_entry(self, arrays: Mapping[str, np.ndarray], at: str) -> MemberResult:
        member, origin = json.loads(str(arrays[f"{at}words"]))
        params = read_params(arrays, at, member, self._runner)
        env_steps = int(arrays[f"{at}cost"][1])
        found = Found(member, origin, params, arrays[f"{at}validation"])
        return MemberResult(found, arrays[f"{at}starts"], arrays[f"{at}effort"], env_steps)


def read_params(arrays: Mapping[str, np.ndarray], at: str, member: str, runner: SuiteRunner) -> Params:
    """The parameters of a member's attacker.

    Args:
        arrays: of a file.
        at: beginning of their names in it.
        member: of the suite.
        runner: of the victims.

    Raises:
        ArtefactError: they are missing, or of an attacker of another size.
    """
    like = empty_params(runner.attacks[member].init, runner.setup.env.obs_size)
    return unflatten_params(arrays, f"{at}params/", like)
