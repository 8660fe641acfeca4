"""What attackers leave of a victim's return: on the tasks that choose among them, and on those that report.

Attackers are chosen on tasks that are spread evenly, and tested on tasks that are drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.noise import blindfold
from admrl_jax.attacks.registry import CLEAN, make_attack
from admrl_jax.attacks.threat import SIDES, Budget, ThreatModel, Units
from admrl_jax.core.lanes import Lanes
from admrl_jax.core.types import Params, Task
from admrl_jax.envs.base import spread_tasks
from admrl_jax.evaluation import evaluate
from admrl_jax.sampling import expose
from admrl_jax.suites import Suite
from admrl_jax.training import Setup

BLIND = "blind"
"""Name of the reference that sees the mean observation only."""


class Case(NamedTuple):
    """One victim at one radius.

    Attributes:
        meta_params: of the victim.
        key: of all randomness: cases with one key meet the same tasks and episodes.
        radius: L2 radius of the budget; attacks of another norm get the radius that stays within it.
        units: of the budget.
        inputs: units of clean observations, in which networks read them.
        side: data under attack, one of `SIDES`.
    """

    meta_params: Params
    key: jax.Array
    radius: float
    units: Units = Units()
    inputs: Units = Units()
    side: str = "both"


def radius_within(threat: ThreatModel, case: Case, obs_size: int) -> float | None:
    """The radius at which an attack stays inside the L2 ball of a case; None if none does."""
    movable = max(1, np.count_nonzero(np.broadcast_to(case.units.scale, (obs_size,))))
    return {"l2": case.radius, "linf": case.radius / movable**0.5, "none": None}[threat.norm]


class Keys(NamedTuple):
    """Of a case."""

    train: jax.Array
    rank: jax.Array
    validate: jax.Array
    test_tasks: jax.Array
    test: jax.Array


def keys_of(case: Case) -> Keys:
    """The keys of a case; the first three choose attackers, the last two report them."""
    return Keys(*jax.random.split(case.key, len(Keys._fields)))


class Judge:
    """Measures attackers; every attack's program is compiled once, for all victims, radii and starts."""

    def __init__(self, suite: Suite, setup: Setup, attacks: Mapping[str, Attack], lanes: Lanes = Lanes()):
        """Builds nothing yet.

        Args:
            suite: how many tasks there are of each kind.
            setup: environment, policy and learner of the victims.
            attacks: by the name of their member.
            lanes: how attackers and blocks of tasks are computed.
        """
        self.suite, self.setup, self.lanes = suite, setup, lanes
        self.attacks = {**attacks, CLEAN: make_attack(CLEAN, setup.victim), BLIND: blindfold()}
        self._programs: dict[str, Callable] = {}

    def clean(self, case: Case) -> float:
        """Mean return without attack on the validation tasks."""
        return float(np.mean(self.validation(case._replace(radius=0.0), CLEAN, [()])))

    def validation(self, case: Case, member: str, candidates: Sequence[Params]) -> np.ndarray:
        """Returns `[C, N, K]` that attackers of one member leave on the validation tasks."""
        keys = keys_of(case)
        tasks = spread_tasks(self.setup.env, keys.rank, self.suite.validation_tasks)
        return self.score(case, member, candidates, tasks, keys.validate)

    def final(self, case: Case, member: str, params: Params) -> np.ndarray:
        """Returns `[N, K]` that an attacker leaves on the final tasks."""
        keys = keys_of(case)
        tasks = spread_tasks(self.setup.env, jax.random.fold_in(keys.rank, 1), self.suite.final_tasks)
        key = jax.random.fold_in(keys.validate, 1)
        return self.score(case, member, [params], tasks, key)[0]

    def rank(self, case: Case, member: str, candidates: Sequence[Params]) -> np.ndarray:
        """Mean returns `[C]` on few tasks."""
        keys = keys_of(case)
        tasks = spread_tasks(self.setup.env, keys.rank, self.suite.rank_tasks)
        return self.score(case, member, candidates, tasks, keys.rank).mean(axis=(1, 2))

    def test_tasks(self, case: Case) -> Task:
        """Tasks that nothing was chosen on, leading axis `N`."""
        keys = jax.random.split(keys_of(case).test_tasks, self.suite.test_tasks)
        return jax.vmap(self.setup.env.sample_task)(keys)

    def test(self, case: Case, member: str = CLEAN, params: Params = ()) -> np.ndarray:
        """Returns `[N, K]` on the test tasks, without attack by default.

        Args:
            case: the victim and the budget.
            member: of the suite, `CLEAN`, or `BLIND` for a policy that only sees the mean observation.
            params: of its attack.
        """
        if member == BLIND:
            params = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.setup.env.obs_size,)), case.inputs)
        return self.score(case, member, [params], self.test_tasks(case), keys_of(case).test, is_test=True)[0]

    def score(
        self,
        case: Case,
        member: str,
        candidates: Sequence[Params],
        tasks: Task,
        key: jax.Array,
        *,
        is_test: bool = False,
    ) -> np.ndarray:
        """Query returns `[C, N, K]` that attackers of one member leave, on the same tasks and episodes.

        Whoever breaks the budget has not attacked, and leaves infinity. So does, while attackers are chosen,
        whoever cuts episodes short by numbers that are not finite; in a test such episodes count as they are.
        """
        if member not in self._programs:
            self._programs[member] = self.lanes.compile(self._judge_one(member))
        count, together = jax.tree.leaves(tasks)[0].shape[0], self.suite.tasks_together
        blocks, num = count // together, len(candidates)
        tasks = jax.tree.map(lambda x: x.reshape(blocks, together, *x.shape[1:]), tasks)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(blocks))
        # Every candidate meets every block; blocks of one candidate are neighbours.
        stacked = jax.tree.map(lambda *x: jnp.repeat(jnp.stack(x), blocks, axis=0), *candidates)
        tasks, keys = jax.tree.map(lambda x: jnp.concatenate([x] * num), (tasks, keys))
        shared = (case.meta_params, self.radius(member, case), case.units, SIDES[case.side])
        returns, excess, diverged = map(np.asarray, self._programs[member]((stacked, tasks, keys), shared))
        is_void = excess > 0
        if not is_test and member not in (CLEAN, BLIND):
            is_void |= diverged > 0
        returns = np.where(is_void[:, None, None], np.inf, returns)
        return returns.reshape(num, count, returns.shape[-1])

    def radius(self, member: str, case: Case) -> float:
        """Of a member's budget in a case."""
        within = radius_within(self.attacks[member].threat, case, self.setup.env.obs_size)
        return 0.0 if within is None else within

    def _judge_one(self, member: str) -> Callable[[Any, Any], tuple[jax.Array, jax.Array, jax.Array]]:
        setup, attack = self.setup, self.attacks[member]

        def score(mine: tuple, shared: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
            (params, tasks, key), (meta_params, radius, units, sides) = mine, shared
            support, query = (Budget(radius * side, units) for side in sides)
            exposure = expose(attack, params, support, query, num_tasks=self.suite.tasks_together)
            result = evaluate(meta_params, key, tasks, exposure, setup=setup)
            return result.returns[:, -1], result.budget_excess, result.diverged

        return score
