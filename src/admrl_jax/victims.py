"""What attacks are built against, from an environment, a policy and its learner."""

import math

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Victim
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Task
from admrl_jax.envs.base import Env
from admrl_jax.learners.base import Learner

DRAWN_TASKS = 256
"""By whose mean and spread the numbers of a task are standardised."""


def make_victim(env: Env, policy: Policy, learner: Learner | None = None) -> Victim:
    """A victim.

    Args:
        env: task family; its `action_limit`, if it has one, is the magnitude at which it clips raw actions.
        policy: Gaussian policy.
        learner: adapts it; without one, attacks through the adaptation cannot be built.
    """
    # Constants, unless the environment's own numbers are traced.
    with jax.ensure_compile_time_eval():
        tasks = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(0), DRAWN_TASKS))
        numbers = jax.vmap(flat_task)(tasks)
        centre, spread = numbers.mean(axis=0), numbers.std(axis=0)
        scale = jnp.where(spread > 1e-6, 1 / jnp.where(spread > 1e-6, spread, 1), 0.0)
    return Victim(
        policy,
        env.obs_size,
        env.action_size,
        task_size=numbers.shape[-1],
        task_features=lambda task: (flat_task(task) - centre) * scale,
        action_limit=getattr(env, "action_limit", math.inf),
        adapt_step=learner.adapt_step if learner else None,
        name=learner.name if learner else "",
        attackable=tuple(getattr(env, "attackable", ())),
    )


def flat_task(task: Task) -> jax.Array:
    """All numbers of a task as a vector `[T]`."""
    leaves = [jnp.ravel(jnp.asarray(leaf)).astype(float) for leaf in jax.tree.leaves(task)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros((0,))
