"""Training an attacker against a frozen policy: one step of it, and the whole of it with restarts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget, Sides, Units
from admrl_jax.core.lanes import Lanes
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params, where_tree
from admrl_jax.envs.base import raw_units
from admrl_jax.sampling import episode_returns, expose
from admrl_jax.training import Setup, sample_and_collect, step_keys


class AttackerState(struct.PyTreeNode):
    """Everything that training an attacker carries.

    Attributes:
        step: `[]` updates done.
        key: base key; never replaced.
        trainer: the trainer's state.
        budget: its radius `[]`.
        strongest: the attack parameters so far whose query batch returned least; later ones may be weaker.
            They are settled, see `AttackTrainer`.
        strongest_return: `[]` mean return of that batch.
        sides: which data it reaches.
    """

    step: jax.Array
    key: jax.Array
    trainer: Any
    budget: Budget
    strongest: Params
    strongest_return: jax.Array
    sides: Sides


class History(NamedTuple):
    """What an attacker's training measured.

    Attributes:
        returns: `[..., T]` mean query return of every update's batch: return against effort.
        metrics: every metric, `[..., T]`.
    """

    returns: np.ndarray
    metrics: dict[str, np.ndarray]


def init_attacker(
    key: jax.Array, trainer_state: Any, *, trainer: AttackTrainer, budget: Budget, sides: Sides = Sides()
) -> AttackerState:
    """An attacker at its start.

    Args:
        key: of its tasks and episodes.
        trainer_state: of `trainer.init`.
        trainer: trains it.
        budget: its radius `[]`.
        sides: which data it reaches.
    """
    return AttackerState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        trainer=trainer_state,
        budget=budget,
        strongest=trainer.settled(trainer.params(trainer_state)),
        strongest_return=jnp.full((), jnp.inf, float),
        sides=jax.tree.map(lambda x: jnp.asarray(x, float), sides),
    )


def attack_collect_step(
    state: AttackerState,
    meta_params: Params,
    *,
    setup: Setup,
    trainer: AttackTrainer,
    axis: TaskAxis = TaskAxis(),
) -> tuple[MetaBatch, Metrics]:
    """The meta-batch of an update, collected from the frozen victim under the present attack."""
    if trainer.is_offline:
        return clean_batch(state.key, state.step, meta_params, setup=setup, axis=axis)
    num_tasks = setup.sampling.num_tasks // axis.num_devices
    radius = state.budget.radius
    if trainer.is_for_all_radii:
        all_tasks = jnp.arange(1, setup.sampling.num_tasks + 1) / setup.sampling.num_tasks
        radius = radius * axis.share(all_tasks)
    support, query = (state.budget._replace(radius=radius * side) for side in state.sides)
    exposure = expose(trainer.attack, trainer.params(state.trainer), support, query, num_tasks=num_tasks)
    return sample_and_collect(meta_params, step_keys(state.key, state.step), exposure, setup, axis)


def clean_batch(
    key: jax.Array, step: jax.Array | int, meta_params: Params, *, setup: Setup, axis: TaskAxis = TaskAxis()
) -> tuple[MetaBatch, Metrics]:
    """The meta-batch from which attackers that learn offline take a step."""
    num_tasks = setup.sampling.num_tasks // axis.num_devices
    exposure = expose(no_attack(), (), Budget(0.0), num_tasks=num_tasks)
    return sample_and_collect(meta_params, step_keys(key, jnp.asarray(step)), exposure, setup, axis)


def attack_update_step(
    state: AttackerState,
    meta_params: Params,
    batch: MetaBatch,
    *,
    trainer: AttackTrainer,
    axis: TaskAxis = TaskAxis(),
) -> tuple[AttackerState, Metrics]:
    """Notes the attack that collected a batch if none before was stronger, then trains it further.

    Clean episodes say nothing about an attack: of one that learns offline the newest counts.
    """
    params = trainer.params(state.trainer)
    key = step_keys(state.key, state.step).opponent
    trained, metrics = trainer.update(state.trainer, key, meta_params, batch, state.budget, axis)
    state = state.replace(step=state.step + 1, trainer=trained)
    if trainer.is_offline:
        return state.replace(strongest=trainer.settled(trainer.params(trained))), metrics
    taken = batch.query.trajectory
    attacked_return = axis.mean(jnp.mean(episode_returns(taken)))
    # Episodes cut short by a number that is not finite say nothing about an attack either.
    cut_short = axis.total(jnp.sum(taken.diverged)) > 0
    attacked_return = jnp.where(cut_short, jnp.inf, attacked_return)
    is_stronger = attacked_return < state.strongest_return
    new_state = state.replace(
        strongest=where_tree(is_stronger, trainer.settled(params), state.strongest),
        strongest_return=jnp.where(is_stronger, attacked_return, state.strongest_return),
    )
    return new_state, metrics


def attack_step(
    state: AttackerState,
    meta_params: Params,
    *,
    setup: Setup,
    trainer: AttackTrainer,
    axis: TaskAxis = TaskAxis(),
) -> tuple[AttackerState, Metrics]:
    """One update of an attacker against a frozen victim.

    Args:
        state: the attacker's.
        meta_params: the victim's; they adapt under attack.
        setup: the victim's environment, policy and learner, and how much is collected per update.
        trainer: trains the attack.
        axis: how tasks are computed.
    """
    batch, measured = attack_collect_step(state, meta_params, setup=setup, trainer=trainer, axis=axis)
    state, learned = attack_update_step(state, meta_params, batch, trainer=trainer, axis=axis)
    return state, {**measured, **learned}


class AttackerTraining:
    """Trains attackers of victims that share a setup; its programs serve all victims, radii and starts."""

    def __init__(
        self,
        trainer: AttackTrainer,
        setup: Setup,
        axis: TaskAxis = TaskAxis(),
        lanes: Lanes = Lanes(),
        collect_clean: Callable[..., tuple[MetaBatch, Metrics]] | None = None,
    ):
        """See `train_attacker`.

        Args:
            trainer: of the attack.
            setup: the victims' environment, policy and learner, and how much is collected per update.
            axis: how tasks are computed.
            lanes: how attackers are computed.
            collect_clean: `clean_collector(setup, axis)`, to share it; only those that learn offline need it.
        """
        self.trainer, self.setup, self.axis = trainer, setup, axis
        self._start, self._step = lanes.compile(self._start_one), lanes.compile(self._step_one)
        self._collect_clean = collect_clean or clean_collector(setup, axis)
        self._place = lanes.place

    def start(
        self,
        key: jax.Array,
        radii: Sequence[float],
        *,
        units: Units = Units(),
        inputs: Units = Units(),
        sides: Sides = Sides(),
        start_from: Params | None = None,
        numbers: Sequence[int] | None = None,
    ) -> AttackerState:
        """Attackers at their start, leading axis `[L]`, one for every radius.

        Args:
            key: of starts, tasks and episodes; all attackers meet the same tasks, but for those that learn
                from their batch alone.
            radii: `[L]`.
            units: of the budgets.
            inputs: units of clean observations.
            sides: which data they reach.
            start_from: attack parameters, leading axis `[G]`, from which numbers below `G` go on.
            numbers: `[L]` of their starts, counted by default; those of one number start alike.
        """
        key_start, key_run = jax.random.split(key)
        mine = (jnp.asarray(radii, float), jnp.asarray(range(len(radii)) if numbers is None else numbers))
        return self._start(mine, (key_start, key_run, units, inputs, sides, start_from))

    def step(
        self, states: AttackerState, meta_params: Params, key: jax.Array, number: int
    ) -> tuple[AttackerState, dict[str, np.ndarray]]:
        """One update of all attackers; metrics `[L]`.

        Args:
            states: leading axis `[L]`.
            meta_params: of the victim.
            key: the one that `start` was given.
            number: updates done.
        """
        key_run, own, shared = jax.random.split(key)[1], None, None
        if self.trainer.is_of_batch:
            keys = (jax.random.fold_in(key_run, lane) for lane in range(states.step.shape[0]))
            batches = [self._collect_clean(one, number, meta_params) for one in keys]
            own = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        elif self.trainer.is_offline:
            shared = self._place(self._collect_clean(key_run, number, meta_params))
        states, metrics = self._step((states, own), (meta_params, shared))
        return states, {name: np.asarray(value) for name, value in metrics.items()}

    def _start_one(self, mine: tuple, shared: tuple) -> AttackerState:
        (radius, number), (key_start, key_run, units, inputs, sides, start_from) = mine, shared
        trainer, fresh_key = self.trainer, jax.random.fold_in(key_start, number)
        state = trainer.init(fresh_key, inputs)
        if start_from is not None:
            count = jax.tree.leaves(start_from)[0].shape[0]
            given = jax.tree.map(lambda x: x[number % count], start_from)
            state = where_tree(number < count, trainer.init(fresh_key, inputs, given), state)
        return init_attacker(key_run, state, trainer=trainer, budget=Budget(radius, units), sides=sides)

    def _step_one(self, mine: tuple, shared: tuple) -> tuple[AttackerState, Metrics]:
        (state, own), (meta_params, clean), axis = mine, shared, self.axis
        collected = (
            own
            or clean
            or attack_collect_step(state, meta_params, setup=self.setup, trainer=self.trainer, axis=axis)
        )
        batch, measured = collected
        state, learned = attack_update_step(state, meta_params, batch, trainer=self.trainer, axis=axis)
        return state, {**measured, **learned}


def clean_collector(
    setup: Setup, axis: TaskAxis = TaskAxis()
) -> Callable[[jax.Array, jax.Array | int, Params], tuple[MetaBatch, Metrics]]:
    """`clean_batch` of a setup, compiled."""
    return jax.jit(lambda key, step, meta_params: clean_batch(key, step, meta_params, setup=setup, axis=axis))


def train_attacker(
    trainer: AttackTrainer,
    meta_params: Params,
    key: jax.Array,
    *,
    setup: Setup,
    radii: Sequence[float],
    steps: int,
    restarts: int = 1,
    units: Units | None = None,
    inputs: Units = Units(),
    sides: Sides = Sides(),
    start_from: Params | None = None,
    axis: TaskAxis = TaskAxis(),
    lanes: Lanes = Lanes(),
    on_step: Callable[[int, dict[str, np.ndarray]], None] = lambda step, metrics: None,
) -> tuple[Params, History]:
    """Trains attackers of one victim, for every radius from every start, all with one program.

    Args:
        trainer: of the attack, see `make_attack_trainer`.
        meta_params: of the victim.
        key: of starts, tasks and episodes; attackers of all radii and starts meet the same tasks, but for
            those that learn from their batch alone.
        setup: the victim's environment, policy and learner, and how much is collected per update.
        radii: of the budgets.
        steps: updates of each attacker.
        restarts: starts per radius.
        units: of the budgets; observations as they are by default.
        inputs: units of clean observations, in which networks read them.
        sides: which data they reach; support and query by default.
        start_from: attack parameters, leading axis `[G]`, from which the first `G` starts of every radius go
            on; the others are random.
        axis: how tasks are computed.
        lanes: how attackers are computed: one after the other by default.
        on_step: called with `(updates done, metrics [R, restarts])`.

    Returns:
        `(params, history)`: the strongest parameters of each, leading axes `[R, restarts]`, by the return
        of their own training batches (of an attack that learns offline, the newest), and what was measured,
        `[R, restarts, steps]`. Judge them on new tasks with `evaluate`.

    Raises:
        ConfigError: there is no step.
    """
    if steps < 1:
        raise ConfigError(f"steps: {steps} is not accepted; accepted: 1 or more")
    training = AttackerTraining(trainer, setup, axis, lanes)
    shape = (len(radii), restarts)
    states = training.start(
        key,
        [radius for radius in radii for _ in range(restarts)],
        units=raw_units(setup.env) if units is None else units,
        inputs=inputs,
        sides=sides,
        start_from=start_from,
        numbers=[*range(restarts)] * len(radii),
    )
    rows: list[dict[str, np.ndarray]] = []
    for number in range(steps):
        states, metrics = training.step(states, meta_params, key, number)
        rows.append({name: value.reshape(shape) for name, value in metrics.items()})
        on_step(number + 1, rows[-1])
    measured = {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}
    strongest = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), states.strongest)
    return strongest, History(measured["train/post_return"], measured)
