"""Training an attacker against a frozen policy: one step of it, and the whole of it with restarts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params, where_tree
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
        strongest_return: `[]` mean return of that batch.
    """

    step: jax.Array
    key: jax.Array
    trainer: Any
    budget: Budget
    strongest: Params
    strongest_return: jax.Array


class History(NamedTuple):
    """What an attacker's training measured.

    Attributes:
        returns: `[..., T]` mean query return of every update's batch: return against effort.
        metrics: every metric, `[..., T]`.
    """

    returns: np.ndarray
    metrics: dict[str, np.ndarray]


def init_attacker(
    key: jax.Array, trainer_state: Any, *, trainer: AttackTrainer, budget: Budget
) -> AttackerState:
    """An attacker at its start.

    Args:
        key: of its tasks and episodes.
        trainer_state: of `trainer.init`.
        trainer: trains it.
        budget: its radius `[]`.
    """
    return AttackerState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        trainer=trainer_state,
        budget=budget,
        strongest=trainer.params(trainer_state),
        strongest_return=jnp.full((), jnp.inf, float),
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
    num_tasks = setup.sampling.num_tasks // axis.num_devices
    radius = 0.0 * state.budget.radius if trainer.is_offline else state.budget.radius
    budget = state.budget._replace(radius=radius)
    exposure = expose(trainer.attack, trainer.params(state.trainer), budget, num_tasks=num_tasks)
    return sample_and_collect(meta_params, step_keys(state.key, state.step), exposure, setup, axis)


