"""What a finished attack says: rows for its report, and which attacker of a cell was the worst."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from admrl_jax.attacks.registry import attack_spec
from admrl_jax.config import UNITS
from admrl_jax.evaluation import do_nothing_returns
from admrl_jax.methods import METHODS
from admrl_jax.runs.versions import versions
from admrl_jax.saved.attack_cell import CellFile
from admrl_jax.saved.attack_plan import AttackPlan, Cell
from admrl_jax.saved.attack_victims import Victims
from admrl_jax.stats.checks import LEARNED, NOISE, TRANSFER, UNTRAINED
from admrl_jax.suite import SuiteRunner, is_from_elsewhere
from admrl_jax.suites import Member, Suite

NO_METHOD = {"colour": "#777777"}
"""What a report says of a policy that is no method's, such as the pre-trained one."""


def attack_results(
    plan: AttackPlan, suite: Suite, victims: Mapping[str, Victims], files: Mapping[Cell, CellFile]
) -> dict[str, Any]:
    """Everything that the report says of an attack, for `results.json`.

    Args:
        plan: what was attacked.
        suite: with what.
        victims: by method.
        files: what was found, cell by cell.
    """
    cell = next(iter(files))
    first = victims[cell.method]
    runner, case = first.runner, first.case(plan, cell)
    tasks = runner.judge.test_tasks(case)
    floor = do_nothing_returns(
        case.key, tasks, env=runner.setup.env, num_trajectories=runner.setup.sampling.num_trajectories
    )
    env = first.trained[cell.method].config.env
    return {
        "env": env.name,
        "episodes": runner.setup.sampling.num_trajectories,
        "units": UNITS[plan.units],
        "versions": {"python": platform.python_version()} | versions(),
        "device": jax.devices()[0].device_kind,
        "assumption": getattr(runner.setup.env, "assumption", ""),
        "floor": float(np.asarray(floor).mean(dtype=np.float64)),
        **found_so_far(plan, suite, victims, files),
    }


def found_so_far(
    plan: AttackPlan, suite: Suite, victims: Mapping[str, Victims], files: Mapping[Cell, CellFile]
) -> dict[str, Any]:
    """The part of `attack_results` that tells attackers apart; some cells are enough for it."""
    cell = next(iter(files))
    first = victims[cell.method]
    runner = first.runner
    rows, tests = [], []
    for cell, file in files.items():
        what = {"method": cell.method, "seed": cell.seed, "radius": cell.radius}
        rows += [{**what, **_row(entry, file)} for entry in file.results]
        tests.append(
            {
                **what,
                "worst": worst_entries(file)["worst"],
                "returns": {
                    name: np.mean(x, axis=-1, dtype=float).round(4).tolist() for name, x in file.tests.items()
                },
            }
        )
    return {
        "plan": asdict(plan),
        "suite": asdict(suite),
        "methods": {
            method: METHODS[method]._asdict() if method in METHODS else {"label": method} | NO_METHOD
            for method in plan.methods
        },
        "members": {member.name: _card(member, runner) for member in suite.members},
        "strata": strata(runner.judge.test_tasks(first.case(plan, cell))),
        "rows": rows,
        "tests": tests,
    }


def worst_entries(file: CellFile) -> dict[str, str]:
    """The entry that left least of all, and of each kind: on the final tasks if it was judged there.

    What came from elsewhere, refined or not, does not vouch for the attackers that were found here.
    """
    results = file.results
    here = [entry for entry in results if not is_from_elsewhere(entry)]
    groups = {
        "worst": list(results),
        LEARNED: [entry for entry in here if len(results[entry].effort)],
        UNTRAINED: [entry for entry in here if not len(results[entry].effort)],
        TRANSFER: [entry for entry in results if entry not in here],
    }
    return {name: lowest_entry(file, entries) for name, entries in groups.items() if entries}


def lowest_entry(file: CellFile, entries: Sequence[str]) -> str:
    """Of some entries the one that left least: on the final tasks, if any was judged there."""
    judged = [entry for entry in entries if entry in file.finals]
    if judged:
        return min(judged, key=lambda entry: float(file.finals[entry].mean()))
    return min(entries, key=lambda entry: file.results[entry].best.left)


def strata(tasks: Any) -> list[int] | None:
    """Number of each task's kind, where tasks come in few kinds; None where every task is its own."""
    leaves = [np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tasks)]
    kinds, numbers = np.unique(np.round(np.concatenate(leaves, axis=1), 6), axis=0, return_inverse=True)
    return np.ravel(numbers).tolist() if len(kinds) <= len(numbers) // 5 else None


def _row(entry: str, file: CellFile) -> dict[str, Any]:
    result, final = file.results[entry], file.finals.get(entry)
    best = result.best
    return {
        "entry": entry,
        "member": best.member,
        "origin": best.origin,
        "validation": round(float(best.left), 4),
        "final": None if final is None else round(float(final.mean(dtype=np.float64)), 4),
        "starts": np.round(np.asarray(result.starts, float), 4).tolist(),
        "effort": np.round(np.asarray(result.effort, float), 4).tolist(),
        "seconds": round(file.seconds[entry], 1),
        "env_steps": result.env_steps,
    }


def _card(member: Member, runner: SuiteRunner) -> dict[str, Any]:
    """A member's threat model, for the report."""
    spec = attack_spec(member.attack)
    is_learned = spec.make_trainer is not None
    kind = LEARNED if is_learned else NOISE if spec.threat.knowledge == "none" else UNTRAINED
    return {
        "attack": member.attack,
        "colour": spec.colour,
        "kind": kind,
        **spec.threat._asdict(),
    }
