"""Many attackers against one victim: the lowest return that any of them leaves is its robustness.

Attackers are chosen on validation tasks, spread evenly, and reported on other tasks. A number that comes out
of here is an upper bound: a stronger attacker may yet be found.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacking import AttackerState, AttackerTraining, clean_collector
from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.registry import attack_spec, make_attack, make_attack_trainer
from admrl_jax.attacks.threat import SIDES, Units
from admrl_jax.core.lanes import Lanes
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Params
from admrl_jax.envs.base import raw_units
from admrl_jax.judging import Case, Judge, keys_of, radius_within
from admrl_jax.stats.checks import expected_lowest, is_flat
from admrl_jax.suites import STANDARD, Member, Suite, check_suite
from admrl_jax.training import Setup

TRANSFERRED, REFINED = "transferred", "refined"
"""Names beside those of members: the best attacker that was found elsewhere, and what became of it."""
CONTINUED = ", continued"
"""Ends the name, but for a number, of an attacker that got more updates because it had still gained."""
AVERAGE_RATE = 0.3
"""Of the newest in the running mean of an attacker's parameters, which is judged beside it."""
MIN_UPDATES = 12
"""Training is not found to be flat before."""
ROUNDS = 3
"""More training, at most, of a worst attacker that still gains."""
MORE_UPDATES = 2
"""Times as many as it had, in each."""
SMOOTHED = 3
"""Updates over which the return of an attacker's batches is averaged: one batch may be lucky."""


class Found(NamedTuple):
    """An attacker, and what it left.

    Attributes:
        member: its member.
        origin: where it started.
        params: of the attack.
        validation: `[N, K]` returns on the validation tasks.
    """

    member: str
    origin: str
    params: Params
    validation: np.ndarray

    @property
    def left(self) -> float:
        """Mean return on the validation tasks."""
        return float(np.mean(self.validation))


class MemberResult(NamedTuple):
    """What a member achieved.

    Attributes:
        best: its strongest attacker by validation.
        starts: what each start left after its trial, `[starts]`; without a trial what every candidate left at
            the end, of which a start has up to three, and those that it went on from.
        effort: `[T]` return against updates, the lowest among the starts that went on: of the batches of the
            last few updates; of an attack that learns offline, on the tasks that rank. Of a member whose
            starts are drawn it is against starts: the lowest of so many of them, on the validation tasks,
            whichever they are (`expected_lowest`). Empty where nothing is learned.
        env_steps: control steps simulated in training.
    """

    best: Found
    starts: np.ndarray
    effort: np.ndarray
    env_steps: int


class SuiteResult(NamedTuple):
    """What a suite found at one radius.

    Attributes:
        members: by name; those that were trained on too.
        finals: returns `[N, K]` on the final tasks that the strongest members left, by name.
        worst: name of the one that left least there.
        clean: `[N, K]` returns without attack on the test tasks.
        attacked: `[N, K]` returns under the worst.
        tasks: the test tasks, leading axis `N`.
    """

    members: dict[str, MemberResult]
    finals: dict[str, np.ndarray]
    worst: str
    clean: np.ndarray
    attacked: np.ndarray
    tasks: Any


def continued(entry: str, number: int) -> str:
    """The name of an attacker after its `number`th round of more updates; `entry` is any name before that."""
    return f"{entry.split(CONTINUED)[0]}{CONTINUED} {number}"


def is_from_elsewhere(entry: str) -> bool:
    """Whether an attacker, or the one that it went on from, was found in another case."""
    return entry.startswith((TRANSFERRED, REFINED))


def finalists(members: Mapping[str, MemberResult], count: int) -> list[str]:
    """The strongest by validation, strongest first; one that is another one once more takes no place."""
    chosen: list[str] = []
    for name in sorted(members, key=lambda name: members[name].best.left):
        mine = members[name].best.validation
        if not any(np.array_equal(mine, members[other].best.validation) for other in chosen):
            chosen.append(name)
    return chosen[:count]


