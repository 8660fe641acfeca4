"""Trust region policy optimisation on any map from parameters to predictions.

The data come in groups (one per task, say), and `predict` maps parameters and one group to a pytree of
predictions; it may contain an inner gradient step. It is linearised once; the loss's gradient and every
Fisher product push and pull through that same linear map, group by group. At the old parameters the Hessian
of the KL divergence is exactly this Gauss-Newton product, so no third derivatives and no finite differences
are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from admrl_jax.core.linalg import conjugate_gradient
from admrl_jax.core.settings import FRACTION, NOT_NEGATIVE, REPEATS, STEP_SIZE
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Params

Predictions = Any
"""A pytree of arrays, with a loss and a KL divergence on it."""


@dataclass(frozen=True, kw_only=True)
class TRPOConfig:
    """Settings of the trust-region step."""

    max_kl: Annotated[float, STEP_SIZE] = 0.01
    """Bound on KL(old, new)."""
    cg_iterations: Annotated[int, REPEATS] = 10
    """Fisher products per step."""
    cg_damping: Annotated[float, NOT_NEGATIVE] = 1e-5
    """Multiple of the identity added to the Fisher matrix."""
    line_search_steps: Annotated[int, REPEATS] = 15
    """Candidates at most."""
    backtrack_ratio: Annotated[float, FRACTION] = 0.8
    """Step ratio between candidates."""


class TRPOInfo(NamedTuple):
    """Diagnostics of one trust-region step, all `[]`.

    Attributes:
        loss_before: surrogate loss at the old parameters.
        loss_after: surrogate loss at the returned parameters.
        kl: KL(old, new) at the returned parameters, 0 when the step was rejected.
        accepted: 1 where the line search found a step, else 0.
        skipped: 1 where no step was taken because something was not finite: the loss, its gradient,
            the direction, or the last candidate.
        line_search_steps: candidates tried.
        gradient_norm: L2 norm of the surrogate's gradient.
        cg_residual: relative residual of the conjugate gradient solution.
    """

    loss_before: jax.Array
    loss_after: jax.Array
    kl: jax.Array
    accepted: jax.Array
    skipped: jax.Array
    line_search_steps: jax.Array
    gradient_norm: jax.Array
    cg_residual: jax.Array


class Objective(NamedTuple):
    """What a trust-region step lowers, and what bounds it.

    Attributes:
        predict: `(params, group) -> predictions` of one group of the data.
        loss: `(new, old) -> []` of two predictions on all groups of this device, leading axis `N`.
        kl: `(old, new, group) -> []` of two predictions on one group; sums over groups to the
            divergence that is bounded.
    """

    predict: Callable[[Params, Any], Predictions]
    loss: Callable[[Predictions, Predictions], jax.Array]
    kl: Callable[[Predictions, Predictions, Any], jax.Array]


class Linearised(NamedTuple):
    """An objective's predictions at some parameters, and the linear map around them.

    Attributes:
        outputs: predictions, leading axis `N`.
        pull: `(cotangents of outputs) -> cotangent of the parameters`.
        product: `v -> F v`, the KL Hessian at the parameters times `v`.
    """

    outputs: Predictions
    pull: Callable[[Predictions], Params]
    product: Callable[[Params], Params]


def linearise(params: Params, data: Any, objective: Objective, axis: TaskAxis = TaskAxis()) -> Linearised:
    """Linearises the predictions at `params`, group by group, and builds the Fisher product from them.

    Args:
        params: where to linearise.
        data: leaves `[N, ...]`, a group each.
        objective: its predictions and KL divergence.
        axis: how groups are computed; sums are over this device's groups.
    """
    # Matrix products are kept; activations and slopes between them are computed again in every product, which
    # takes less time than fetching them from memory, and less than half of the memory.
    lean = jax.checkpoint(objective.predict, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)

    # `jit` caches what was traced, so that blocks of every size hold the same function.
    @jax.jit
    def linearise_one(group: Any) -> tuple[Predictions, Callable[[Params], Predictions]]:
        return jax.linearize(lambda params: lean(params, group), params)

    outputs, pushes = axis.map(linearise_one, data)

    def pull_one(group: tuple[Callable[[Params], Predictions], Predictions]) -> Params:
        push, cotangent = group
        return jax.linear_transpose(push, params)(cotangent)[0]

    def product(vector: Params) -> Params:
        # Pushed and pulled in one go, while the group's linear map is in the cache.
        def product_one(entry: tuple[Callable[[Params], Predictions], Predictions, Any]) -> Params:
            push, output, group = entry
            kl_gradient = jax.grad(lambda new: objective.kl(output, new, group))
            return pull_one((push, jax.jvp(kl_gradient, (output,), (push(vector),))[1]))

        return axis.sum_tasks(product_one, (pushes, outputs, data))

    def pull(cotangent: Predictions) -> Params:
        return axis.sum_tasks(pull_one, (pushes, cotangent))

    return Linearised(outputs, pull, product)


def trpo_update(
    params: Params, data: Any, objective: Objective, config: TRPOConfig, axis: TaskAxis = TaskAxis()
) -> tuple[Params, TRPOInfo]:
    """One trust-region step (Schulman et al. 2015) that lowers a loss.

    Args:
        params: parameters the data was collected with.
        data: leaves `[N, ...]`, a group each.
        objective: predictions, loss and KL divergence.
        config: sizes of the step and effort.
        axis: how groups are computed. Over devices, losses, divergences and gradients are summed.

    Returns:
        `(params, info)`. A candidate is accepted when the loss falls and the KL bound holds;
        otherwise, or when anything is not finite, the old parameters come back.
    """
    with jax.default_matmul_precision("highest"):
        old, pull, product = linearise(params, data, objective, axis)
        loss_before, output_gradient = jax.value_and_grad(objective.loss)(old, old)
        gradient, unravel = ravel_pytree(pull(output_gradient))
        loss_before, gradient = axis.total((loss_before, gradient))

        def damped(vector: jax.Array) -> jax.Array:
            part = ravel_pytree(product(unravel(vector)))[0]
            return axis.total(part) + config.cg_damping * vector

        direction, residual = conjugate_gradient(damped, gradient, iterations=config.cg_iterations)
        # A x = b - residual, so x.A.x costs no further product.
        curvature = jnp.vdot(direction, gradient - residual)
        step = -jnp.sqrt(2 * config.max_kl / jnp.maximum(curvature, 1e-12)) * direction

        def measure(candidate: Params) -> tuple[jax.Array, jax.Array]:
            new = axis.map(lambda group: objective.predict(candidate, group), data)
            kl = jnp.sum(jax.vmap(objective.kl)(old, new, data))
            return axis.total((objective.loss(new, old), kl))

        found = _search_line(params, step, loss_before, measure, config)

    gradient_norm = jnp.linalg.norm(gradient)
    info = found.info._replace(
        gradient_norm=gradient_norm,
        cg_residual=jnp.linalg.norm(residual) / jnp.maximum(gradient_norm, 1e-12),
    )
    return found.params, info


class _Found(NamedTuple):
    params: Params
    info: TRPOInfo


def _search_line(
    params: Params,
    step: jax.Array,
    loss_before: jax.Array,
    measure: Callable[[Params], tuple[jax.Array, jax.Array]],
    config: TRPOConfig,
) -> _Found:
    """Tries shorter and shorter steps until one lowers the loss within the KL bound; none if none does."""
    flat, unravel = ravel_pytree(params)
    is_sound = jnp.isfinite(loss_before) & jnp.all(jnp.isfinite(step))

    def candidate(i: jax.Array) -> jax.Array:
        return flat + config.backtrack_ratio ** i.astype(flat.dtype) * step

    def rejected(carry):
        i, _, _, accepted = carry
        return (i < config.line_search_steps) & ~accepted

    def try_step(carry):
        i, _, _, _ = carry
        loss, kl = measure(unravel(candidate(i)))
        # Comparisons with NaN are false, so a broken candidate is never accepted.
        accepted = is_sound & jnp.isfinite(loss) & (loss < loss_before) & (kl <= config.max_kl)
        return i + 1, loss, kl, accepted

    start = (jnp.zeros((), jnp.int32), loss_before, jnp.zeros_like(loss_before), jnp.array(False))
    tried, loss, kl, accepted = jax.lax.while_loop(rejected, try_step, start)
    broken = ~accepted & ~(is_sound & jnp.isfinite(loss) & jnp.isfinite(kl))
    nothing = jnp.zeros_like(loss_before)
    info = TRPOInfo(
        loss_before=loss_before,
        loss_after=jnp.where(accepted, loss, loss_before),
        kl=jnp.where(accepted, kl, 0.0),
        accepted=accepted.astype(loss.dtype),
        skipped=broken.astype(loss.dtype),
        line_search_steps=tried,
        gradient_norm=nothing,
        cg_residual=nothing,
    )
    return _Found(unravel(jnp.where(accepted, candidate(tried - 1), flat)), info)
