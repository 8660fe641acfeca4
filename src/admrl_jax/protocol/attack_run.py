"""Attacks saved policies with a suite and keeps what came out, member by member, so that a kill loses little.

A cell is one victim (a method and a seed) at one radius. When all cells have been attacked, what broke one
victim is tried on the others, and what broke a victim at one radius on the same victim at the others. Only
then are the worst attackers reported, on test tasks.
"""

import contextlib
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacking import SIDES
from admrl_jax.attacks.registry import CLEAN, attack_spec
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.config import UNITS
from admrl_jax.core.lanes import Lanes
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Params
from admrl_jax.evaluation import do_nothing_returns
from admrl_jax.methods import METHODS
from admrl_jax.runs.artefact import (
    Trained,
    digest,
    empty_params,
    flatten_params,
    load_policy,
    read_policies,
    unflatten_params,
)
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.files import is_whole, read_arrays, write_arrays, write_text
from admrl_jax.runs.progress import Progress
from admrl_jax.runs.signals import Interrupted, StopRequest
from admrl_jax.runs.versions import versions
from admrl_jax.stats.checks import LEARNED, NOISE, TRANSFER, UNTRAINED
from admrl_jax.suite import BLIND, SUITES, Case, Found, Member, MemberResult, Suite, SuiteRunner
from admrl_jax.training import Setup
from admrl_jax.truth.planner import planner_for

TRANSFERRED, REFINED = "transferred", "refined"
"""Entries of a cell beside its members: the best attacker that was found elsewhere, and what came of it."""
KEY = 2**31 - 3
"""Folded into the attack's seed: no policy was trained with the keys that follow."""
UNKNOWN_METHOD = {"colour": "#777777"}
"""What a report says of a policy that is no method's, such as the pre-trained one."""
BEST_OF_OTHERS = 3
"""Attackers of every other cell that are tried on a victim."""


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """What is attacked and how hard; decides every number.

    Attributes:
        source: run directory or `policies.npz`.
        suite: name of the suite.
        methods: victims.
        seeds: of the victims.
        radii: L2 radii.
        units: of the radii, one of `UNITS`.
        side: data under attack, one of `SIDES`.
        seed: of the attack.
        policies: digest of the artefact.
    """

    source: str
    suite: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    radii: tuple[float, ...]
    units: str
    side: str
    seed: int
    policies: str


class Cell(NamedTuple):
    """One victim at one radius."""

    method: str
    seed: int
    radius: float

    @property
    def stem(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.seed}-{self.radius:g}"

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}, radius {self.radius:g}"


def cells_of(plan: AttackPlan) -> Iterator[Cell]:
    """All cells, radii from small to large."""
    for method in plan.methods:
        for seed in plan.seeds:
            for radius in sorted(plan.radii):
                yield Cell(method, seed, radius)


def make_plan(
    source: Path,
    *,
    suite: str = "standard",
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    radii: Sequence[float] = (),
    units: str = "",
    side: str = "both",
    seed: int = 0,
) -> AttackPlan:
    """A plan for an artefact; what is not given is as in its run.

    Raises:
        ArtefactError: there is no such artefact, or it is damaged.
        ConfigError: something is not accepted, or not in the artefact.
    """
    arrays = read_policies(source)
    known = sorted({name.split("/")[1] for name in arrays if name.startswith("policy/")})
    trained = load_policy(source, known[0])
    found = tuple(int(x) for x in arrays["seeds"])
    default = [method for method in trained.config.methods if method in known]
    chosen = {
        "methods": (tuple(methods) or tuple(default), tuple(known)),
        "seeds": (tuple(seeds) or found, found),
        "suite": ((suite,), tuple(SUITES)),
        "side": ((side,), tuple(SIDES)),
        "units": ((units or trained.config.units,), tuple(UNITS)),
    }
    for name, (values, accepted) in chosen.items():
        for value in values:
            if value not in accepted:
                words = ", ".join(map(str, accepted))
                raise ConfigError(f"{name}: {value!r} is not accepted; accepted: {words}")
    radii = tuple(sorted(set(radii))) or trained.config.eval.strengths
    for radius in radii:
        if not (np.isfinite(radius) and radius > 0):
            raise ConfigError(f"radii: {radius!r} is not accepted; accepted: numbers above 0")
    return AttackPlan(
        source=str(source),
        suite=suite,
        methods=chosen["methods"][0],
        seeds=chosen["seeds"][0],
        radii=radii,
        units=chosen["units"][0][0],
        side=side,
        seed=seed,
        policies=digest(arrays),
    )


