"""Model-agnostic meta-learning: inner loss, adaptation, and the outer surrogate (Finn et al. 2017).

`support` data of one task holds one batch of episodes per adaptation step, fields
`[num_adapt_steps, K, H, ...]`, each collected with the parameters adapted so far. Its advantages
are data: nothing is differentiated through them. As in the common code bases the inner loss is
the plain score function, which leaves out the sampling term of the exact meta-gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

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
    support: Experience,
    query: Experience,
    *,
    policy: Policy,
    inner_lr: float | jax.Array,
    num_adapt_steps: int,
    first_order: bool = False,
    task_block: int = 0,
) -> Callable[[Params], Gaussian]:
    """Builds `params -> Gaussian`: adapt to every task, then predict on its query data.

    Args:
        support: fields `[N, num_adapt_steps, K, H, ...]`.
        query: fields `[N, K, H, ...]`.
        policy: Gaussian policy.
        inner_lr: step size.
        num_adapt_steps: gradient steps.
        first_order: treat the inner gradients as constants.
        task_block: tasks computed together; blocks run one after the other, so that their
            activations stay in a CPU's cache. 0 chooses, see `tasks_at_once`.

    Returns:
        A function whose value has mean `[N, K H, A]` and log_std `[N, 1, A]`.
    """
    query_obs = query.trajectory.perturbed_obs
    query_obs = query_obs.reshape(query_obs.shape[0], -1, query_obs.shape[-1])

    def predict(params: Params) -> Gaussian:
        def one_task(data):
            task_support, task_obs = data
            adapted = adapt(
                params,
                task_support,
                policy=policy,
                inner_lr=inner_lr,
                num_adapt_steps=num_adapt_steps,
                first_order=first_order,
            )
            dist = policy.apply(adapted, task_obs)
            return Gaussian(dist.mean, dist.log_std[None])

        return map_blocks(one_task, (support, query_obs), task_block)

    return predict


def map_blocks(function: Callable, data: Any, block: int) -> Any:
    """`vmap(function)` over the leading axis, `block` entries at a time, 0 choosing as in `tasks_at_once`."""
    count = jax.tree.leaves(data)[0].shape[0]
    block = min(tasks_at_once(block, count), count)
    if block == 1:
        return jax.lax.map(function, data)
    return jax.vmap(function)(data) if block == count else jax.lax.map(function, data, batch_size=block)


def sum_blocks(function: Callable, data: Any, block: int) -> Any:
    """Sum of `function` over blocks of the leading axis, `block` entries at a time as in `map_blocks`.

    Args:
        function: takes any number of entries, leading axis kept, and returns a tree that is a sum over them.
        data: leaves `[N, ...]`.
        block: entries at a time.
    """
    count = jax.tree.leaves(data)[0].shape[0]
    block = min(tasks_at_once(block, count), count)
    whole = count // block * block

    def part(start: int, stop: int):
        return jax.tree.map(lambda x: x[start:stop], data)

    if block == count:
        return function(data)
    # `jit` keeps what was traced for its shapes.
    function = jax.jit(function)
    blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), part(0, whole))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, part(0, block)))
    add = functools.partial(jax.tree.map, jnp.add)
    total, _ = jax.lax.scan(lambda total, entries: (add(total, function(entries)), None), nothing, blocks)
    return total if whole == count else add(total, function(part(whole, count)))


def tasks_at_once(block: int, num_tasks: int) -> int:
    """`task_block`, where 0 chooses: one task on a CPU, whose cache then holds it, else all."""
    if block:
        return block
    return 1 if jax.default_backend() == "cpu" else num_tasks


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
