"""The outer step of every method: sample tasks, collect under attack, learn, let opponents learn.

Keys come from `fold_in(state.key, state.step)`, so how steps are grouped, resumed or logged cannot change a
number. A step is three functions, `collect_step`, `learn_step` and `opponent_step`; methods that share one of
them share its compiled program. `outer_step` is all three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.threat import Units
from admrl_jax.core.networks import Policy
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params
from admrl_jax.defences.base import Defence
from admrl_jax.defences.fixed import no_defence
from admrl_jax.envs.adapters import FunctionEnv
from admrl_jax.envs.base import Env, raw_units
from admrl_jax.envs.contract import check_env
from admrl_jax.learners.base import Learner, LearnerState, LossTerm
from admrl_jax.sampling import (
    Exposure,
    SamplingConfig,
    attack_sizes,
    collect_meta_batch,
    episode_returns,
)
from admrl_jax.victims import make_victim


class TrainState(struct.PyTreeNode):
    """Everything training carries.

    Attributes:
        step: `[]` outer steps done.
        start: `[]` step at which the defence began; its schedule counts from this step.
        key: base key of the run; never replaced.
        learner: meta-parameters and their optimiser.
        opponent: the defence's state.
        units: in which budgets are measured.
    """

    step: jax.Array
    start: jax.Array
    key: jax.Array
    learner: LearnerState
    opponent: Any
    units: Units


class Setup(NamedTuple):
    """What is trained, and on what: fixed values that every step takes.

    Attributes:
        env: task family.
        policy: Gaussian policy.
        learner: adapts and meta-learns.
        sampling: size of a meta-batch.
    """

    env: Env
    policy: Policy
    learner: Learner
    sampling: SamplingConfig

    @property
    def victim(self) -> Victim:
        """The policy as attacks see it."""
        return make_victim(self.env, self.policy, self.learner)


def init_train_state(
    key: jax.Array, setup: Setup, defence: Defence | None = None, inputs: Units | None = None
) -> TrainState:
    """A fresh learner and fresh opponents.

    Args:
        key: of the run; one key, one run.
        setup: its learner is started.
        defence: its opponents are started; none by default.
        inputs: units of clean observations, in which opponents' networks read; raw by default.

    Raises:
        ConfigError: the environment is not what it should be, see `check_env`.
    """
    # Those of this package are right; tracing an engine's step takes seconds.
    if isinstance(setup.env, FunctionEnv) or not type(setup.env).__module__.startswith(f"{__package__}."):
        check_env(setup.env)
    key_policy, key_train = jax.random.split(key)
    raw = raw_units(setup.env)
    defence = defence or no_defence()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        start=jnp.zeros((), jnp.int32),
        key=key_train,
        learner=setup.learner.init(key_policy),
        opponent=defence.init(
            opponent_key(key_train), inputs or raw._replace(scale=jnp.ones_like(raw.scale))
        ),
        units=raw,
    )


def opponent_key(key: jax.Array, number: int | jax.Array = 0) -> jax.Array:
    """Keys of fresh opponents, apart from those of the training steps, which fold in numbers from 0 up.

    Args:
        key: base key of a run.
        number: of the opponent.
    """
    return jax.random.fold_in(jax.random.fold_in(key, 2**31 - 1), number)


class StepKeys(NamedTuple):
    """Keys of one outer step. The learner's is only used by loss terms."""

    tasks: jax.Array
    collect: jax.Array
    opponent: jax.Array
    learner: jax.Array


def step_keys(key: jax.Array, step: jax.Array) -> StepKeys:
    """The keys of outer step `step` of a run."""
    key = jax.random.fold_in(key, step)
    tasks, collect, opponent = jax.random.split(key, 3)
    return StepKeys(tasks, collect, opponent, learner=jax.random.fold_in(key, 3))


def sample_and_collect(
    meta_params: Params, keys: StepKeys, exposure: Exposure, setup: Setup, axis: TaskAxis
) -> tuple[MetaBatch, Metrics]:
    """Draws this device's tasks, collects a meta-batch of them, and measures it."""
    tasks = jax.vmap(setup.env.sample_task)(axis.split_key(keys.tasks, setup.sampling.num_tasks))
    batch = collect_meta_batch(
        meta_params,
        keys.collect,
        tasks,
        exposure,
        env=setup.env,
        policy=setup.policy,
        learner=setup.learner,
        config=setup.sampling,
        axis=axis,
    )
    return batch, batch_metrics(batch, exposure, axis)


