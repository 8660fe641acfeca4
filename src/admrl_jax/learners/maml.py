"""Model-agnostic meta-learning: inner loss, step of adaptation, outer surrogate (Finn et al. 2017).

`support` data of one task holds one batch of episodes per adaptation step, fields
`[num_adapt_steps, K, H, ...]`, each collected with the parameters adapted so far. Its advantages
are data: nothing is differentiated through them. As in the common code bases the inner loss is
the plain score function, which leaves out the sampling term of the exact meta-gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import is_on
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, Params, flatten_steps


def inner_loss(params: Params, experience: Experience, *, policy: Policy) -> jax.Array:
    """`-mean(log_prob * advantage)` `[]` over the valid steps of one task (Eq. 2).

    The density is that of the action; where the policy explores by its context, that of the context.

    Args:
        params: policy parameters.
        experience: fields `[K, H, ...]`.
        policy: Gaussian policy.
    """
    data = flatten_steps(experience)
    trajectory = data.trajectory
    if policy.explore:
        log_prob = policy.explore.log_prob(params, trajectory.context)
    else:
        log_prob = gaussian.log_prob(policy.apply(params, trajectory.perturbed_obs), trajectory.action)
    count = jnp.maximum(jnp.sum(trajectory.mask), 1.0)
    return -jnp.sum(log_prob * data.advantage * trajectory.mask) / count


def adapt_step(
    params: Params,
    experience: Experience,
    *,
    policy: Policy,
    inner_lr: float | jax.Array,
    first_order: bool = False,
    max_length: float = 0.0,
    adapts: str = "all",
) -> Params:
    """One gradient step of adaptation on one batch, fields `[K, H, ...]` (Eq. 4).

    Args:
        params: policy parameters.
        experience: fields `[K, H, ...]` of one task.
        policy: Gaussian policy.
        inner_lr: step size.
        first_order: drop the derivative of the gradient.
        max_length: a longer step, in the L2 norm of all parameters, is shortened to that; 0 shortens none.
        adapts: the part of the policy that moves, one of `PARTS`.
    """
    gradient = jax.grad(inner_loss)(params, experience, policy=policy)
    if adapts != "all":
        gradient = jax.tree.map(lambda g, moves: g * moves, gradient, policy.part(gradient, adapts))
    if first_order:
        gradient = jax.lax.stop_gradient(gradient)
    if is_on(max_length):
        flat = jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(gradient)])
        shortened = jnp.minimum(inner_lr, max_length / jnp.maximum(safe_norm(flat), 1e-8))
        inner_lr = jnp.where(max_length > 0, shortened, inner_lr)
    return jax.tree.map(lambda p, g: p - inner_lr * g, params, gradient)


def query_weights(query: Experience, axis: TaskAxis = TaskAxis()) -> jax.Array:
    """Weight `[N, K H]` of each query sample: tasks count equally, then their valid steps.

    The weights of all tasks, those of other devices included, sum to one.
    """
    mask = query.trajectory.mask.reshape(query.trajectory.mask.shape[0], -1)
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)
    return mask / (count * mask.shape[0] * axis.num_devices)


def surrogate_loss(query: Experience, weights: jax.Array) -> Callable[[Gaussian, Gaussian], jax.Array]:
    """Builds `(new, old) -> loss []`: minus the mean of probability ratio x advantage.

    `old` are the adapted policies that collected the query data.

    Args:
        query: fields `[N, K, H, ...]`.
        weights: `[N, K H]` from `query_weights`.
    """
    action = query.trajectory.action
    action = action.reshape(action.shape[0], -1, action.shape[-1])
    weighted_advantage = weights * query.advantage.reshape(weights.shape)

    def surrogate(new: Gaussian, old: Gaussian) -> jax.Array:
        ratio = jnp.exp(gaussian.log_prob(new, action) - gaussian.log_prob(old, action))
        return -jnp.sum(ratio * weighted_advantage)

    return surrogate
