"""Many attackers against one victim: the lowest return that any of them leaves is its robustness.

Attackers are chosen on validation tasks, spread evenly, and reported on other tasks. A number that comes out
of here is an upper bound: a stronger attacker may yet be found.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacking import AttackerTraining, History
from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.registry import CLEAN, attack_spec, make_attack, make_attack_trainer
from admrl_jax.attacks.threat import Budget, ThreatModel, Units
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Params, Task
from admrl_jax.envs.base import spread_tasks
from admrl_jax.evaluation import evaluate
from admrl_jax.sampling import expose
from admrl_jax.training import Setup


@dataclass(frozen=True, kw_only=True)
class Member:
    """An attacker of a suite."""

    name: str
    """In tables; every member has its own."""
    attack: str
    """Registered name."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of the attack that differ from its defaults."""
    starts: int = 1
    """Attackers of this kind, from as many starts."""
    updates: int = 1
    """Of each, where the attack learns."""
    goes_on_from: tuple[str, ...] = ()
    """Members whose best attackers this one starts from; their parameters must be of the same shape."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Members, and how much is spent on them."""

    members: tuple[Member, ...]
    num_tasks: int = 10
    """Per update of an attacker."""
    num_trajectories: int = 20
    """Episodes per task in an update."""
    validation_tasks: int = 10
    """On which attackers are chosen."""
    validation_trajectories: int = 10
    """Episodes per validation task."""
    kept: int = 4
    """Starts of a member that are validated in full; the others were weaker on fewer episodes."""
    test_tasks: int = 40
    """On which the chosen ones are reported."""
    test_trajectories: int = 10
    """Episodes per test task."""


class Found(NamedTuple):
    """An attacker, and what it left.

    Attributes:
        member: its member.
        start: its number among those of the member.
        params: of the attack.
        validation: mean return on the validation tasks.
    """

    member: str
    start: int
    params: Params
    validation: float


class MemberResult(NamedTuple):
    """What a member achieved.

    Attributes:
        best: its strongest attacker by validation.
        starts: `[starts]` what each start left, by the tasks that ranked them.
        history: of its training; None where nothing is learned.
        seconds: of everything, compilation included.
        env_steps: control steps simulated in training.
    """

    best: Found
    starts: np.ndarray
    history: History | None
    seconds: float
    env_steps: int


class SuiteResult(NamedTuple):
    """What a suite found at one radius.

    Attributes:
        radius: of the budget.
        members: by name.
        worst: name of the member with the lowest validation return.
        clean: `[N, K]` returns without attack on the test tasks.
        attacked: `[N, K]` returns under the worst.
        tasks: the test tasks, leading axis `N`.
    """

    radius: float
    members: dict[str, MemberResult]
    worst: str
    clean: np.ndarray
    attacked: np.ndarray
    tasks: Any


def radius_within(threat: ThreatModel, radius: float, obs_size: int) -> float | None:
    """The radius at which an attack stays inside the L2 ball of `radius`; None if none does."""
    return {"l2": radius, "linf": radius / obs_size**0.5, "none": None}[threat.norm]