class Victims(NamedTuple):
    """The policies under attack that share a learner.

    Attributes:
        runner: attacks them.
        trained: by method, leading axis the artefact's seeds.
        seeds: of the artefact.
    """

    runner: SuiteRunner
    trained: dict[str, Trained]
    seeds: tuple[int, ...]

    def case(self, plan: AttackPlan, cell: Cell) -> Case:
        """A cell for the runner."""
        trained, number = self.trained[cell.method], self.seeds.index(cell.seed)
        params, inputs = jax.tree.map(lambda x: x[number], (trained.params, trained.inputs))
        ones = jnp.ones_like(inputs.scale)
        units = inputs if plan.units == "normalised" else Units(0 * ones, ones)
        key = jax.random.fold_in(jax.random.key(plan.seed), KEY)
        return Case(params, key, cell.radius, units, inputs, plan.side)


def load_victims(plan: AttackPlan, suite: Suite, lanes: Lanes) -> dict[str, Victims]:
    """The victims of a plan, by method; those that share a learner share what is compiled."""
    source = Path(plan.source)
    seeds = tuple(int(x) for x in read_policies(source)["seeds"])
    by_learner: dict[str, Victims] = {}
    found: dict[str, Victims] = {}
    for method in plan.methods:
        trained = load_policy(source, method)
        if trained.learner.name not in by_learner:
            runner = SuiteRunner(suite, setup_of(trained), lanes)
            by_learner[trained.learner.name] = Victims(runner, {}, seeds)
        found[method] = by_learner[trained.learner.name]
        found[method].trained[method] = trained
    return found


