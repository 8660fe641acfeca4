"""Meta-test: adapt to held-out tasks and measure returns, clean and under attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.once import once
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Params, Task
from admrl_jax.envs.base import Env
from admrl_jax.sampling import Exposure, attack_sizes, collect, collect_meta_batch, episode_returns, expose
from admrl_jax.training import Setup


class HeldOut(NamedTuple):
    """The meta-test's tasks, the same for every seed and method.

    Attributes:
        tasks: leading axis `N`.
        key: of their episodes, which pairs all comparisons.
    """

    tasks: Task
    key: jax.Array


def hold_out(env: Env, seed: int, num_tasks: int) -> HeldOut:
    """Draws the tasks of a meta-test."""
    key_tasks, key_episodes = jax.random.split(jax.random.key(seed))
    tasks = jax.vmap(env.sample_task)(jax.random.split(key_tasks, num_tasks))
    return HeldOut(tasks, key_episodes)


class EvalResult(NamedTuple):
    """What a meta-test measured.

    Attributes:
        returns: `[N, num_adapt_steps + 1, K]` undiscounted return of every episode. All but the last step's
            are the episodes that the policy adapts on: where it explores by its context, with drawn ones.
        attack_size: `[]` mean norm of the perturbations on query data, in the budget's units.
        budget_excess: `[]` by how much any perturbation broke its budget; 0 when all held.
        diverged: `[]` query episodes that a number that is not finite cut short; their returns say nothing.
    """

    returns: jax.Array
    attack_size: jax.Array
    budget_excess: jax.Array
    diverged: jax.Array


def evaluate(
    meta_params: Params,
    key: jax.Array,
    tasks: Task,
    exposure: Exposure,
    *,
    setup: Setup,
    axis: TaskAxis = TaskAxis(),
) -> EvalResult:
    """Adapts to each task and measures the return at every stage of adaptation.

    A budget of radius 0 leaves that side clean, which gives the four cells support {clean,
    attacked} x query {clean, attacked}. Radii are arrays and can be vmapped over.

    Args:
        meta_params: of the learner.
        key: randomness of the episodes; the same key pairs comparisons.
        tasks: leading axis `N`; explicit, never drawn from a training key. Those of this device.
        exposure: the attack on support and query rollouts, see `expose`.
        setup: environment, policy and learner, episodes and steps of adaptation.
        axis: how tasks are computed; the returns are then those of this device.
    """
    batch = collect_meta_batch(
        meta_params,
        key,
        tasks,
        exposure,
        env=setup.env,
        policy=setup.policy,
        learner=setup.learner,
        config=setup.sampling,
        axis=axis,
    )
    support, query = batch.support.trajectory, batch.query.trajectory
    returns = jnp.concatenate([episode_returns(support), episode_returns(query)[:, None]], axis=1)
    sizes = attack_sizes(batch, exposure, axis)
    return EvalResult(returns, sizes.size, sizes.excess, axis.total(jnp.sum(query.diverged)))


def attacked_decisions(
    meta_params: Params,
    key: jax.Array,
    tasks: Task,
    attack: Attack,
    attack_params: Params,
    budget: Budget,
    *,
    setup: Setup,
    axis: TaskAxis = TaskAxis(),
) -> jax.Array:
    """What one attacked observation changes in the return of an episode, `[N, K]`: below 0 where it harms.

    Policies adapt unattacked. Each query episode runs twice with the same random numbers, attacked at one
    step (see `once`) and not at all.

    Args:
        meta_params: of the learner.
        key: randomness of the episodes and of the step.
        tasks: leading axis `N`, those of this device.
        attack: observation attack.
        attack_params: its parameters.
        budget: of the attack, its radius `[]`.
        setup: environment, policy and learner, episodes and steps of adaptation.
        axis: how tasks are computed.
    """
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    at_one_step = once(attack, setup.env.horizon)

    def returns(radius: jax.Array) -> jax.Array:
        support, query = budget._replace(radius=0.0), budget._replace(radius=radius)
        exposure = expose(at_one_step, attack_params, support, query, num_tasks=num_tasks)
        return evaluate(meta_params, key, tasks, exposure, setup=setup, axis=axis).returns[:, -1]

    attacked, clean = jax.lax.map(returns, jnp.stack([jnp.asarray(budget.radius, float), jnp.zeros(())]))
    return attacked - clean


CONSTANT_STD = 1e-3
"""An observation's dimension whose standard deviation is smaller counts as constant."""


def observation_units(batch: MetaBatch, axis: TaskAxis = TaskAxis()) -> Units:
    """Mean and standard deviation `[O]` of true observations over the valid steps of a meta-batch.

    Dimensions that hardly vary get standard deviation 0, which keeps every attack off them.

    Args:
        batch: of this device's tasks; the units are those of all.
        axis: how tasks are computed.
    """
    taken = [x.trajectory for x in (batch.support, batch.query)]
    obs = jnp.concatenate([x.obs.reshape(-1, x.obs.shape[-1]) for x in taken])
    mask = jnp.concatenate([x.mask.reshape(-1, 1) for x in taken])
    count = jnp.maximum(axis.total(jnp.sum(mask)), 1.0)
    mean = axis.total(jnp.sum(obs * mask, axis=0)) / count
    std = jnp.sqrt(axis.total(jnp.sum(jnp.square(obs - mean) * mask, axis=0)) / count)
    return Units(mean, jnp.where(std < CONSTANT_STD, 0.0, std))


def do_nothing_returns(key: jax.Array, tasks: Task, *, env: Env, num_trajectories: int) -> jax.Array:
    """Returns `[N, K]` of a policy whose action is always zero: the floor of every plot."""
    still = Policy(
        init=lambda key: (),
        apply=lambda params, obs: Gaussian(
            jnp.zeros(env.action_size), jnp.full((env.action_size,), -jnp.inf)
        ),
    )

    def one_task(key: jax.Array, task: Task) -> jax.Array:
        trajectory = collect(
            (),
            (),
            key,
            task,
            num_trajectories=num_trajectories,
            env=env,
            policy=still,
            attack=no_attack(),
            budget=Budget(0.0),
            is_query=True,
        )
        return episode_returns(trajectory)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    return jax.vmap(one_task)(jax.random.split(key, num_tasks), tasks)
