"""The evaluation stages: meta-test grid, convergence curves, paths for a picture."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.registry import ATTACKS, CLEAN
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.types import MetaBatch, Params, Task, Trajectory
from admrl_jax.envs.registry import ENVS
from admrl_jax.evaluation import EvalResult
from admrl_jax.methods import METHODS
from admrl_jax.protocol.attack_stages import Attackers
from admrl_jax.protocol.lanes import BATCH, STATE, LanePrograms, Trial, merge_arrays, split
from admrl_jax.protocol.session import Session, check_budget
from admrl_jax.protocol.train_stages import Arm, Pretrained, snapshot_steps, with_untrained
from admrl_jax.runs import hosts
from admrl_jax.runs.files import DamagedFileError, read_arrays, write_arrays
from admrl_jax.runs.devices import Devices
from admrl_jax.runs.programs import Programs, choose_at_once
from admrl_jax.sampling import (
    AttackSizes,
    adapt_tasks,
    collect_meta_batch,
    collect_tasks,
    episode_returns,
    expose,
    measure_attack,
    score_tasks,
    unadapted,
)
from admrl_jax.training import Setup

CELLS = (("clean", "attacked"), ("attacked", "clean"), ("attacked", "attacked"))
CLEAN_CELL = (("clean", "clean"),)

Row = dict[str, Any]


class Test(NamedTuple):
    """One attack on one method at every strength.

    Attributes:
        attack: its name.
        protocol: how its parameters came to be: `paper` (trained along with a method, turned on all of
            them), `adaptive` (trained against this policy), or empty where it learns nothing.
        params: for each strength, leading axis the seeds; `()` where it has none.
    """

    attack: str
    protocol: str
    params: Sequence[Params]


class Evaluator:
    """Evaluates policies on the held-out tasks, as `evaluation.evaluate` does, in two programs.

    One collects episodes, support and query alike, and there is one for every attack; the other adapts, and
    all attacks share it.
    """

    def __init__(self, session: Session):
        self._session = session

    def evaluate(
        self,
        method: str,
        meta_params: Params,
        units: Units,
        attack: str,
        attack_params: Params,
        support_radius: float,
        query_radius: float,
    ) -> EvalResult:
        """One cell, all seeds; returns arrays on the host with leading axis `S`.

        Args:
            method: whose learner adapts.
            meta_params: leading axis `S`.
            units: of the budgets, leading axis `S`.
            attack: its name.
            attack_params: leading axis `S`.
            support_radius: radius before and during adaptation.
            query_radius: radius after it.
        """
        session = self._session
        setup = session.parts.setup(method, session.parts.test_sampling)
        seeds = len(session.config.seeds)
        # Every seed meets the same tasks and episodes.
        shared = (session.held_out.key, session.held_out.tasks, jnp.zeros((), int))
        shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), shared)
        lanes = session.devices.place((meta_params, attack_params, units, *shared))
        pieces = _Pieces(session, setup, attack)

        def fits(at_once: int) -> bool:
            trial = Trial(session.programs, at_once)
            pieces.run(trial, split(lanes, at_once)[0], support_radius, query_radius)
            return trial.fits(trial.largest)

        at_once = choose_at_once(seeds, fits, session.config.lanes)
        programs = LanePrograms(session.programs, at_once)
        blocks = [
            pieces.run(programs, block, support_radius, query_radius) for block in split(lanes, at_once)
        ]
        result = merge_arrays(blocks)
        check_budget(result.budget_excess, f"meta-test under {attack}")
        return result


class _Pieces:
    """The programs of an evaluation."""

    def __init__(self, session: Session, setup: Setup, attack: str):
        self._session, self._setup = session, setup
        self._name = f"{setup.learner.name} {setup.sampling}"
        self._collect_name = f"episodes {session.parts.identity(attack)} {setup.sampling}"
        self._attack = session.parts.attack(attack)
        self._axis = session.devices.axis

    def run(self, lanes: LanePrograms, block: Any, support_radius: float, query_radius: float) -> EvalResult:
        """Support episodes and adaptation, step by step, then query episodes; arrays on the host."""
        meta_params, attack_params, units, key, tasks, step = block
        num_steps = self._setup.sampling.num_adapt_steps
        params = lanes.call(
            f"unadapted {self._name}", self._unadapted, (STATE, STATE), BATCH, meta_params, tasks
        )
        returns, excess, size = [], 0.0, None
        for number in range(num_steps + 1):
            radius = query_radius if number == num_steps else support_radius
            radius = self._session.devices.place(jnp.full(step.shape, radius, float))
            episodes, measured = lanes.call(
                self._collect_name,
                self._collect,
                (BATCH, *(STATE,) * 6),
                (BATCH, (BATCH, STATE)),
                *(params, attack_params, units, radius, key, tasks, step + number),
            )
            found, sizes = hosts.gather(measured)
            returns.append(found)
            excess, size = np.maximum(excess, sizes.excess), sizes.size
            if number < num_steps:
                params = lanes.call(
                    f"adapt {self._name}",
                    self._adapt,
                    (STATE, BATCH, BATCH),
                    BATCH,
                    *(meta_params, params, episodes),
                )
        assert size is not None
        return EvalResult(np.stack(returns, axis=2), size, excess)

    def _unadapted(self, meta_params: Params, tasks: Task) -> Params:
        num_tasks = jax.tree.leaves(self._axis.share(tasks))[0].shape[0]
        return unadapted(meta_params, num_tasks, self._setup.learner)

    def _collect(
        self,
        params: Params,
        attack_params: Params,
        units: Units,
        radius: jax.Array,
        key: jax.Array,
        tasks: Task,
        step: jax.Array,
    ) -> tuple[Trajectory, tuple[jax.Array, AttackSizes]]:
        tasks = self._axis.share(tasks)
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        budget = Budget(jnp.broadcast_to(radius, (num_tasks,)), units)
        episodes = collect_tasks(
            params,
            attack_params,
            jax.random.fold_in(key, step),
            tasks,
            budget,
            num_trajectories=self._setup.sampling.num_trajectories,
            env=self._setup.env,
            policy=self._setup.policy,
            attack=self._attack,
            axis=self._axis,
        )
        sizes = measure_attack(episodes, budget, threat=self._attack.threat, axis=self._axis)
        return episodes, (episode_returns(episodes), sizes)

    def _adapt(self, meta_params: Params, params: Params, episodes: Trajectory) -> Params:
        batch = score_tasks(episodes, self._setup.sampling)
        return adapt_tasks(meta_params, params, batch, learner=self._setup.learner, axis=self._axis)


def tests_of(method: str, session: Session, arms: dict[str, Arm], attackers: Attackers) -> list[Test]:
    """What the meta-test turns on a method."""
    count = len(session.config.eval.strengths)
    tests = [Test(CLEAN, "", [()])]
    test = session.config.eval
    names = test.all_attacks if METHODS[method].defence == "none" else test.attacks
    for name in names:
        if ATTACKS[name].make_trainer is None:
            tests.append(Test(name, "", [()] * count))
            continue
        transferred = trained_along(session, arms, name)
        if transferred is not None:
            tests.append(Test(name, "paper", [transferred] * count))
        tests.append(Test(name, "adaptive", attackers[name]))
    return tests


def trained_along(session: Session, arms: dict[str, Arm], attack: str) -> Params | None:
    """Parameters `[S, ...]` of an attack that some method was trained against; None if none was."""
    for method, arm in arms.items():
        defence = session.parts.defence(method)
        if defence.trained_attack == attack and defence.attack_params is not None:
            return jax.vmap(defence.attack_params)(arm.state.opponent)
    return None


class MetaTest:
    """The meta-test and the curves. Raw returns are kept in `returns/*.npz`; what is there and whole is not
    measured again."""

    def __init__(self, session: Session):
        self._session, self._evaluator = session, Evaluator(session)

    def run(self, method: str, arm: Arm, tests: Iterable[Test]) -> list[Row]:
        """A method under every attack, strength, protocol and support x query cell.

        The process that writes makes the rows, these and those of `curves`; others have none.
        """
        return [row for test in tests for row in self._test(method, arm, test)]

    def _test(self, method: str, arm: Arm, test: Test) -> list[Row]:
        is_clean = test.attack == CLEAN
        strengths = (0.0,) if is_clean else self._session.config.eval.strengths
        cells = [
            (i, strength, support, query)
            for i, strength in enumerate(strengths)
            for support, query in (CLEAN_CELL if is_clean else CELLS)
        ]
        name = ".".join(part for part in (method, test.attack, test.protocol) if part)
        evaluations = [
            lambda i=i, s=strength, support=support, query=query: self._evaluator.evaluate(
                method,
                arm.state.learner.meta_params,
                arm.state.units,
                test.attack,
                test.params[i],
                s if support == "attacked" else 0.0,
                s if query == "attacked" else 0.0,
            )
            for i, strength, support, query in cells
        ]
        saved = self._measure(f"{name}.npz", f"meta-test: {name}", evaluations)
        return [
            {
                "method": method,
                "seed": seed,
                "attack": test.attack,
                "strength": strength,
                "protocol": test.protocol,
                "support": support,
                "query": query,
                **_means(saved["returns"][s, c]),
                "attack_size": float(saved["attack_size"][s, c]),
            }
            for s, seed in enumerate(self._session.config.seeds if saved else ())
            for c, (_, strength, support, query) in enumerate(cells)
        ]

    def curves(self, method: str, base: Pretrained, arms: dict[str, Arm]) -> list[Row]:
        """Returns of a method's saved policies, clean and under each attack, on the held-out tasks.

        Args:
            method: whose snapshots; `pretrain` for those of the shared pre-training, from the untrained
                policy on.
            base: the pre-trained policies.
            arms: the fine-tuned methods.
        """
        session = self._session
        schedule = session.config.schedule
        if method in arms:
            first, policies = schedule.pretrain_steps, arms[method].snapshots
            steps, learner_of = snapshot_steps(session, first, schedule.finetune_steps), method
        else:
            learner_of = session.config.methods[0]
            policies = with_untrained(session, learner_of, base.snapshots)
            steps = [0, *snapshot_steps(session, 0, schedule.pretrain_steps)]
        rows = []
        for attack in (CLEAN, *session.config.eval.curve_attacks):
            params: Params = ()
            if ATTACKS[attack].make_trainer is not None:
                params = trained_along(session, arms, attack)
                if params is None:
                    continue
            strength = 0.0 if attack == CLEAN else session.config.eval.curve_strength
            evaluations = [
                lambda i=i, attack=attack, params=params, strength=strength: self._evaluator.evaluate(
                    learner_of,
                    jax.tree.map(lambda x: x[i], policies),
                    base.state.units,
                    attack,
                    params,
                    strength,
                    strength,
                )
                for i in range(len(steps))
            ]
            saved = self._measure(f"curve.{method}.{attack}.npz", f"curve: {method}, {attack}", evaluations)
            rows += [
                {
                    "method": method,
                    "seed": seed,
                    "step": step,
                    "attack": attack,
                    "strength": strength,
                    **_means(saved["returns"][s, t]),
                }
                for s, seed in enumerate(session.config.seeds if saved else ())
                for t, step in enumerate(steps)
            ]
        return rows

    def _measure(
        self, file: str, stage: str, evaluations: Sequence[Callable[[], EvalResult]]
    ) -> dict[str, np.ndarray]:
        """Runs evaluations unless their results are there and whole; `[S, evaluations, ...]`.

        Empty for processes that do not write.
        """
        session, names = self._session, ("returns", "attack_size")
        path = session.directory / "returns" / file
        writes = session.journal.writes
        # As seen by process 0.
        if not hosts.from_first(int(writes and is_whole(path, *names))):
            results = []
            with session.journal.stage(stage, len(evaluations)) as progress:
                for evaluate in evaluations:
                    results.append(evaluate())
                    post = float(results[-1].returns[:, :, -1].mean())
                    progress.update(len(results), {"post": post})
                    session.check_stop()
            if writes:
                path.parent.mkdir(exist_ok=True)
                write_arrays(
                    path, **{name: np.stack([getattr(r, name) for r in results], axis=1) for name in names}
                )
        return read_arrays(path, *names) if writes else {}


def save_paths(session: Session, arms: dict[str, Arm], attackers: dict[str, Attackers]) -> None:
    """Paths in the plane to a few tasks, before and after adaptation, for a picture of the first seed.

    Only for environments that say which tasks to draw; attacked by the adaptive attacker whose strength
    is nearest to the curves'.
    """
    path = session.directory / "trajectories.npz"
    spec = ENVS[session.config.env.name]
    if not session.journal.writes or spec.picture_tasks is None or is_whole(path, "goals"):
        return
    goals = spec.picture_tasks(session.config.env)
    test, parts = session.config.eval, session.parts
    learned = [name for name in test.attacks if ATTACKS[name].make_trainer is not None]
    name = learned[0] if learned else test.attacks[0]
    index = int(np.argmin(np.abs(np.asarray(test.strengths) - test.curve_strength)))
    arrays: dict[str, Any] = {"goals": np.asarray(goals)}
    alone = Programs(Devices())
    for method, arm in arms.items():
        setup = parts.setup(method, parts.test_sampling)

        def collect(meta_params: Params, params: Params, budget: Budget, setup: Setup = setup) -> MetaBatch:
            exposure = expose(parts.attack(name), params, budget, num_tasks=len(goals))
            return collect_meta_batch(
                meta_params,
                session.held_out.key,
                goals,
                exposure,
                env=setup.env,
                policy=setup.policy,
                learner=setup.learner,
                config=setup.sampling,
            )

        params = attackers[method][name][index] if learned else ()
        first = jax.tree.map(lambda x: x[0], (arm.state.learner.meta_params, params, arm.state.units))
        for cell, strength in (("clean", 0.0), ("attacked", test.strengths[index])):
            arguments = (first[0], first[1], Budget(jnp.asarray(strength, float), first[2]))
            batch = alone.run(f"paths {setup.learner.name}", collect, arguments)
            before = jax.tree.map(lambda x: x[:, 0], batch.support.trajectory)
            for phase, taken in (("pre", before), ("post", batch.query.trajectory)):
                arrays[f"{method}/{cell}/{phase}"] = np.asarray(taken.obs)[:, :4]
                arrays[f"{method}/{cell}/{phase}/mask"] = np.asarray(taken.mask)[:, :4]
    write_arrays(path, **arrays)


def is_whole(path: Path, *names: str) -> bool:
    """Whether a file is there and holds these arrays; says so where it is damaged."""
    if not path.exists():
        return False
    try:
        read_arrays(path, *names)
    except DamagedFileError as error:
        print(f"{error}; it is measured again", file=sys.stderr)
        return False
    return True


def _means(returns: np.ndarray) -> Row:
    """Mean returns before and after adaptation, of returns `[N, num_adapt_steps + 1, K]`."""
    return {
        "pre": float(returns[:, 0].mean(dtype=np.float64)),
        "post": float(returns[:, -1].mean(dtype=np.float64)),
    }