def setup_of(trained: Trained) -> Setup:
    """A trained policy as its meta-test sees it."""
    test = trained.config.eval
    sampling = replace(
        trained.config.sampling,
        num_trajectories=test.num_trajectories,
        num_adapt_steps=test.num_adapt_steps,
    )
    return Setup(trained.env, trained.policy, trained.learner, sampling)


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
        self.tests: dict[str, np.ndarray] = {}
        if is_whole(self.path):
            self._read()

    def add(self, entry: str, result: MemberResult, seconds: float) -> None:
        """Keeps what a member, `TRANSFERRED` or `REFINED` has achieved in so many seconds."""
        self.results[entry], self.seconds[entry] = result, seconds
        self._write()

    def add_test(self, name: str, returns: np.ndarray) -> None:
        """Keeps returns `[N, K]` on the test tasks."""
        self.tests[name] = returns
        self._write()

    def _write(self) -> None:
        arrays: dict[str, np.ndarray] = {f"test/{name}": x for name, x in self.tests.items()}
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
            elif rest == ["words"] and (is_same or entry not in (TRANSFERRED, REFINED)):
                self.results[entry] = self._read_entry(arrays, f"entry/{entry}/")
                self.seconds[entry] = float(arrays[f"entry/{entry}/cost"][0])

    def _read_entry(self, arrays: Mapping[str, np.ndarray], at: str) -> MemberResult:
        member, origin = json.loads(str(arrays[f"{at}words"]))
        attack = self._runner.attacks[member]
        like = empty_params(attack.init, self._runner.setup.env.obs_size)
        params = unflatten_params(arrays, f"{at}params/", like)
        env_steps = int(arrays[f"{at}cost"][1])
        found = Found(member, origin, params, arrays[f"{at}validation"])
        return MemberResult(found, arrays[f"{at}starts"], arrays[f"{at}effort"], env_steps)


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
            ConfigError: a member does not suit the victims.
        """
        self.plan, self.folder = plan, folder
        self.suite = SUITES[plan.suite]
        self.victims = load_victims(plan, self.suite, lanes)
        self.cells = list(cells_of(plan))
        self.stop, self._listens = stop or StopRequest(), stop is None

    def file(self, cell: Cell) -> CellFile:
        """What has been found in a cell."""
        cells = json.dumps([self.plan.methods, self.plan.seeds, self.plan.radii])
        return CellFile(self.folder, cell, self.victims[cell.method].runner, cells)

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
                self._test(cell)
        results = self.results()
        write_text(self.folder / "results.json", json.dumps(results, indent=1) + "\n")
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
        own = self._best(file)["lowest"]
        best = judged[int(np.argmin(lefts))]
        seconds = time.perf_counter() - began
        result = MemberResult(best, lefts, np.zeros(0), 0)
        member = self._refiner(best)
        if best.left < own and member is not None and REFINED not in file.results:
            same = [judged[i] for i in np.argsort(lefts) if judged[i].member == best.member]
            given = [(found.origin, found.params) for found in same[: member.starts]]
            clean = runner.clean_return(case)
            refined = runner.run_member(case, member, given, clean=clean)
            file.add(REFINED, refined, time.perf_counter() - began - seconds)
        file.add(TRANSFERRED, result, seconds)
        self._check_stop()

    def _refiner(self, found: Found) -> Member | None:
        """The member that goes on from an attacker: its own."""
        return next((member for member in self.suite.members if member.name == found.member), None)

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
        return elsewhere

    def _test(self, cell: Cell) -> None:
        """The worst attackers of each kind on test tasks, and the references."""
        file, victims = self.file(cell), self.victims[cell.method]
        runner, case = victims.runner, victims.case(self.plan, cell)
        wanted = {CLEAN: (CLEAN, ()), BLIND: (BLIND, ())}
        for entry in worst_entries(file.results).values():
            best = file.results[entry].best
            wanted[entry] = (best.member, best.params)
        for name, (member, params) in wanted.items():
            if name not in file.tests:
                file.add_test(name, runner.test(case, member, params))
                self._check_stop()
        planner = planner_for(runner.setup.env) if self.plan.side == "query" else None
        if planner is not None and "truth" not in file.tests:
            file.add_test("truth", planned_test(planner, runner, case))
            self._check_stop()

    def results(self) -> dict[str, Any]:
        """Everything that the report says, of the finished cells."""
        first = self.victims[self.plan.methods[0]]
        runner, case = first.runner, first.case(self.plan, self.cells[0])
        tasks = runner.test_tasks(case)
        floor = do_nothing_returns(
            case.key, tasks, env=runner.setup.env, num_trajectories=runner.setup.sampling.num_trajectories
        )
        rows, tests = [], []
        for cell in self.cells:
            file = self.file(cell)
            what = {"method": cell.method, "seed": cell.seed, "radius": cell.radius}
            rows += [
                {**what, **_row(entry, result, file.seconds[entry])} for entry, result in file.results.items()
            ]
            worst = worst_entries(file.results)
            tests.append(
                {
                    **what,
                    "worst": worst["worst"],
                    "returns": {
                        name: np.mean(x, axis=-1, dtype=float).round(4).tolist()
                        for name, x in file.tests.items()
                    },
                }
            )
        env = first.trained[self.plan.methods[0]].config.env
        return {
            "env": env.name,
            "plan": asdict(self.plan),
            "suite": asdict(self.suite),
            "episodes": runner.setup.sampling.num_trajectories,
            "methods": {
                method: METHODS[method]._asdict()
                if method in METHODS
                else {"label": method, "colour": "#777777"}
                for method in self.plan.methods
            },
            "members": {member.name: _card(member, runner) for member in self.suite.members},
            "units": UNITS[self.plan.units],
            "versions": {"python": platform.python_version()} | versions(),
            "device": jax.devices()[0].device_kind,
            "floor": float(np.asarray(floor).mean(dtype=np.float64)),
            "strata": strata(tasks),
            "rows": rows,
            "tests": tests,
        }


def planned_test(planner: Any, runner: SuiteRunner, case: Case) -> np.ndarray:
    """Returns `[N, K]` on the test tasks under the planned attack of every adapted policy."""
    tasks = runner.test_tasks(case)
    budget = Budget(jnp.asarray(case.radius, float), case.units)
    return np.asarray(planner(case.meta_params, jax.random.fold_in(case.key, 1), tasks, budget, runner.setup))


def kind_of(entry: str, result: MemberResult, runner: SuiteRunner) -> str:
    """Kind of an entry, as the sanity checks count them."""
    if entry == TRANSFERRED:
        return TRANSFER
    if result.best.member in runner.trainings:
        return LEARNED
    return NOISE if runner.attacks[result.best.member].threat.knowledge == "none" else UNTRAINED


def worst_entries(results: Mapping[str, MemberResult]) -> dict[str, str]:
    """The entry with the lowest validation return of all, and of each kind."""
    learned = {entry for entry, result in results.items() if len(result.effort)}
    groups = {
        "worst": list(results),
        LEARNED: [entry for entry in results if entry in learned],
        TRANSFER: [entry for entry in results if entry == TRANSFERRED],
        UNTRAINED: [entry for entry in results if entry not in learned and entry != TRANSFERRED],
    }
    lowest = lambda entries: min(entries, key=lambda entry: results[entry].best.left)  # noqa: E731
    return {name: lowest(entries) for name, entries in groups.items() if entries}


def strata(tasks: Any) -> list[int] | None:
    """Number of each task's kind, where tasks come in few kinds; None where every task is its own."""
    leaves = [np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tasks)]
    kinds, numbers = np.unique(np.round(np.concatenate(leaves, axis=1), 6), axis=0, return_inverse=True)
    return np.ravel(numbers).tolist() if len(kinds) <= len(numbers) // 5 else None


