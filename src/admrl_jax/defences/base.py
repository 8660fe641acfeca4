"""The defence interface: what training faces, and what is added to its loss."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Victim
from admrl_jax.attacks.learned.trainer import accept_any_batch
from admrl_jax.attacks.threat import SIDES, Budget, Units
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params
from admrl_jax.learners.base import LossTerm
from admrl_jax.sampling import Exposure

State = Any
"""Parameters and optimisers of the opponents: a pytree of arrays, `()` where they learn nothing."""


class ExposeFn(Protocol):
    """Chooses what a meta-batch is collected under."""

    def __call__(
        self, state: State, step: jax.Array, units: Units, num_tasks: int, axis: TaskAxis = TaskAxis()
    ) -> Exposure:
        """The attack, its parameters, and a radius for each of this device's tasks.

        So strengths may ramp with the step, only a share of the tasks may be attacked, and parameters may be
        picked from a pool.

        Args:
            state: of the opponents.
            step: `[]` outer steps since the defence began.
            units: of all budgets.
            num_tasks: of all devices together.
            axis: how tasks are computed.
        """
        ...


class UpdateFn(Protocol):
    """Lets the opponents learn."""

    def __call__(
        self,
        state: State,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        units: Units,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[State, Metrics]:
        """`(state, metrics)` after learning from a meta-batch; metrics are named `adversary/...`."""
        ...


class Defence(NamedTuple):
    """How a policy is hardened in training.

    Attributes:
        name: identifies it among compiled programs, settings included.
        init: `(key, inputs) -> State`; `inputs` are the units of clean observations.
        expose: see `ExposeFn`.
        update: see `UpdateFn`; None where opponents learn nothing.
        warmup_steps: updates of the opponents on the frozen policy, before it trains against them.
        loss_term: added to the learner's loss, or None.
        attack_params: `(state) -> Params` of the opponent that was trained along with the policy, for
            transfer attacks; None where there is none.
        trained_attack: registered name of that opponent's attack; empty where there is none.
        check_batch: `(num_trajectories, horizon)` raises `ConfigError` where opponents cannot learn from
            such batches.
    """

    name: str
    init: Callable[[jax.Array, Units], State]
    expose: ExposeFn
    update: UpdateFn | None = None
    warmup_steps: int = 0
    loss_term: LossTerm | None = None
    attack_params: Callable[[State], Params] | None = None
    trained_attack: str = ""
    check_batch: Callable[[int, int], None] = accept_any_batch


class DefenceSpec(NamedTuple):
    """What the registry knows about a defence.

    Attributes:
        name: by which it is found.
        label: name for people.
        config: dataclass of its settings.
        make: `(config, victim) -> Defence`.
    """

    name: str
    label: str
    config: type
    make: Callable[[Any, Victim], Defence]


def expose_all(
    attack: Attack,
    params: Callable[[State], Params],
    *,
    radius: float,
    ramp_steps: int = 0,
    task_share: float = 1.0,
    side: str = "both",
) -> ExposeFn:
    """One attack on support and query data, or on one of them.

    Args:
        attack: observation attack.
        params: `(state) -> Params` of the attack.
        radius: of its budget.
        ramp_steps: steps over which the radius grows to that; 0 starts with it.
        task_share: share of the tasks that are attacked, at least one; the others have radius 0.
        side: data under attack, one of `SIDES`.
    """
    support, query = SIDES[side]

    def expose(
        state: State, step: jax.Array, units: Units, num_tasks: int, axis: TaskAxis = TaskAxis()
    ) -> Exposure:
        num_attacked = jnp.maximum(1, jnp.round(task_share * num_tasks))
        is_attacked = axis.share(jnp.arange(num_tasks)) < num_attacked
        full = jnp.asarray(radius, float) * ramp(step, ramp_steps)
        radii = jnp.where(is_attacked, full, 0.0)
        return Exposure(attack, params(state), Budget(radii * support, units), Budget(radii * query, units))

    return expose


def ramp(step: jax.Array, ramp_steps: int) -> jax.Array | float:
    """Grows from `1 / ramp_steps` to 1 over the first `ramp_steps` steps."""
    return jnp.minimum((step + 1.0) / ramp_steps, 1.0) if ramp_steps else 1.0
