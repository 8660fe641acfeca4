"""The outer step of all four methods: sample tasks, collect, adapt, collect, TRPO, adGAN.

The methods differ only in the attack that is plugged in and in whether adGAN is trained along.
Keys come from `fold_in(state.key, state.step)`, so how steps are chunked, resumed or logged
cannot change a number.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from admrl_jax import mapped_axis
from admrl_jax.adgan import AdGAN, AdversaryState, update_adversary
from admrl_jax.attacks import Attack, Budget
from admrl_jax.blocks import map_blocks
from admrl_jax.config import MAMLConfig, TrainConfig
from admrl_jax.envs.base import Env
from admrl_jax.maml import (
    adapt_and_predict,
    adapt_step,
    query_weights,
    surrogate_loss,
)
from admrl_jax.networks import Policy
from admrl_jax.returns import estimate_advantages
from admrl_jax.rollout import collect, episode_returns
from admrl_jax.trpo import trpo_update
from admrl_jax.types import Experience, Metrics, Params, Task


class TrainState(struct.PyTreeNode):
    """Everything training carries.

    Attributes:
        step: `[]` outer steps done.
        key: base key of the run; never replaced.
        policy_params: meta-parameters.
        attack_params: parameters of an attack that is not trained; `()` for most.
        adversary: adGAN's state, or None where no generator is trained.
        budget: the attack's budget and units.
    """

    step: jax.Array
    key: jax.Array
    policy_params: Params
    attack_params: Params
    adversary: AdversaryState | None
    budget: Budget


class MetaBatch(NamedTuple):
    """One meta-batch of `N` tasks, each before and after adaptation.

    Attributes:
        support: fields `[N, num_adapt_steps, K, H, ...]`.
        query: fields `[N, K, H, ...]`.
        adapted_params: leading axis `N`.
    """

    support: Experience
    query: Experience
    adapted_params: Params


def init(key: jax.Array, *, policy: Policy, obs_size: int) -> TrainState:
    """A fresh policy without an attack."""
    key_policy, key_train = jax.random.split(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key_train,
        policy_params=policy.init(key_policy),
        attack_params=(),
        adversary=None,
        budget=Budget(jnp.zeros(()), jnp.zeros((obs_size,)), jnp.ones((obs_size,))),
    )


def collect_meta_batch(
    policy_params: Params,
    attack_params: Params,
    key: jax.Array,
    tasks: Task,
    *,
    env: Env,
    policy: Policy,
    attack: Attack,
    support_budget: Budget,
    query_budget: Budget,
    config: MAMLConfig,
    axis_name: str | None = None,
) -> MetaBatch:
    """Collects support data, adapts to each task, and collects query data.

    Args:
        policy_params: meta-parameters.
        attack_params: parameters of `attack`.
        key: randomness of all episodes.
        tasks: leading axis `N`.
        env: task family.
        policy: Gaussian policy.
        attack: acts on support and query rollouts alike.
        support_budget: budget before and during adaptation; radius 0 leaves it clean.
        query_budget: budget after adaptation.
        config: trajectories, adaptation and advantage settings.
        axis_name: mapped axis over which tasks are spread; `tasks` are then those of this device.
    """
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    score = functools.partial(estimate_advantages, discount=config.discount, gae_lambda=config.gae_lambda)

    def adapt_one(task: tuple[Params, Experience]) -> Params:
        return adapt_step(*task, policy=policy, inner_lr=config.inner_lr)

    def collect_and_adapt(params: Params, step: jax.Array) -> tuple[Params, Experience]:
        is_query = step == config.num_adapt_steps
        budget = jax.tree.map(lambda s, q: jnp.where(is_query, q, s), support_budget, query_budget)
        run = functools.partial(
            collect,
            num_trajectories=config.num_trajectories,
            env=env,
            policy=policy,
            attack=attack,
            budget=budget,
        )
        # One key per task of the whole batch, so that spreading it changes no episode.
        keys = jax.random.split(jax.random.fold_in(key, step), num_tasks * mapped_axis.size(axis_name))
        keys = mapped_axis.share(keys, axis_name)
        batch = jax.vmap(score)(jax.vmap(run, in_axes=(0, None, 0, 0))(params, attack_params, keys, tasks))
        adapted = jax.lax.cond(
            is_query,
            lambda params, _: params,
            lambda *data: map_blocks(adapt_one, data, config.task_block),
            *(params, batch),
        )
        return adapted, batch

    # Support and query in one loop: its body, the dearest to compile, is compiled once.
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape)), policy_params)
    params, batches = jax.lax.scan(collect_and_adapt, params, jnp.arange(config.num_adapt_steps + 1))
    support = jax.tree.map(lambda x: jnp.moveaxis(x[:-1], 0, 1), batches)
    return MetaBatch(support, jax.tree.map(lambda x: x[-1], batches), params)


def outer_step(
    state: TrainState,
    *,
    env: Env,
    policy: Policy,
    attack: Attack,
    config: TrainConfig,
    adgan: AdGAN | None = None,
    train_policy: bool | jax.Array = True,
    train_adversary: bool | jax.Array = True,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One outer step (Algorithms 1 to 3).

    Args:
        state: what training carries.
        env: task family.
        policy: Gaussian policy.
        attack: acts on support and query rollouts.
        config: meta-batch, trust region and adGAN settings.
        adgan: networks of the adversary; needs `state.adversary`, whose generator then is the
            attack's parameters.
        train_policy: False freezes the policy, as in adGAN's warm-up and in adaptive attacks.
        train_adversary: False freezes adGAN. Both switches may be arrays `[]`; they then are
            decided when the program runs, and metrics of what is frozen are NaN.
        axis_name: mapped axis over which tasks are spread, inside a `shard_map`; every device then
            holds the same state, works on its share of `config.maml.num_tasks`, and sums over the axis.

    Returns:
        `(state, metrics)`. A trust-region step that finds no improvement, or anything not
        finite, leaves the policy as it was.
    """
    key_tasks, key_collect, key_adversary = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
    tasks = jax.vmap(env.sample_task)(
        mapped_axis.share(jax.random.split(key_tasks, config.maml.num_tasks), axis_name)
    )
    attack_params = state.attack_params
    if state.adversary is not None:
        attack_params = state.adversary.generator_params
    batch = collect_meta_batch(
        state.policy_params,
        attack_params,
        key_collect,
        tasks,
        env=env,
        policy=policy,
        attack=attack,
        support_budget=state.budget,
        query_budget=state.budget,
        config=config.maml,
        axis_name=axis_name,
    )
    metrics = batch_metrics(batch, attack, state.budget, axis_name)
    policy_params, policy_metrics = _when(
        train_policy,
        lambda params: update_policy(params, batch, policy=policy, config=config, axis_name=axis_name),
        state.policy_params,
    )
    adversary, adversary_metrics = state.adversary, {}
    if adgan is not None and adversary is not None:
        update = functools.partial(
            update_adversary,
            key=key_adversary,
            support=batch.support,
            query=batch.query,
            adapted_params=batch.adapted_params,
            adgan=adgan,
            policy=policy,
            budget=state.budget,
            config=config.adversary,
            task_block=config.maml.task_block,
            axis_name=axis_name,
        )
        adversary, adversary_metrics = _when(train_adversary, update, adversary)
    new_state = state.replace(step=state.step + 1, policy_params=policy_params, adversary=adversary)
    return new_state, {**metrics, **policy_metrics, **adversary_metrics}