class SuiteRunner:
    """Runs a suite against victims that share a setup; every program is compiled once."""

    def __init__(self, suite: Suite, setup: Setup, axis: TaskAxis = TaskAxis()):
        """Builds the members' attacks.

        Args:
            suite: members and effort.
            setup: environment, policy and learner of the victims; its sampling's sizes are not used.
            axis: how tasks are computed.

        Raises:
            ConfigError: a member's attack or one of its settings is not known, or goes on from no member.
        """
        check_members(suite)
        sizes = dataclasses.replace(
            setup.sampling, num_tasks=suite.num_tasks, num_trajectories=suite.num_trajectories
        )
        self.suite, self.axis = suite, axis
        self.setup = setup._replace(sampling=sizes)
        self.attacks: dict[str, Attack] = {}
        self.trainings: dict[str, AttackerTraining] = {}
        victim = setup.victim
        for member in suite.members:
            spec = attack_spec(member.attack)
            config = dataclasses.replace(spec.config(), **dict(member.settings))
            if spec.make_trainer is None:
                self.attacks[member.name] = make_attack(member.attack, victim, config)
                continue
            trainer = make_attack_trainer(member.attack, victim, config)
            self.attacks[member.name] = trainer.attack
            self.trainings[member.name] = AttackerTraining(trainer, self.setup, axis)
        self.attacks[CLEAN] = make_attack(CLEAN, victim)
        self._programs: dict[tuple[str, int], Callable] = {}

    def run(
        self,
        meta_params: Params,
        key: jax.Array,
        *,
        radius: float,
        units: Units = Units(),
        inputs: Units = Units(),
        transfer: Mapping[str, list[Params]] | None = None,
        on_member: Callable[[str, MemberResult], None] = lambda name, result: None,
    ) -> SuiteResult:
        """Attacks one victim at one radius.

        Args:
            meta_params: of the victim.
            key: of all randomness.
            radius: L2 radius of the budget; attacks of another norm get the radius that stays within it.
            units: of the budget.
            inputs: units of clean observations, in which networks read them.
            transfer: attackers that were found elsewhere, by member; they are judged, and gone on from.
            on_member: called as members are done.
        """
        key_train, key_rank, key_validate, _, _ = jax.random.split(key, 5)
        suite, env = self.suite, self.setup.env
        tasks = spread_tasks(env, key_rank, suite.validation_tasks)
        results: dict[str, MemberResult] = {}
        for number, member in enumerate(suite.members):
            if radius_within(self.attacks[member.name].threat, radius, env.obs_size) is None:
                continue
            began = time.perf_counter()
            budget = self._budget(member.name, radius, units)
            key_member = jax.random.fold_in(key_train, number)
            moved = list((transfer or {}).get(member.name, []))
            earlier = [results[name].best for name in member.goes_on_from if name in results]
            seeds = [found.params for found in sorted(earlier, key=lambda found: found.validation)] + moved
            candidates, history = self._candidates(member, meta_params, key_member, budget, inputs, seeds)

            def judge(
                chosen: list[Params],
                key: jax.Array,
                episodes: int,
                name: str = member.name,
                budget: Budget = budget,
            ) -> np.ndarray:
                returns = self.judge(name, meta_params, chosen, key, tasks, budget, episodes)
                return returns.mean(axis=(1, 2))

            episodes = suite.validation_trajectories
            order = np.arange(len(candidates))
            if len(candidates) > suite.kept:
                ranks = judge(candidates, key_rank, max(1, episodes // 3))
                order = np.argsort(ranks)[: suite.kept]
            validated = judge([candidates[i] for i in order], key_validate, episodes)
            starts = validated if len(candidates) <= suite.kept else ranks
            best = int(np.argmin(validated))
            found = Found(member.name, int(order[best]), candidates[order[best]], float(validated[best]))
            seconds = time.perf_counter() - began
            results[member.name] = MemberResult(found, starts, history, seconds, self._env_steps(member))
            on_member(member.name, results[member.name])
        worst = min(results, key=lambda name: results[name].best.validation)
        clean, attacked, tasks = self.test(meta_params, key, results[worst].best, radius=radius, units=units)
        return SuiteResult(radius, results, worst, clean, attacked, tasks)

    def judge_transfer(
        self,
        meta_params: Params,
        key: jax.Array,
        found: Mapping[str, Found],
        *,
        radius: float,
        units: Units = Units(),
    ) -> dict[str, float]:
        """Validation returns that attackers found elsewhere leave a victim, on the tasks of `run`.

        Args:
            meta_params: of the victim.
            key: the one that `run` was given.
            found: by a name of the caller's.
            radius: L2 radius of the budget.
            units: of the budget.
        """
        _, key_rank, key_validate, _, _ = jax.random.split(key, 5)
        tasks = spread_tasks(self.setup.env, key_rank, self.suite.validation_tasks)
        left = {}
        for name, attacker in found.items():
            budget = self._budget(attacker.member, radius, units)
            episodes = self.suite.validation_trajectories
            arguments = (meta_params, [attacker.params], key_validate, tasks, budget, episodes)
            left[name] = float(self.judge(attacker.member, *arguments).mean())
        return left

    def test(
        self, meta_params: Params, key: jax.Array, found: Found, *, radius: float, units: Units = Units()
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """`(clean [N, K], attacked [N, K], tasks)`: returns on test tasks that nothing was chosen on."""
        key_tasks, key_test = jax.random.split(key, 5)[3:]
        tasks = jax.vmap(self.setup.env.sample_task)(jax.random.split(key_tasks, self.suite.test_tasks))
        episodes = self.suite.test_trajectories
        nothing = Budget(jnp.zeros(()), units)
        budget = self._budget(found.member, radius, units)
        attacked = self.judge(found.member, meta_params, [found.params], key_test, tasks, budget, episodes)
        clean = self.judge(CLEAN, meta_params, [()], key_test, tasks, nothing, episodes)
        return clean[0], attacked[0], jax.tree.map(np.asarray, tasks)

    def _budget(self, member: str, radius: float, units: Units) -> Budget:
        within = radius_within(self.attacks[member].threat, radius, self.setup.env.obs_size)
        assert within is not None, member
        return Budget(jnp.asarray(within, float), units)

    def judge(
        self,
        member: str,
        meta_params: Params,
        candidates: list[Params],
        key: jax.Array,
        tasks: Task,
        budget: Budget,
        num_trajectories: int,
    ) -> np.ndarray:
        """Query returns `[C, N, K]` that attackers of one member leave, all on the same tasks and episodes."""
        program = self._programs.get((member, num_trajectories))
        if program is None:
            program = self._programs[member, num_trajectories] = self._judge_program(member, num_trajectories)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *candidates)
        return np.stack(
            [
                np.asarray(
                    program(meta_params, jax.tree.map(lambda x, i=i: x[i], stacked), key, tasks, budget)
                )
                for i in range(len(candidates))
            ]
        )

    def _judge_program(self, member: str, num_trajectories: int) -> Callable:
        sampling = dataclasses.replace(self.setup.sampling, num_trajectories=num_trajectories)
        setup, attack = self.setup._replace(sampling=sampling), self.attacks[member]

        @jax.jit
        def program(
            meta_params: Params, params: Params, key: jax.Array, tasks: Task, budget: Budget
        ) -> jax.Array:
            count = jax.tree.leaves(tasks)[0].shape[0]
            exposure = expose(attack, params, budget, num_tasks=count)
            result = evaluate(meta_params, key, tasks, exposure, setup=setup, axis=self.axis)
            # Whoever breaks the budget has not attacked.
            return jnp.where(result.budget_excess > 0, jnp.inf, result.returns[:, -1])

        return program

    def _candidates(
        self,
        member: Member,
        meta_params: Params,
        key: jax.Array,
        budget: Budget,
        inputs: Units,
        seeds: list[Params],
    ) -> tuple[list[Params], History | None]:
        """Attackers of a member, those that it started from among them."""
        if member.name not in self.trainings:
            return [()], None
        training, first = self.trainings[member.name], seeds[: member.starts]
        states, history = training.train(
            meta_params,
            key,
            radii=[float(budget.radius)],
            steps=member.updates,
            restarts=member.starts,
            units=budget.units,
            inputs=inputs,
            start_from=jax.tree.map(lambda *x: jnp.stack(x), *first) if first else None,
        )
        last = jax.vmap(jax.vmap(training.trainer.params))(states.trainer)
        ends = [states.strongest] if training.trainer.is_offline else [states.strongest, last]
        found = [jax.tree.map(lambda x, i=i: x[0, i], end) for end in ends for i in range(member.starts)]
        return found + seeds, history

    def _env_steps(self, member: Member) -> int:
        if member.name not in self.trainings:
            return 0
        sampling = self.setup.sampling
        phases = sampling.num_adapt_steps + 1
        per_update = sampling.num_tasks * sampling.num_trajectories * phases * self.setup.env.horizon
        is_offline = self.trainings[member.name].trainer.is_offline
        return member.updates * per_update * (1 if is_offline else member.starts)


def check_members(suite: Suite) -> None:
    """Refuses members that cannot be built.

    Raises:
        ConfigError: naming the member and what is accepted.
    """
    names = [member.name for member in suite.members]
    for number, member in enumerate(suite.members):
        spec = attack_spec(member.attack)
        known = {field.name for field in dataclasses.fields(spec.config)}
        for name, _ in member.settings:
            if name not in known:
                accepted = ", ".join(sorted(known)) or "none"
                raise ConfigError(f"{member.name}: {name!r} is no setting of it; accepted: {accepted}")
        if names.count(member.name) > 1:
            raise ConfigError(f"members: {member.name!r} is there twice; names must differ")
        for name in member.goes_on_from:
            if name not in names[:number]:
                raise ConfigError(f"{member.name}: goes_on_from: {name!r} is no member before it")


def untrained(*attacks: str) -> tuple[Member, ...]:
    """Members that learn nothing, by their attacks' names."""
    return tuple(Member(name=name, attack=name) for name in attacks)


FITS = ("fit query", "fit both", "fit adaptation")
"""Members that are fitted offline; all read the task."""


def offline_fits(starts: int, steps: int) -> tuple[Member, ...]:
    """Counter-action fits on query states, on support states too, and through the adaptation."""
    kinds = dict(zip(FITS, ("query", "both", "adaptation"), strict=True))
    return tuple(
        Member(
            name=name,
            attack="counter_action",
            settings=(("through", through), ("knows_task", True), ("num_steps", steps)),
            starts=starts,
        )
        for name, through in kinds.items()
    )


SIMPLE = untrained(
    "l2_noise", "corner_noise", "stuck_sensor", "sensor_dropout", "sensor_bias", "sensor_delay"
)
GRADIENT = (
    *untrained("fgsm", "pgd", "pgd_linf", "pgd_counter"),
    Member(name="pgd 10", attack="pgd", settings=(("steps", 10), ("step_share", 0.3))),
    Member(name="pgd_counter 10", attack="pgd_counter", settings=(("steps", 10), ("step_share", 0.3))),
)
QUICK = Suite(
    members=(
        *untrained("l2_noise", "fgsm", "pgd", "pgd_counter"),
        *offline_fits(4, 200),
        Member(name="pipeline", attack="pipeline", starts=2, updates=5, goes_on_from=FITS),
    ),
    num_tasks=4,
    num_trajectories=10,
    validation_tasks=6,
    validation_trajectories=6,
    test_tasks=20,
)
STANDARD = Suite(
    members=(
        *SIMPLE,
        *GRADIENT,
        Member(name="snoop", attack="snoop", starts=2),
        Member(name="critic", attack="critic", starts=2),
        *offline_fits(16, 500),
        Member(name="adgan", attack="adgan", starts=2, updates=20),
        Member(name="actor", attack="actor", starts=2, updates=20),
        Member(name="director", attack="director", starts=2, updates=15),
        Member(name="pipeline", attack="pipeline", starts=3, updates=20, goes_on_from=FITS),
    ),
)
CLAIM = dataclasses.replace(
    STANDARD,
    members=tuple(
        dataclasses.replace(member, starts=max(5, 2 * member.starts), updates=2 * member.updates)
        if attack_spec(member.attack).make_trainer
        else member
        for member in STANDARD.members
    ),
    kept=6,
    validation_tasks=20,
    test_tasks=100,
)
SUITES = {"quick": QUICK, "standard": STANDARD, "claim": CLAIM}
"""By effort: about a minute, ten minutes and an hour for a victim and a radius of HalfCheetah-Dir."""


def attack_suite(
    setup: Setup,
    meta_params: Params,
    key: jax.Array,
    *,
    radius: float,
    suite: Suite = STANDARD,
    units: Units = Units(),
    inputs: Units = Units(),
    axis: TaskAxis = TaskAxis(),
) -> SuiteResult:
    """The worst that a suite does to a victim; see `SuiteRunner`, which serves several victims and radii."""
    runner = SuiteRunner(suite, setup, axis)
    return runner.run(meta_params, key, radius=radius, units=units, inputs=inputs)