class SuiteRunner:
    """Runs a suite against victims that share a setup; every program is compiled once."""

    def __init__(self, suite: Suite, setup: Setup, lanes: Lanes = Lanes()):
        """Builds the members' attacks.

        Args:
            suite: members and effort.
            setup: environment, policy and learner of the victims, and how many episodes they adapt on.
            lanes: how attackers and blocks of tasks are computed.

        Raises:
            ConfigError: see `check_suite`; or a member cannot learn from so few steps.
        """
        check_suite(suite)
        sizes = dataclasses.replace(setup.sampling, num_tasks=suite.num_tasks)
        self.suite, self.setup, self.lanes = suite, setup._replace(sampling=sizes), lanes
        self.attacks: dict[str, Attack] = {}
        self.trainings: dict[str, AttackerTraining] = {}
        victim, collector = setup.victim, clean_collector(self.setup)
        for member in suite.members:
            spec = attack_spec(member.attack)
            config = dataclasses.replace(spec.config(), **dict(member.settings))
            if spec.make_trainer is None:
                self.attacks[member.name] = make_attack(member.attack, victim, config)
                continue
            trainer = make_attack_trainer(member.attack, victim, config)
            self._check_batch(member, trainer)
            self.attacks[member.name] = trainer.attack
            training = AttackerTraining(trainer, self.setup, lanes=lanes, collect_clean=collector)
            self.trainings[member.name] = training
        self.judge = Judge(suite, self.setup, self.attacks, lanes)

    def _check_batch(self, member: Member, trainer: AttackTrainer) -> None:
        try:
            trainer.check_batch(self.setup.sampling.num_trajectories, self.setup.env.horizon)
        except ConfigError as error:
            raise ConfigError(f"{member.name}: {error}") from error

    def takes(self, member: Member, case: Case) -> bool:
        """Whether a member can attack in a case."""
        threat = self.attacks[member.name].threat
        fits = radius_within(threat, case, self.setup.env.obs_size) is not None
        return fits and case.side in member.sides

    def run(
        self,
        case: Case,
        *,
        seeds: Mapping[str, Sequence[tuple[str, Params]]] | None = None,
        done: Mapping[str, MemberResult] | None = None,
        on_member: Callable[[MemberResult], None] = lambda result: None,
    ) -> dict[str, MemberResult]:
        """Attacks a victim with every member.

        Args:
            case: the victim and the budget.
            seeds: attackers that were found elsewhere, by member, each with its origin in words; the member
                goes on from them, and they are judged as they are.
            done: what members have achieved in this case before.
            on_member: called as members are done.
        """
        results: dict[str, MemberResult] = dict(done or {})
        clean = self.judge.clean(case)
        for member in self.suite.members:
            if member.name in results or not self.takes(member, case):
                continue
            earlier = [results[name].best for name in member.goes_on_from if name in results]
            given = [(found.member, found.params) for found in sorted(earlier, key=lambda found: found.left)]
            given += list((seeds or {}).get(member.name, []))
            results[member.name] = self.run_member(case, member, given, clean=clean)
            on_member(results[member.name])
        return results

    def run_member(
        self,
        case: Case,
        member: Member,
        seeds: Sequence[tuple[str, Params]] = (),
        *,
        clean: float,
        again: int = 0,
    ) -> MemberResult:
        """What one member achieves.

        Args:
            case: the victim and the budget.
            member: of the suite.
            seeds: where it goes on from, with their origins.
            clean: return of the victim without attack.
            again: how often it has been run in this case before; it then meets other batches.
        """
        if member.name not in self.trainings:
            candidates, starts, effort, env_steps = [("-", ())], None, np.zeros(0), 0
        else:
            tried = self._train(case, member, seeds, clean, again)
            candidates, starts, effort, env_steps = tried
        scores = self.judge.validation(case, member.name, [params for _, params in candidates])
        means = scores.mean(axis=(1, 2))
        best = int(np.argmin(means))
        if member.is_drawn:
            own = means.size - len(seeds)
            effort = np.minimum(expected_lowest(means[:own]), np.min(means[own:], initial=np.inf))
        found = Found(member.name, candidates[best][0], jax.device_get(candidates[best][1]), scores[best])
        return MemberResult(found, means if starts is None else starts, effort, env_steps)

    def run_further(
        self, case: Case, entry: str, so_far: MemberResult, *, clean: float, number: int
    ) -> MemberResult:
        """What an attacker achieves with more updates; with more starts, where these are drawn.

        Args:
            case: the victim and the budget.
            entry: its name.
            so_far: what it has achieved.
            clean: return of the victim without attack.
            number: of the round, from 1.
        """
        member = next(member for member in self.suite.members if member.name == so_far.best.member)
        if member.is_drawn:
            longer = dataclasses.replace(member, starts=MORE_UPDATES * member.starts)
        else:
            updates = max(MIN_UPDATES, MORE_UPDATES * len(so_far.effort))
            longer = dataclasses.replace(member, starts=1, kept=1, trial_updates=0, updates=updates)
        return self.run_member(case, longer, [(entry, so_far.best.params)], clean=clean, again=number)

    def judge_others(self, case: Case, others: Sequence[Found]) -> list[Found]:
        """What attackers leave here that were found elsewhere, on the validation tasks."""
        judged = {}
        for member in dict.fromkeys(found.member for found in others):
            mine = [number for number, found in enumerate(others) if found.member == member]
            scores = self.judge.validation(case, member, [others[number].params for number in mine])
            judged |= dict(zip(mine, scores, strict=True))
        return [found._replace(validation=judged[number]) for number, found in enumerate(others)]

    def _train(
        self,
        case: Case,
        member: Member,
        seeds: Sequence[tuple[str, Params]],
        clean: float,
        again: int,
    ) -> tuple[list[tuple[str, Params]], np.ndarray | None, np.ndarray, int]:
        """`(candidates, starts, effort, env_steps)`; those that it started from are among the candidates."""
        training = self.trainings[member.name]
        key = jax.random.fold_in(keys_of(case).train, zlib.crc32(member.name.encode()) % 2**31)
        key = jax.random.fold_in(key, again) if again else key
        # Whoever takes all from a batch does not go on from anywhere.
        given = () if training.trainer.is_of_batch else seeds[: member.starts]
        first = [params for _, params in given]
        states = training.start(
            key,
            [self.judge.radius(member.name, case)] * member.starts,
            units=case.units,
            inputs=case.inputs,
            sides=SIDES[case.side],
            start_from=jax.tree.map(lambda *x: jnp.stack(x), *first) if first else None,
        )
        origins = [origin for origin, _ in given]
        origins += [f"start {number}" for number in range(member.starts - len(origins))]
        starts, taken, batches = None, 0, []
        for number in range(member.trial_updates):
            states, metrics = training.step(states, case.meta_params, key, number)
            batches.append(metrics["train/post_return"])
            taken += member.starts
        if member.trial_updates and member.starts > member.kept:
            starts = self.judge.rank(case, member.name, self._params(training, states))
            chosen = np.argsort(starts)[: member.kept]
            states = jax.tree.map(lambda x: x[chosen], states)
            origins = [origins[number] for number in chosen]
            batches = [batch[chosen] for batch in batches]
        best = average = self._params(training, states)
        least, effort = np.full(len(origins), np.inf), []
        for number in range(member.trial_updates, member.trial_updates + member.updates):
            states, metrics = training.step(states, case.meta_params, key, number)
            taken += len(origins)
            left, params = metrics["train/post_return"], self._params(training, states)
            average = [_between(old, new) for old, new in zip(average, params, strict=True)]
            if training.trainer.is_offline:
                left = self.judge.rank(case, member.name, params)
                best = [params[i] if left[i] < least[i] else best[i] for i in range(len(best))]
                least = np.minimum(least, left)
            else:
                batches.append(left)
                left = np.mean(batches[-SMOOTHED:], axis=0)
            effort.append(float(np.min(left)))
            if len(effort) >= MIN_UPDATES and is_flat(effort, clean):
                break
        if not training.trainer.is_offline:
            # A batch is a noisy judge, and steps that are large enough to get anywhere overshoot.
            newest = self._params(training, states) + average
            best = _unstack(states.strongest, len(origins)) + [*map(training.trainer.settled, newest)]
            origins = origins * 3
        candidates = [*zip(origins, best, strict=True), *seeds]
        phases = self.setup.sampling.num_adapt_steps + 1
        each = self.suite.num_tasks * self.setup.sampling.num_trajectories * phases * self.setup.env.horizon
        if training.trainer.is_offline and not training.trainer.is_of_batch:
            taken = member.trial_updates + len(effort)
        return candidates, starts, np.asarray(effort), taken * each

    def _params(self, training: AttackerTraining, states: AttackerState) -> list[Params]:
        """Those that attack now, one by one."""
        count = states.step.shape[0]
        return _unstack(jax.vmap(training.trainer.params)(states.trainer), count)