def update_policy(
    policy_params: Params,
    batch: MetaBatch,
    *,
    policy: Policy,
    config: TrainConfig,
    axis_name: str | None = None,
) -> tuple[Params, Metrics]:
    """The trust-region step on the meta-parameters, through the adaptation."""
    weights = query_weights(batch.query, axis_name)
    predict = functools.partial(
        adapt_and_predict,
        policy=policy,
        inner_lr=config.maml.inner_lr,
        num_adapt_steps=config.maml.num_adapt_steps,
        first_order=config.maml.first_order,
    )
    policy_params, info = trpo_update(
        policy_params,
        predict,
        (batch.support, batch.query),
        surrogate_loss(batch.query, weights),
        weights,
        max_kl=config.trpo.max_kl,
        cg_iterations=config.trpo.cg_iterations,
        cg_damping=config.trpo.cg_damping,
        line_search_steps=config.trpo.line_search_steps,
        backtrack_ratio=config.trpo.backtrack_ratio,
        block=config.maml.task_block,
        axis_name=axis_name,
    )
    metrics = {f"train/{name}": jnp.float32(value) for name, value in info._asdict().items()}
    metrics["train/std"] = jnp.mean(jnp.exp(policy_params["log_std"]))
    return policy_params, metrics


def _when(
    switch: bool | jax.Array, update: Callable[[Any], tuple[Any, Metrics]], old: Any
) -> tuple[Any, Metrics]:
    """`update(old)` if the switch is on, else `old` and NaN for every metric."""
    if isinstance(switch, bool):
        return update(old) if switch else (old, {})
    # `jit` keeps what was traced for its shapes.
    update = jax.jit(update)
    nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(update, old)[1])
    return jax.lax.cond(switch, update, lambda old: (old, nothing), old)


