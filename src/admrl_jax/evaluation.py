"""Meta-test: adapt to held-out tasks and measure returns, clean and under attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax import mapped_axis
from admrl_jax.attacks import Attack, Budget, no_attack
from admrl_jax.config import MAMLConfig
from admrl_jax.envs.base import Env
from admrl_jax.gaussian import Gaussian
from admrl_jax.networks import Policy
from admrl_jax.rollout import collect, episode_returns
from admrl_jax.training import collect_meta_batch
from admrl_jax.types import Experience, Params, Task


class EvalResult(NamedTuple):
    """What a meta-test measured.

    Attributes:
        returns: `[N, num_adapt_steps + 1, K]` undiscounted return of every episode.
        attack_size: `[]` mean norm of the perturbations on query data, in the budget's units.
        budget_excess: `[]` by how much any perturbation broke its budget; 0 when all held.
    """

    returns: jax.Array
    attack_size: jax.Array
    budget_excess: jax.Array


def evaluate(
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
) -> EvalResult:
    """Adapts to each task and measures the return at every stage of adaptation.

    A budget of radius 0 leaves that side clean, which gives the four cells support {clean,
    attacked} x query {clean, attacked}. Radii are arrays and can be vmapped over.

    Args:
        policy_params: meta-parameters.
        attack_params: parameters of `attack`.
        key: randomness of the episodes; the same key pairs comparisons.
        tasks: leading axis `N`; explicit, never drawn from a training key.
        env: task family.
        policy: Gaussian policy.
        attack: observation attack.
        support_budget: budget during adaptation.
        query_budget: budget after the last adaptation step.
        config: trajectories and adaptation settings.
        axis_name: mapped axis over which tasks are spread; `tasks` and the returns are then those of
            this device.
    """
    batch = collect_meta_batch(
        policy_params,
        attack_params,
        key,
        tasks,
        env=env,
        policy=policy,
        attack=attack,
        support_budget=support_budget,
        query_budget=query_budget,
        config=config,
        axis_name=axis_name,
    )
    support, query = batch.support.trajectory, batch.query.trajectory
    returns = jnp.concatenate([episode_returns(support), episode_returns(query)[:, None]], axis=1)
    before = attack.measure(support.obs, support.perturbed_obs, support_budget)
    after = attack.measure(query.obs, query.perturbed_obs, query_budget)
    size, valid = mapped_axis.total((jnp.sum(after.size * query.mask), jnp.sum(query.mask)), axis_name)
    excess = jnp.maximum(jnp.max(before.excess), jnp.max(after.excess))
    return EvalResult(
        returns=returns,
        attack_size=size / jnp.maximum(valid, 1.0),
        budget_excess=mapped_axis.largest(excess, axis_name),
    )


def observation_statistics(
    support: Experience, query: Experience, *, min_std: float = 1e-3
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation `[O]` of true observations over the valid steps of a meta-batch.

    Dimensions that hardly vary get standard deviation 0, which keeps every attack off them.

    Args:
        support: fields `[N, S, K, H, ...]`.
        query: fields `[N, K, H, ...]`.
        min_std: smaller standard deviations count as constant.
    """
    obs = [x.trajectory.obs.reshape(-1, x.trajectory.obs.shape[-1]) for x in (support, query)]
    mask = [x.trajectory.mask.reshape(-1, 1) for x in (support, query)]
    obs, mask = jnp.concatenate(obs), jnp.concatenate(mask)
    count = jnp.maximum(jnp.sum(mask), 1.0)
    mean = jnp.sum(obs * mask, axis=0) / count
    std = jnp.sqrt(jnp.sum(jnp.square(obs - mean) * mask, axis=0) / count)
    return mean, jnp.where(std < min_std, 0.0, std)


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
        )
        return episode_returns(trajectory)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    return jax.vmap(one_task)(jax.random.split(key, num_tasks), tasks)
