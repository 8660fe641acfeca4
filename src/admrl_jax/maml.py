"""Model-agnostic meta-learning: inner loss, adaptation, and the outer surrogate (Finn et al. 2017).

`support` data of one task holds one batch of episodes per adaptation step, fields
`[num_adapt_steps, K, H, ...]`, each collected with the parameters adapted so far. Its advantages
are data: nothing is differentiated through them. As in the common code bases the inner loss is
the plain score function, which leaves out the sampling term of the exact meta-gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from admrl_jax import gaussian, mapped_axis
from admrl_jax.gaussian import Gaussian
from admrl_jax.networks import Policy
from admrl_jax.types import Experience, Params


def inner_loss(params: Params, experience: Experience, *, policy: Policy) -> jax.Array:
    """`-mean(log_prob * advantage)` `[]` over the valid steps of one task (Eq. 2).

    Args:
        params: policy parameters.
        experience: fields `[K, H, ...]`.
        policy: Gaussian policy.
    """
    data = flatten_steps(experience)
    trajectory = data.trajectory
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
) -> Params:
    """One gradient step of adaptation on one batch, fields `[K, H, ...]` (Eq. 4)."""
    gradient = jax.grad(inner_loss)(params, experience, policy=policy)
    if first_order:
        gradient = jax.lax.stop_gradient(gradient)
    return jax.tree.map(lambda p, g: p - inner_lr * g, params, gradient)


def adapt(
    params: Params,
    support: Experience,
    *,
    policy: Policy,
    inner_lr: float | jax.Array,
    num_adapt_steps: int,
    first_order: bool = False,
) -> Params:
    """Adapts to one task; differentiable with respect to `params`.

    Args:
        params: meta-parameters.
        support: fields `[num_adapt_steps, K, H, ...]`.
        policy: Gaussian policy.
        inner_lr: step size.
        num_adapt_steps: gradient steps.
        first_order: treat the inner gradients as constants.
    """
    for step in range(num_adapt_steps):
        batch = jax.tree.map(lambda x, step=step: x[step], support)
        params = adapt_step(params, batch, policy=policy, inner_lr=inner_lr, first_order=first_order)
    return params


def flatten_steps(experience: Experience) -> Experience:
    """Merges the axes `[K, H]` of one task into one axis of samples."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), experience)


def adapt_and_predict(
    params: Params,
    task: tuple[Experience, Experience],
    *,
    policy: Policy,
    inner_lr: float | jax.Array,
    num_adapt_steps: int,
    first_order: bool = False,
) -> Gaussian:
    """Adapts to one task, then predicts the actions on its query data.

    Args:
        params: meta-parameters.
        task: support, fields `[num_adapt_steps, K, H, ...]`, and query, fields `[K, H, ...]`.
        policy: Gaussian policy.
        inner_lr: step size.
        num_adapt_steps: gradient steps.
        first_order: treat the inner gradients as constants.

    Returns:
        Mean `[K H, A]` and log_std `[1, A]`.
    """
    support, query = task
    adapted = adapt(
        params,
        support,
        policy=policy,
        inner_lr=inner_lr,
        num_adapt_steps=num_adapt_steps,
        first_order=first_order,
    )
    dist = policy.apply(adapted, flatten_steps(query).trajectory.perturbed_obs)
    return Gaussian(dist.mean, dist.log_std[None])


def query_weights(query: Experience, axis_name: str | None = None) -> jax.Array:
    """Weight `[N, K H]` of each query sample: tasks count equally, then their valid steps.

    The weights of all tasks, those of other devices on `axis_name` included, sum to one.
    """
    mask = query.trajectory.mask.reshape(query.trajectory.mask.shape[0], -1)
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)
    return mask / (count * mask.shape[0] * mapped_axis.size(axis_name))


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