def train_chunk(
    state: TrainState, *, num_steps: int, step_fn: Callable[[TrainState], tuple[TrainState, Metrics]]
) -> tuple[TrainState, Metrics]:
    """Outer steps in a loop; metrics come back stacked, `[num_steps]`.

    The compiler does not see how many: it would inline a loop of one step, and round that step differently.
    """
    # `jit` keeps what was traced for its shapes.
    step_fn = jax.jit(step_fn)
    metrics = jax.tree.map(
        lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), jax.eval_shape(step_fn, state)[1]
    )

    def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        state, new = step_fn(state)
        return state, jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), metrics, new
        )

    count = jax.lax.optimization_barrier(jnp.int32(num_steps))
    return jax.lax.fori_loop(0, count, body, (state, metrics))


def bad_steps(metrics: Metrics) -> jax.Array:
    """Outer steps in which nothing could be learned because numbers were not finite: bool `[..., T]`.

    Every episode broke at once, or the trust-region step or all of adGAN's updates were skipped.

    Args:
        metrics: of `outer_step`, stacked, `[..., T]`.
    """
    bad = metrics["train/env_steps"] == 0
    for name in ("train/skipped", "adversary/skipped"):
        if name in metrics:
            # NaN, of what is frozen, is not bad.
            bad = bad | (metrics[name] >= 1)
    return bad


def batch_metrics(batch: MetaBatch, attack: Attack, budget: Budget, axis_name: str | None = None) -> Metrics:
    """Returns, steps, diverged episodes and perturbation sizes of a meta-batch."""
    support, query = batch.support.trajectory, batch.query.trajectory
    before = attack.measure(support.obs, support.perturbed_obs, budget)
    after = attack.measure(query.obs, query.perturbed_obs, budget)
    means = {
        "train/pre_return": jnp.mean(episode_returns(support)[:, 0]),
        "train/post_return": jnp.mean(episode_returns(query)),
    }
    sums = {
        "train/env_steps": jnp.sum(support.mask) + jnp.sum(query.mask),
        "train/diverged": jnp.sum(support.diverged) + jnp.sum(query.diverged),
    }
    size, valid = mapped_axis.total((jnp.sum(after.size * query.mask), jnp.sum(query.mask)), axis_name)
    excess = jnp.maximum(jnp.max(before.excess), jnp.max(after.excess))
    return {
        **mapped_axis.mean(means, axis_name),
        **mapped_axis.total(sums, axis_name),
        "attack/size": size / jnp.maximum(valid, 1.0),
        "attack/budget_excess": mapped_axis.largest(excess, axis_name),
    }