def collect_step(
    state: TrainState, *, setup: Setup, defence: Defence, axis: TaskAxis = TaskAxis()
) -> tuple[MetaBatch, Metrics]:
    """The meta-batch of a step, collected under the defence's attack.

    Returns:
        `(batch, metrics)`: the batch of this device's tasks, metrics `train/...` and `attack/...` of all.
    """
    exposure = defence.expose(
        state.opponent, state.step - state.start, state.units, setup.sampling.num_tasks, axis
    )
    keys = step_keys(state.key, state.step)
    return sample_and_collect(state.learner.meta_params, keys, exposure, setup, axis)


def learn_step(
    learner_state: LearnerState,
    key: jax.Array,
    step: jax.Array,
    batch: MetaBatch,
    *,
    learner: Learner,
    loss_term: LossTerm | None = None,
    axis: TaskAxis = TaskAxis(),
) -> tuple[LearnerState, Metrics]:
    """The learner's part of a step.

    Args:
        learner_state: what it carries.
        key: base key of the run.
        step: `[]` number of the step.
        batch: of `collect_step`.
        learner: meta-learner.
        loss_term: of the defence.
        axis: how tasks are computed.
    """
    return learner.update(learner_state, step_keys(key, step).learner, batch, loss_term=loss_term, axis=axis)


def opponent_step(
    opponent: Any,
    key: jax.Array,
    step: jax.Array,
    units: Units,
    meta_params: Params,
    batch: MetaBatch,
    *,
    defence: Defence,
    axis: TaskAxis = TaskAxis(),
) -> tuple[Any, Metrics]:
    """The opponents' part of a step: they learn from the batch that they have collected.

    Args:
        opponent: the defence's state.
        key: base key of the run.
        step: `[]` number of the step.
        units: of all budgets.
        meta_params: with which the batch was collected.
        batch: of `collect_step`.
        defence: whose opponents learn.
        axis: how tasks are computed.
    """
    if defence.update is None:
        return opponent, {}
    return defence.update(opponent, step_keys(key, step).opponent, meta_params, batch, units, axis)


def outer_step(
    state: TrainState, *, setup: Setup, defence: Defence | None = None, axis: TaskAxis = TaskAxis()
) -> tuple[TrainState, Metrics]:
    """One outer step (Algorithms 1 to 3).

    Args:
        state: what training carries.
        setup: environment, policy, learner and size of a meta-batch.
        defence: what training faces; nothing by default.
        axis: how tasks are computed. Inside a `shard_map` every device holds the same state, works on its
            share of `setup.sampling.num_tasks`, and sums over the axis.

    Returns:
        `(state, metrics)`. A learner that finds no improvement, or anything not finite, leaves the
        policy as it was.
    """
    defence = defence or no_defence()
    batch, metrics = collect_step(state, setup=setup, defence=defence, axis=axis)
    learner, learned = learn_step(
        state.learner,
        state.key,
        state.step,
        batch,
        learner=setup.learner,
        loss_term=defence.loss_term,
        axis=axis,
    )
    opponent, faced = opponent_step(
        state.opponent,
        state.key,
        state.step,
        state.units,
        state.learner.meta_params,
        batch,
        defence=defence,
        axis=axis,
    )
    new_state = state.replace(step=state.step + 1, learner=learner, opponent=opponent)
    return new_state, {**metrics, **learned, **faced}


def bad_steps(metrics: Metrics) -> jax.Array:
    """Outer steps in which nothing could be learned because numbers were not finite: bool `[..., T]`.

    Every episode broke at once, or the learner's step or all of the opponents' updates were skipped.

    Args:
        metrics: of `outer_step`, stacked, `[..., T]`.
    """
    bad = metrics["train/env_steps"] == 0
    for name in ("train/skipped", "adversary/skipped"):
        if name in metrics:
            bad = bad | (metrics[name] >= 1)
    return bad


def batch_metrics(batch: MetaBatch, exposure: Exposure, axis: TaskAxis = TaskAxis()) -> Metrics:
    """Returns, steps, diverged episodes and perturbation sizes of a meta-batch."""
    support, query = batch.support.trajectory, batch.query.trajectory
    means = {
        "train/pre_return": jnp.mean(episode_returns(support)[:, 0]),
        "train/post_return": jnp.mean(episode_returns(query)),
    }
    sums = {
        "train/env_steps": jnp.sum(support.mask) + jnp.sum(query.mask),
        "train/diverged": jnp.sum(support.diverged) + jnp.sum(query.diverged),
    }
    sizes = attack_sizes(batch, exposure, axis)
    return {
        **axis.mean(means),
        **axis.total(sums),
        "attack/size": sizes.size,
        "attack/budget_excess": sizes.excess,
    }