def _between(average: Params, newest: Params) -> Params:
    """A running mean over the last few updates."""
    return jax.tree.map(lambda old, new: old + AVERAGE_RATE * (new - old), average, newest)


def _unstack(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


def attack_suite(
    setup: Setup,
    meta_params: Params,
    key: jax.Array,
    *,
    radius: float,
    suite: Suite = STANDARD,
    units: Units | None = None,
    inputs: Units = Units(),
    side: str = "both",
    lanes: Lanes = Lanes(),
) -> SuiteResult:
    """The worst that a suite does to a victim; `SuiteRunner` serves several victims and radii.

    Where the worst attacker still gained at its last updates it is trained on, up to `ROUNDS` times.
    (`experiments.attack` also tries attackers of other victims.)

    Args:
        setup: environment, policy and learner of the victim, and how many episodes it adapts on.
        meta_params: of the victim.
        key: of all randomness.
        radius: L2 radius of the budget; attacks of another norm get the radius that stays within it.
        suite: members and effort.
        units: of the budget; observations as they are by default.
        inputs: units of clean observations, in which networks read them.
        side: data under attack: both, query or support.
        lanes: how attackers and blocks of tasks are computed.

    Raises:
        ConfigError: see `check_suite`.
    """
    runner = SuiteRunner(suite, setup, lanes)
    case = Case(meta_params, key, radius, raw_units(setup.env) if units is None else units, inputs, side)
    members = runner.run(case)
    best = {name: members[name].best for name in finalists(members, suite.finalists)}
    finals = {name: runner.judge.final(case, found.member, found.params) for name, found in best.items()}
    clean = runner.judge.clean(case)
    for number in range(1, ROUNDS + 1):
        worst = _worst(finals)
        effort = members[worst].effort
        if not effort.size or is_flat(effort.tolist(), clean):
            break
        entry = continued(worst, number)
        members[entry] = runner.run_further(case, worst, members[worst], clean=clean, number=number)
        more = members[entry].best
        finals[entry] = runner.judge.final(case, more.member, more.params)
        if _worst(finals) == worst:
            break
    worst, best = _worst(finals), {name: members[name].best for name in finals}
    attacked = runner.judge.test(case, best[worst].member, best[worst].params)
    tasks = jax.tree.map(np.asarray, runner.judge.test_tasks(case))
    return SuiteResult(members, finals, worst, runner.judge.test(case), attacked, tasks)


def _worst(finals: Mapping[str, np.ndarray]) -> str:
    return min(finals, key=lambda name: float(finals[name].mean()))
