"""Collects episodes: one by `lax.scan`, many by `vmap`, and whole meta-batches with adaptation between."""

import functools
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Scene
from admrl_jax.attacks.threat import Budget, ThreatModel
from admrl_jax.core import gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.returns import estimate_advantages, score_episodes
from admrl_jax.core.settings import COUNT, NOT_NEGATIVE, UNIT, is_on, whole_from
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Params, Task, Trajectory
from admrl_jax.envs.base import Env
from admrl_jax.learners.base import Learner


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Size of a meta-batch and how its actions are scored. Defaults: MAML's and pytorch-maml-rl's."""

    num_tasks: Annotated[int, COUNT] = 40
    """Tasks per outer step."""
    num_trajectories: Annotated[int, COUNT] = 20
    """Episodes per task, both before and after adaptation."""
    num_adapt_steps: Annotated[int, whole_from(1, 100)] = 1
    """Gradient steps of adaptation, each on new episodes."""
    discount: Annotated[float, UNIT] = 0.99
    """Of rewards, per step."""
    gae_lambda: Annotated[float, UNIT] = 1.0
    """Trace parameter of the advantage estimate: 1 gives return minus baseline."""
    support_discount: Annotated[float, UNIT] = 0.0
    """Discount of the rewards that a policy adapts with; 0 takes `discount`. A short view tells what the
    action itself did, and an attack that shifts whole episodes changes it little."""
    support_spread: Annotated[float, NOT_NEGATIVE] = 0.0
    """Advantages that a policy adapts with are divided by this; 0 takes their standard deviation, which an
    attack on support data changes, and with it the length of the step."""


class Exposure(NamedTuple):
    """The attack that a meta-batch is collected under.

    Attributes:
        attack: observation attack.
        params: its parameters.
        support: budget before and during adaptation, its radius `[N]`, one per task; 0 leaves it clean.
        query: budget after adaptation, likewise.
        per_task: whether `params` have a leading axis `N`: every task is attacked in its own way.
    """

    attack: Attack
    params: Params
    support: Budget
    query: Budget
    per_task: bool = False


def expose(
    attack: Attack, params: Params, support: Budget, query: Budget | None = None, *, num_tasks: int
) -> Exposure:
    """An exposure that is the same for every task.

    Args:
        attack: observation attack.
        params: its parameters.
        support: budget before and during adaptation, its radius `[]`.
        query: budget after it; the same by default.
        num_tasks: of this device.
    """

    def every_task(budget: Budget) -> Budget:
        return budget._replace(radius=jnp.broadcast_to(jnp.asarray(budget.radius, float), (num_tasks,)))

    return Exposure(attack, params, every_task(support), every_task(support if query is None else query))


def rollout(
    policy_params: Params,
    attack_params: Params,
    key: jax.Array,
    task: Task,
    *,
    env: Env,
    policy: Policy,
    attack: Attack,
    budget: Budget,
    horizon: int | None = None,
    is_query: jax.Array | bool = True,
) -> Trajectory:
    """Runs one episode under attack.

    The policy acts on the perturbed observation; dynamics and reward use the true state. Steps
    after the episode's end are masked, carry no reward and leave the state where it was. A simulator,
    policy or attack that returns something not finite ends the episode there; nothing that is not
    finite is recorded, because a mask of zero does not make NaN vanish.

    Args:
        policy_params: parameters of `policy`.
        attack_params: parameters of `attack`.
        key: randomness of reset, actions and attack.
        task: one task of `env`.
        env: task family.
        policy: Gaussian policy.
        attack: observation attack; its memory starts anew with the episode.
        budget: bound on the perturbation, its radius `[]`.
        horizon: steps, `env.horizon` by default.
        is_query: `[]` whether the policy has adapted, which attacks may know; before that it may explore.

    Returns:
        A trajectory with fields `[H, ...]`.
    """
    horizon = env.horizon if horizon is None else horizon
    key_reset, key_action, key_attack = jax.random.split(key, 3)
    context = ()
    if policy.explore:
        key_context = jax.random.fold_in(key_attack, horizon + 1)
        context = policy.explore.draw(policy_params, key_context, is_query)
        policy_params = policy.acting(policy_params, context)
    state, obs = env.reset(key_reset, task)
    obs = jnp.where(jnp.isfinite(obs), obs, 0.0)
    noise = jax.random.normal(key_action, (horizon, env.action_size), obs.dtype)
    attack_keys = jax.random.split(key_attack, horizon)
    memory = attack.reset(jax.random.fold_in(key_attack, horizon))
    scene = Scene(policy_params, task, is_query)

    def step(carry, inputs):
        state, obs, memory, alive = carry
        noise_t, attack_key = inputs
        perturbed, new_memory = attack.perturb(attack_params, memory, attack_key, obs, scene, budget)
        dist = policy.apply(policy_params, perturbed)
        action = gaussian.from_noise(dist, noise_t)
        new_state, new = env.step(state, action, task)
        reward, terminated = jnp.asarray(new.reward, obs.dtype), jnp.asarray(new.terminated) != 0
        clean_input = jnp.all(jnp.isfinite(perturbed)) & jnp.all(jnp.isfinite(action))
        finite = clean_input & jnp.all(jnp.isfinite(new.obs)) & jnp.isfinite(reward)
        valid = alive & finite
        perturbed = jnp.where(clean_input, perturbed, obs)
        action = jnp.where(clean_input, action, 0.0)
        log_prob = jnp.where(clean_input, gaussian.log_prob_of_noise(dist, noise_t), 0.0)
        reward = jnp.where(valid, reward, 0.0)
        mask, diverged = (x.astype(obs.dtype) for x in (valid, alive & ~finite))
        noted = jax.tree.map(
            lambda x: jnp.where(clean_input, x, jnp.zeros_like(x)), attack.record(new_memory)
        )
        record = Trajectory(obs, perturbed, action, log_prob, reward, mask, diverged, noted)
        state, obs, memory = jax.tree.map(
            lambda a, b: jnp.where(valid, a, b), (new_state, new.obs, new_memory), (state, obs, memory)
        )
        return (state, obs, memory, valid & ~terminated), record

    _, trajectory = jax.lax.scan(step, (state, obs, memory, jnp.array(True)), (noise, attack_keys))
    every_step = jax.tree.map(lambda x: jnp.broadcast_to(x, (horizon, *x.shape)), context)
    return trajectory._replace(context=every_step)


def collect(
    policy_params: Params,
    attack_params: Params,
    key: jax.Array,
    task: Task,
    *,
    num_trajectories: int,
    env: Env,
    policy: Policy,
    attack: Attack,
    budget: Budget,
    is_query: jax.Array | bool,
    horizon: int | None = None,
) -> Trajectory:
    """Runs `num_trajectories` independent episodes of one task, see `rollout`: fields `[K, H, ...]`."""
    run = functools.partial(
        rollout, env=env, policy=policy, attack=attack, budget=budget, horizon=horizon, is_query=is_query
    )
    keys = jax.random.split(key, num_trajectories)
    return jax.vmap(run, in_axes=(None, None, 0, None))(policy_params, attack_params, keys, task)


def collect_meta_batch(
    meta_params: Params,
    key: jax.Array,
    tasks: Task,
    exposure: Exposure,
    *,
    env: Env,
    policy: Policy,
    learner: Learner,
    config: SamplingConfig,
    axis: TaskAxis = TaskAxis(),
) -> MetaBatch:
    """Collects support data, adapts to each task, and collects query data.

    Args:
        meta_params: of the learner.
        key: randomness of all episodes.
        tasks: leading axis `N`, those of this device.
        exposure: the attack on support and query rollouts.
        env: task family.
        policy: Gaussian policy.
        learner: adapts it.
        config: episodes, steps of adaptation, advantages; the number of tasks is that of `tasks`.
        axis: how tasks are computed.
    """
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    run = functools.partial(
        collect_tasks, num_trajectories=config.num_trajectories, env=env, policy=policy, axis=axis
    )

    def collect_and_adapt(params: Params, step: jax.Array) -> tuple[Params, tuple[Params, Experience]]:
        is_query = step == config.num_adapt_steps
        budget = jax.tree.map(lambda s, q: jnp.where(is_query, q, s), exposure.support, exposure.query)
        episodes = run(
            params,
            exposure.params,
            jax.random.fold_in(key, step),
            tasks,
            budget,
            attack=exposure.attack,
            per_task=exposure.per_task,
            is_query=is_query,
        )
        batch = score_tasks(episodes, config, policy, is_query)
        adapted = jax.lax.cond(
            is_query,
            lambda params, _: params,
            lambda params, batch: adapt_tasks(meta_params, params, batch, learner=learner, axis=axis),
            *(params, batch),
        )
        return adapted, (params, batch)

    # Support and query in one loop: its body, the most expensive to compile, is compiled once.
    params = unadapted(meta_params, num_tasks, learner)
    steps = jnp.arange(config.num_adapt_steps + 1)
    params, (policies, batches) = jax.lax.scan(collect_and_adapt, params, steps)
    support, support_params = jax.tree.map(lambda x: jnp.moveaxis(x[:-1], 0, 1), (batches, policies))
    return MetaBatch(
        support=support,
        query=jax.tree.map(lambda x: x[-1], batches),
        adapted_params=params,
        support_params=support_params,
        tasks=tasks,
        support_radius=jnp.asarray(exposure.support.radius),
        query_radius=jnp.asarray(exposure.query.radius),
    )


def unadapted(meta_params: Params, num_tasks: int, learner: Learner) -> Params:
    """The policy before adaptation, once for every task of this device."""
    policy_params = learner.policy_params(meta_params)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape)), policy_params)


def collect_tasks(
    params: Params,
    attack_params: Params,
    key: jax.Array,
    tasks: Task,
    budget: Budget,
    *,
    num_trajectories: int,
    env: Env,
    policy: Policy,
    attack: Attack,
    is_query: jax.Array | bool,
    per_task: bool = False,
    axis: TaskAxis = TaskAxis(),
) -> Trajectory:
    """Episodes of every task of this device, fields `[N, K, H, ...]`.

    Args:
        params: policy parameters, leading axis `N`.
        attack_params: parameters of `attack`; with a leading axis `N` if `per_task`.
        key: randomness of all episodes; spreading tasks over devices changes none of them.
        tasks: leading axis `N`.
        budget: its radius `[N]`.
        num_trajectories: episodes per task.
        env: task family.
        policy: Gaussian policy.
        attack: observation attack.
        is_query: `[]` whether the policies have adapted; before that they may explore.
        per_task: whether every task has attack parameters of its own.
        axis: how tasks are computed.
    """

    def collect_one(
        params: Params, mine: Params, key: jax.Array, task: Task, radius: jax.Array
    ) -> Trajectory:
        return collect(
            params,
            mine,
            key,
            task,
            num_trajectories=num_trajectories,
            env=env,
            policy=policy,
            attack=attack,
            budget=budget._replace(radius=radius),
            is_query=is_query,
        )

    num_tasks = jax.tree.leaves(tasks)[0].shape[0] * axis.num_devices
    every = jax.vmap(collect_one, in_axes=(0, 0 if per_task else None, 0, 0, 0))
    return every(params, attack_params, axis.split_key(key, num_tasks), tasks, jnp.asarray(budget.radius))


def score_tasks(
    episodes: Trajectory, config: SamplingConfig, policy: Policy, is_query: jax.Array | bool
) -> Experience:
    """Advantages of the actions of every task, by a baseline of its own.

    A policy that explores by its context adapts with those of whole episodes instead.

    Args:
        episodes: fields `[N, K, H, ...]`.
        config: how they are estimated.
        policy: that collected them.
        is_query: `[]` whether the policies have adapted.
    """

    def on_support(value: float, elsewhere: float) -> jax.Array | float:
        return jnp.where(is_query | (value == 0), elsewhere, value) if is_on(value) else elsewhere

    score = functools.partial(
        estimate_advantages,
        discount=on_support(config.support_discount, config.discount),
        gae_lambda=config.gae_lambda,
        spread=on_support(config.support_spread, 0.0),
    )
    scored = jax.vmap(score)(episodes)
    if policy.explore is None:
        return scored
    whole = jax.vmap(lambda one: score_episodes(one, on_support(config.support_spread, 0.0)))(episodes)
    return scored._replace(advantage=jnp.where(is_query, scored.advantage, whole.advantage))


def adapt_tasks(
    meta_params: Params, params: Params, batch: Experience, *, learner: Learner, axis: TaskAxis = TaskAxis()
) -> Params:
    """One step of adaptation to every task of this device.

    Args:
        meta_params: of the learner.
        params: policy parameters so far, leading axis `N`.
        batch: fields `[N, K, H, ...]`, collected with them.
        learner: adapts.
        axis: how tasks are computed.
    """
    return axis.map(lambda task: learner.adapt_step(meta_params, *task), (params, batch))


def episode_returns(trajectory: Trajectory) -> jax.Array:
    """Undiscounted return `[...]` of each episode `[..., H]`."""
    chex.assert_equal_shape([trajectory.reward, trajectory.mask])
    return jnp.sum(trajectory.reward, axis=-1)


class AttackSizes(NamedTuple):
    """How far observations were moved.

    Attributes:
        size: `[]` mean norm of the perturbations, in the budget's units; of a meta-batch, on query data.
        excess: `[]` by how much any perturbation broke its budget; 0 when all held.
    """

    size: jax.Array
    excess: jax.Array


def attack_sizes(batch: MetaBatch, exposure: Exposure, axis: TaskAxis = TaskAxis()) -> AttackSizes:
    """Measures the perturbations of a meta-batch against their budgets."""
    measure = functools.partial(measure_attack, threat=exposure.attack.threat, axis=axis)
    before = measure(batch.support.trajectory, exposure.support)
    after = measure(batch.query.trajectory, exposure.query)
    return after._replace(excess=jnp.maximum(before.excess, after.excess))


def measure_attack(
    taken: Trajectory, budget: Budget, *, threat: ThreatModel, axis: TaskAxis = TaskAxis()
) -> AttackSizes:
    """Measures the perturbations of episodes `[N, ..., H, *]` against a budget with radius `[N]`."""
    found = threat.measure(taken.obs, taken.perturbed_obs, budget)
    size, valid = axis.total((jnp.sum(found.size * taken.mask), jnp.sum(taken.mask)))
    return AttackSizes(size / jnp.maximum(valid, 1.0), axis.largest(jnp.max(found.excess)))
