"""How a task came out after adaptation, which is what its support data is to blame for."""

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Victim
from admrl_jax.core.linalg import solve_positive_definite
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch


def outcomes(batch: MetaBatch, victim: Victim, axis: TaskAxis = TaskAxis()) -> jax.Array:
    """How much better each task `[N]` came out than a linear guess from the task, in standard deviations.

    This is what the support data of a task is to blame for: tasks differ in what can be had.
    """
    taken = batch.query.trajectory
    returns = jnp.mean(jnp.sum(taken.reward, axis=-1), axis=-1)
    features = jax.vmap(victim.task_features)(batch.tasks)
    features = jnp.concatenate([jnp.ones_like(returns)[:, None], features], axis=-1)
    products, moments = axis.total((features.T @ features, features.T @ returns))
    guess = features @ solve_positive_definite(products + jnp.eye(products.shape[0]), moments)
    rest = returns - guess
    rest = rest - axis.mean(jnp.mean(rest))
    spread = jnp.sqrt(axis.mean(jnp.mean(jnp.square(rest))))
    return rest / (spread + 1e-6)