def attack_update_step(
    state: AttackerState,
    meta_params: Params,
    batch: MetaBatch,
    *,
    trainer: AttackTrainer,
    axis: TaskAxis = TaskAxis(),
) -> tuple[AttackerState, Metrics]:
    """Notes the attack that collected a batch if none before was stronger, then trains it further."""
    taken = batch.query.trajectory
    attacked_return = axis.mean(jnp.mean(episode_returns(taken)))
    # Episodes cut short by a number that is not finite say nothing about an attack.
    cut_short = axis.total(jnp.sum(taken.diverged)) > 0
    attacked_return = jnp.where(cut_short, jnp.inf, attacked_return)
    params = trainer.params(state.trainer)
    key = step_keys(state.key, state.step).opponent
    trained, metrics = trainer.update(state.trainer, key, meta_params, batch, state.budget, axis)
    is_stronger = attacked_return < state.strongest_return
    if trainer.is_offline:
        # Clean episodes say nothing about an attack either: the newest counts.
        params, is_stronger, attacked_return = trainer.params(trained), jnp.array(True), jnp.inf
    new_state = state.replace(
        step=state.step + 1,
        trainer=trained,
        strongest=where_tree(is_stronger, params, state.strongest),
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
    """Trains attackers of victims that share a setup; what is compiled serves all victims, radii and starts."""

    def __init__(self, trainer: AttackTrainer, setup: Setup, axis: TaskAxis = TaskAxis()):
        """See `train_attacker`."""
        self.trainer, self.setup, self.axis = trainer, setup, axis
        lanes, keyless = _but_key(0), None
        self._start = jax.jit(
            jax.vmap(self._start_one, in_axes=(0, 0, keyless, keyless, keyless, None, None), out_axes=lanes)
        )
        self._step = jax.jit(self._step_all)

    def train(
        self,
        meta_params: Params,
        key: jax.Array,
        *,
        radii: Sequence[float],
        steps: int,
        restarts: int = 1,
        units: Units = Units(),
        inputs: Units = Units(),
        start_from: Params | None = None,
        on_step: Callable[[int, dict[str, np.ndarray]], None] = lambda step, metrics: None,
    ) -> tuple[AttackerState, History]:
        """`(states, history)` after `steps` updates; see `train_attacker`. Leading axes `[R, restarts]`."""
        key_start, key_run = jax.random.split(key)
        numbers = jnp.tile(jnp.arange(restarts), len(radii))
        repeated = jnp.repeat(jnp.asarray(radii, float), restarts)
        states = self._start(repeated, numbers, key_start, key_run, units, inputs, start_from)
        rows = []
        for number in range(steps):
            states, metrics = self._step(states, meta_params)
            rows.append({name: _grid(value, len(radii), restarts) for name, value in metrics.items()})
            on_step(number + 1, rows[-1])
        history = {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}
        grid = lambda x: x.reshape(len(radii), restarts, *x.shape[1:])  # noqa: E731
        lanes = {name: jax.tree.map(grid, getattr(states, name)) for name in _LANES}
        return states.replace(**lanes), History(history["train/post_return"], history)

    def _start_one(
        self,
        radius: jax.Array,
        number: jax.Array,
        key_start: jax.Array,
        key_run: jax.Array,
        units: Units,
        inputs: Units,
        start_from: Params | None,
    ) -> AttackerState:
        trainer, fresh_key = self.trainer, jax.random.fold_in(key_start, number)
        state = trainer.init(fresh_key, inputs)
        if start_from is not None:
            count = jax.tree.leaves(start_from)[0].shape[0]
            mine = jax.tree.map(lambda x: x[number % count], start_from)
            state = where_tree(number < count, trainer.init(fresh_key, inputs, mine), state)
        return init_attacker(key_run, state, trainer=trainer, budget=Budget(radius, units))

    def _step_all(self, states: AttackerState, meta_params: Params) -> tuple[AttackerState, Metrics]:
        trainer, axis = self.trainer, self.axis

        def one(state: AttackerState, shared: Any) -> tuple[AttackerState, Metrics]:
            batch, measured = collect(state) if shared is None else shared
            state, learned = attack_update_step(state, meta_params, batch, trainer=trainer, axis=axis)
            return state, {**measured, **learned}

        collect = functools.partial(
            attack_collect_step, meta_params=meta_params, setup=self.setup, trainer=trainer, axis=axis
        )
        shared = None
        if trainer.is_offline:
            # Clean episodes are the same for all of them.
            first, budget = jax.tree.map(lambda x: x[0], (states.trainer, states.budget))
            shared = collect(states.replace(trainer=first, budget=budget))
        lanes = _but_key(0)
        return jax.vmap(one, in_axes=(lanes, None), out_axes=(lanes, 0))(states, shared)


def train_attacker(
    trainer: AttackTrainer,
    meta_params: Params,
    key: jax.Array,
    *,
    setup: Setup,
    radii: Sequence[float],
    steps: int,
    restarts: int = 1,
    units: Units = Units(),
    inputs: Units = Units(),
    start_from: Params | None = None,
    axis: TaskAxis = TaskAxis(),
    on_step: Callable[[int, dict[str, np.ndarray]], None] = lambda step, metrics: None,
) -> tuple[Params, History]:
    """Trains attackers of one victim, for every radius from every start, all in one program.

    Args:
        trainer: of the attack, see `make_attack_trainer`.
        meta_params: of the victim.
        key: of starts, tasks and episodes; attackers of other radii and starts meet the same tasks.
        setup: the victim's environment, policy and learner, and how much is collected per update.
        radii: of the budgets.
        steps: updates of each attacker.
        restarts: starts per radius.
        units: of the budgets.
        inputs: units of clean observations, in which networks read them.
        start_from: attack parameters, leading axis `[G]`, from which the first `G` starts of every radius go
            on; the others are random.
        axis: how tasks are computed.
        on_step: called with `(updates done, metrics [R, restarts])`.

    Returns:
        `(params, history)`: the strongest parameters of each, leading axes `[R, restarts]`, by the return
        of their own training batches (of an attack that learns offline, the newest), and what was measured,
        `[R, restarts, steps]`. Judge them on new tasks with `evaluate`.
    """
    states, history = AttackerTraining(trainer, setup, axis).train(
        meta_params,
        key,
        radii=radii,
        steps=steps,
        restarts=restarts,
        units=units,
        inputs=inputs,
        start_from=start_from,
        on_step=on_step,
    )
    return states.strongest, history


def _grid(value: jax.Array, radii: int, restarts: int) -> np.ndarray:
    return np.asarray(value).reshape(radii, restarts)


_LANES = ("trainer", "budget", "strongest", "strongest_return")
"""What every attacker has for itself; they share the key and the step."""


def _but_key(axis: int) -> Any:
    """`vmap` axes of an `AttackerState`."""
    return AttackerState(step=None, key=None, **dict.fromkeys(_LANES, axis))  # pyright: ignore