def _row(entry: str, result: MemberResult, seconds: float) -> dict[str, Any]:
    best = result.best
    return {
        "entry": entry,
        "member": best.member,
        "origin": best.origin,
        "validation": best.left,
        "starts": np.round(result.starts, 4).tolist(),
        "effort": np.round(result.effort, 4).tolist(),
        "seconds": round(seconds, 1),
        "env_steps": result.env_steps,
    }


def _card(member: Member, runner: SuiteRunner) -> dict[str, Any]:
    """A member's threat model, for the report."""
    spec = attack_spec(member.attack)
    threat = runner.attacks[member.name].threat
    is_learned = spec.make_trainer is not None
    kind = LEARNED if is_learned else NOISE if threat.knowledge == "none" else UNTRAINED
    return {
        "attack": member.attack,
        "colour": spec.colour,
        "kind": kind,
        **threat._asdict(),
    }


MAY_CHANGE = ("source", "methods", "seeds", "radii")
"""An attack may be given more of these, and its policies may be moved; what is there is kept."""


def claim(folder: Path, plan: AttackPlan) -> None:
    """Writes the plan of an attack, or refuses a folder that holds another.

    Raises:
        RunError: it does, or cannot be written.
    """
    path, wanted = folder / "plan.json", asdict(plan)
    try:
        if path.exists():
            found = json.loads(path.read_text())
            odd = [name for name in wanted if name not in MAY_CHANGE and found.get(name) != wanted[name]]
            if odd:
                words = ", ".join(f"{name}: {found.get(name)} -> {wanted[name]}" for name in odd)
                raise RunError(f"out: {folder} holds another attack ({words}); name another --out")
        elif folder.exists() and any(folder.iterdir()):
            raise RunError(f"out: {folder} is not empty and holds no attack; name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise RunError(f"out: {folder} cannot be written or read ({error})") from error
