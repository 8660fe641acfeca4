"""Attacks saved policies with a suite and keeps what came out, member by member, so that a kill loses little.

A cell is one victim (a method and a seed) at one radius. When all cells have been attacked, what broke one
victim is tried on the others, and what broke a victim at one radius on the same victim at the others. So are
the attackers of other attacks, if asked for. Only then are the worst attackers reported, on test tasks.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.registry import CLEAN
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.lanes import Lanes
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Params
from admrl_jax.judging import BLIND, Case
from admrl_jax.report.attacked import Attacked
from admrl_jax.report.results import RESULTS
from admrl_jax.runs.files import write_rows
from admrl_jax.runs.progress import Progress
from admrl_jax.runs.signals import Interrupted, StopRequest
from admrl_jax.saved.attack_cell import CellFile
from admrl_jax.saved.attack_plan import AttackPlan, Cell, cells_of, claim
from admrl_jax.saved.attack_results import (
    attack_results,
    found_so_far,
    lowest_entry,
    worst_entries,
)
from admrl_jax.saved.attack_strongest import read_strongest, write_strongest
from admrl_jax.saved.attack_victims import Victims, load_victims
from admrl_jax.suite import (
    REFINED,
    ROUNDS,
    TRANSFERRED,
    Found,
    MemberResult,
    SuiteRunner,
    continued,
    finalists,
)
from admrl_jax.suites import SUITES, Member
from admrl_jax.truth.planner import planner_for

BEST_OF_OTHERS = 3
"""Attackers of every other cell that are tried on a victim."""
KEPT_OF_ELSEWHERE = 3
"""Of them, the strongest there: a few tasks do not tell which is the strongest on many."""


class AttackRun:
    """One run of a suite against the victims of a plan."""

    def __init__(
        self, plan: AttackPlan, folder: Path, lanes: Lanes = Lanes(), stop: StopRequest | None = None
    ):
        """Loads the victims.

        Args:
            plan: what is attacked.
            folder: of the results.
            lanes: how attackers are computed.
            stop: requests to stop that somebody else listens for; by default this run does.

        Raises:
            ArtefactError: a policy is missing or damaged.
            ConfigError: a member, or an attack whose attackers are to be tried, does not suit the victims.
        """
        self.plan, self.folder = plan, folder
        self.suite = SUITES[plan.suite]
        self.victims = load_victims(plan, self.suite, lanes)
        self.cells = list(cells_of(plan))
        # Read now: who hears of a wrong folder after hours has lost them.
        self._given = {id(victims.runner): self._read_given(victims) for victims in self.victims.values()}
        self.stop, self._listens = stop or StopRequest(), stop is None

    def file(self, cell: Cell) -> CellFile:
        """What has been found in a cell."""
        cells = [self.plan.methods, self.plan.seeds, self.plan.radii]
        words = json.dumps([*cells, self.plan.transfer_from] if self.plan.transfer_from else cells)
        return CellFile(self.folder, cell, self.victims[cell.method].runner, words)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet; returns the results, which are in `results.json` too.

        Raises:
            Interrupted: SIGINT or SIGTERM came; every finished member is saved.
        """
        claim(self.folder, self.plan)
        with self.stop if self._listens else contextlib.nullcontext():
            for cell in self.cells:
                self._attack(cell)
            for cell in self.cells:
                self._transfer(cell)
            for cell in self.cells:
                self._judge_finals(cell)
                self._go_on(cell)
                self._test(cell)
        files = {cell: self.file(cell) for cell in self.cells}
        results = attack_results(self.plan, self.suite, self.victims, files)
        write_strongest(self.folder, results["env"], self._strongest())
        write_rows(self.folder / RESULTS, results)
        return results

    def _check_stop(self) -> None:
        if self.stop.signal:
            raise Interrupted(self.stop.signal)

    def _attack(self, cell: Cell) -> None:
        """Every member, from where smaller radii ended."""
        victims, file = self.victims[cell.method], self.file(cell)
        case = victims.case(self.plan, cell)
        members = [member for member in self.suite.members if victims.runner.takes(member, case)]
        done = {member.name for member in members} & file.results.keys()
        if len(done) == len(members):
            return
        progress = Progress(f"attack: {cell}", len(members), len(done))

        began = time.perf_counter()

        def on_member(result: MemberResult) -> None:
            nonlocal began
            now = time.perf_counter()
            file.add(result.best.member, result, now - began)
            began = now
            progress.update(len(file.results), {result.best.member: result.best.left, **self._best(file)})
            self._check_stop()

        try:
            victims.runner.run(case, seeds=self._from_smaller(cell), done=file.results, on_member=on_member)
        finally:
            progress.close()

    def _best(self, file: CellFile) -> dict[str, float]:
        return {"lowest": min(result.best.left for result in file.results.values())}

    def _from_smaller(self, cell: Cell) -> dict[str, list[tuple[str, Params]]]:
        """Attackers that learned at the next smaller radius, by member."""
        smaller = [radius for radius in self.plan.radii if radius < cell.radius]
        if not smaller:
            return {}
        found = self.file(cell._replace(radius=max(smaller))).results
        return {
            name: [(f"radius {max(smaller):g}", result.best.params)]
            for name, result in found.items()
            if name in self.victims[cell.method].runner.trainings
        }

    def _transfer(self, cell: Cell) -> None:
        """Tries on a victim what was found elsewhere, and goes on from it where it is stronger."""
        file = self.file(cell)
        if TRANSFERRED in file.results:
            return
        victims = self.victims[cell.method]
        runner, case = victims.runner, victims.case(self.plan, cell)
        began = time.perf_counter()
        others = self._found_elsewhere(cell)
        if not others:
            return
        judged = runner.judge_others(case, others)
        lefts = np.array([found.left for found in judged])
        judged.sort(key=lambda found: found.left)
        own, best = self._best(file)["lowest"], judged[0]
        seconds = time.perf_counter() - began
        if best.left < own and REFINED not in file.results:
            member = self._member_of(best)
            same = [found for found in judged if found.member == best.member]
            given = [(found.origin, found.params) for found in same[: member.starts]]
            clean = runner.judge.clean(case)
            refined = runner.run_member(case, member, given, clean=clean, again=ROUNDS + 1)
            file.add(REFINED, refined, time.perf_counter() - began - seconds)
        for number, found in enumerate(judged[1:KEPT_OF_ELSEWHERE], 2):
            file.add(f"{TRANSFERRED} {number}", MemberResult(found, np.zeros(0), np.zeros(0), 0), 0.0)
        # Last: once it is there, all of this is done.
        file.add(TRANSFERRED, MemberResult(best, lefts, np.zeros(0), 0), seconds)
        self._check_stop()

    def _member_of(self, found: Found) -> Member:
        """The member that found an attacker, and goes on from it."""
        return next(member for member in self.suite.members if member.name == found.member)

    def _found_elsewhere(self, cell: Cell) -> list[Found]:
        """The strongest of every other victim at this radius, and of this one at other radii."""
        runner, elsewhere = self.victims[cell.method].runner, []
        for other in self.cells:
            is_same_victim = other[:2] == cell[:2]
            is_near = other.radius == cell.radius or is_same_victim
            if other == cell or not is_near or self.victims[other.method].runner is not runner:
                continue
            words = f"radius {other.radius:g}" if is_same_victim else f"{other.method}, seed {other.seed}"
            learned = [
                result.best for name, result in self.file(other).results.items() if name in runner.trainings
            ]
            for found in sorted(learned, key=lambda found: found.left)[:BEST_OF_OTHERS]:
                elsewhere.append(found._replace(origin=f"{words}: {found.origin}"))
        given = self._given[id(runner)]
        return elsewhere + [found for other, found in given if other.radius == cell.radius]

    def _read_given(self, victims: Victims) -> list[tuple[Cell, Found]]:
        """The attackers of other attacks, to be tried on these victims."""
        env = next(iter(victims.trained.values())).config.env.name
        given = []
        for folder in self.plan.transfer_from:
            others = read_strongest(Path(folder), env, victims.runner)
            radii = sorted({other.radius for other in others})
            if not set(radii) & set(self.plan.radii):
                found = ", ".join(f"{radius:g}" for radius in radii)
                raise ConfigError(f"transfer_from: {folder} has none of these radii; accepted: {found}")
            for other, found in others.items():
                words = f"{folder}: {other.method}, seed {other.seed}: {found.origin}"
                given.append((other, found._replace(origin=words)))
        return given

    def _strongest(self) -> dict[Cell, Found]:
        """Of every cell what left least among all that learned, wherever it was found."""
        found = {}
        for cell in self.cells:
            file, runner = self.file(cell), self.victims[cell.method].runner
            learned = [name for name, x in file.results.items() if x.best.member in runner.trainings]
            if learned:
                found[cell] = file.results[lowest_entry(file, learned)].best
        return found

    def _judge_finals(self, cell: Cell) -> None:
        """The strongest once more, on more tasks."""
        file, victims = self.file(cell), self.victims[cell.method]
        case = victims.case(self.plan, cell)
        for entry in finalists(file.results, self.suite.finalists):
            if entry not in file.finals:
                found = file.results[entry].best
                file.add_final(entry, victims.runner.judge.final(case, found.member, found.params))
                self._check_stop()

    def _go_on(self, cell: Cell) -> None:
        """More updates for the worst attacker, while its return against effort is not flat at its end."""
        file, victims = self.file(cell), self.victims[cell.method]
        runner, case = victims.runner, victims.case(self.plan, cell)
        if CLEAN not in file.tests:
            file.add_test(CLEAN, runner.judge.test(case))
        for number in range(1, ROUNDS + 1):
            found = Attacked(found_so_far(self.plan, self.suite, self.victims, {cell: file}))
            worst = found.end_of_effort(*cell)
            if worst is None or found.had_converged(worst).holds:
                return
            name = worst["entry"]
            entry = continued(name, number)
            if entry not in file.results:
                began, clean = time.perf_counter(), runner.judge.clean(case)
                result = runner.run_further(case, name, file.results[name], clean=clean, number=number)
                file.add(entry, result, time.perf_counter() - began)
                self._check_stop()
            if entry not in file.finals:
                more = file.results[entry].best
                file.add_final(entry, runner.judge.final(case, more.member, more.params))
                self._check_stop()

    def _test(self, cell: Cell) -> None:
        """The worst attackers of each kind on test tasks, and the references."""
        file, victims = self.file(cell), self.victims[cell.method]
        runner, case = victims.runner, victims.case(self.plan, cell)
        wanted = {CLEAN: (CLEAN, ()), BLIND: (BLIND, ())}
        for entry in worst_entries(file).values():
            best = file.results[entry].best
            wanted[entry] = (best.member, best.params)
        for name, (member, params) in wanted.items():
            if name not in file.tests:
                file.add_test(name, runner.judge.test(case, member, params))
                self._check_stop()
        planner = planner_for(runner.setup.env) if self.plan.side == "query" else None
        if planner is not None and "truth" not in file.tests:
            file.add_test("truth", planned_test(planner, runner, case))
            self._check_stop()


def planned_test(planner: Any, runner: SuiteRunner, case: Case) -> np.ndarray:
    """Returns `[N, K]` on the test tasks under the planned attack of every adapted policy."""
    tasks = runner.judge.test_tasks(case)
    budget = Budget(jnp.asarray(case.radius, float), case.units)
    return np.asarray(planner(case.meta_params, jax.random.fold_in(case.key, 1), tasks, budget, runner.setup))
