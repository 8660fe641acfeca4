"""Trust region policy optimisation on any map from parameters to Gaussians.

The data come in groups (one per task, say), and `predict_fn` maps parameters and one group to Gaussians;
it may hide an inner gradient step. It is linearised once; the surrogate's gradient and every Fisher
product push and pull through that same linear map, group by group. At the old parameters the Hessian of the
KL divergence is exactly this Gauss-Newton product, so no third derivatives and no finite differences
are needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from admrl_jax import gaussian, mapped_axis
from admrl_jax.blocks import map_blocks, sum_entries
from admrl_jax.gaussian import Gaussian
from admrl_jax.types import Params


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


def conjugate_gradient(
    matvec: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    *,
    iterations: int,
    tolerance: float = 1e-10,
) -> tuple[jax.Array, jax.Array]:
    """Approximately solves `A x = b` for a positive definite `A`, starting from zero.

    Args:
        matvec: `x -> A x` on vectors `[P]`.
        b: `[P]`.
        iterations: products at most; the solution stays put once converged.
        tolerance: squared residual below which iterations change nothing.

    Returns:
        `(x [P], residual b - A x [P])`.
    """

    def body(_, carry):
        x, r, p, rr = carry
        product = matvec(p)
        curvature = jnp.vdot(p, product)
        active = (rr > tolerance) & (curvature > 0)
        alpha = jnp.where(active, rr / jnp.where(active, curvature, 1.0), 0.0)
        x = x + alpha * p
        r = r - alpha * product
        new_rr = jnp.vdot(r, r)
        p = jnp.where(active, r + (new_rr / jnp.where(rr > 0, rr, 1.0)) * p, p)
        return x, r, p, new_rr

    init = (jnp.zeros_like(b), b, b, jnp.vdot(b, b))
    x, residual, _, _ = jax.lax.fori_loop(0, iterations, body, init)
    return x, residual


def mean_kl(old: Gaussian, new: Gaussian, weights: jax.Array) -> jax.Array:
    """Weighted KL(old, new) `[]`; `weights` `[...]` sum to one and are zero on masked steps."""
    return jnp.sum(weights * gaussian.kl(old, new))


def fisher_product(
    predict_fn: Callable[[Params, Any], Gaussian],
    params: Params,
    data: Any,
    weights: jax.Array,
    *,
    block: int = 0,
) -> tuple[Gaussian, Callable[[Gaussian], Params], Callable[[Params], Params]]:
    """Linearises `predict_fn` at `params`, group by group, and builds the Fisher product from it.

    Args:
        predict_fn: `(params, group) -> Gaussian`.
        params: where to linearise.
        data: leaves `[N, ...]`, a group each.
        weights: `[N, ...]` weight of each sample in the KL divergence.
        block: groups computed together, see `blocks.map_blocks`.

    Returns:
        `(outputs at params [N, ...], pull, product)`: `pull` takes output cotangents to parameter
        cotangents, `product` is `v -> F v`, the KL Hessian at `params` times `v`.
    """
    # Matrix products are kept; activations and slopes between them are computed again in every product, which
    # takes less time than fetching them from memory, and less than half of the memory.
    lean = jax.checkpoint(predict_fn, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)

    # `jit` keeps what was traced: blocks of every size then hold the same function.
    @jax.jit
    def linearise(group: Any) -> tuple[Gaussian, Callable[[Params], Gaussian]]:
        return jax.linearize(lambda params: lean(params, group), params)

    outputs, pushes = map_blocks(linearise, data, block)

    def pull_one(group: tuple[Callable[[Params], Gaussian], Gaussian]) -> Params:
        push, cotangent = group
        return jax.linear_transpose(push, params)(cotangent)[0]

    def product(vector: Params) -> Params:
        # Pushed and pulled in one go, while the group's linear map is in the cache.
        def product_one(group: tuple[Callable[[Params], Gaussian], Gaussian, jax.Array]) -> Params:
            push, output, weight = group
            kl_gradient = jax.grad(lambda new: mean_kl(output, new, weight))
            return pull_one((push, jax.jvp(kl_gradient, (output,), (push(vector),))[1]))

        return sum_entries(product_one, (pushes, outputs, weights), block)

    def pull(cotangent: Gaussian) -> Params:
        return sum_entries(pull_one, (pushes, cotangent), block)

    return outputs, pull, product


def trpo_update(
    params: Params,
    predict_fn: Callable[[Params, Any], Gaussian],
    data: Any,
    surrogate_fn: Callable[[Gaussian, Gaussian], jax.Array],
    weights: jax.Array,
    *,
    max_kl: float | jax.Array = 0.01,
    cg_iterations: int = 10,
    cg_damping: float = 1e-5,
    line_search_steps: int = 15,
    backtrack_ratio: float = 0.8,
    block: int = 0,
    axis_name: str | None = None,
) -> tuple[Params, TRPOInfo]:
    """One trust-region step (Schulman et al. 2015) that lowers a surrogate loss.

    Args:
        params: parameters the data was collected with.
        predict_fn: `(params, group) -> Gaussian`, the action distributions on one group of the data, mean
            `[..., A]`.
        data: leaves `[N, ...]`, a group each.
        surrogate_fn: `(new, old) -> loss []` of two predictions on all groups, mean `[N, ..., A]`.
        weights: `[N, ...]` weight of each sample in the KL divergence; sums to one.
        max_kl: bound on the weighted KL(old, new).
        cg_iterations: Fisher products per step.
        cg_damping: multiple of the identity added to the Fisher matrix.
        line_search_steps: candidates at most.
        backtrack_ratio: step ratio between candidates.
        block: groups computed together; blocks follow one another. 0 chooses, see `blocks.at_once`.
        axis_name: mapped axis over which the data is spread; `weights` sum to one over all of it, and
            losses, divergences and gradients are summed over it.

    Returns:
        `(params, info)`. A candidate is accepted when the loss falls and the KL bound holds;
        otherwise, or when anything is not finite, the old parameters come back.
    """
    with jax.default_matmul_precision("highest"):
        old, pull, product = fisher_product(predict_fn, params, data, weights, block=block)
        loss_before, output_gradient = jax.value_and_grad(surrogate_fn)(old, old)
        gradient, unravel = ravel_pytree(pull(output_gradient))
        loss_before, gradient = mapped_axis.total((loss_before, gradient), axis_name)

        def damped(vector: jax.Array) -> jax.Array:
            part = ravel_pytree(product(unravel(vector)))[0]
            return mapped_axis.total(part, axis_name) + cg_damping * vector

        direction, residual = conjugate_gradient(damped, gradient, iterations=cg_iterations)
        # A x = b - residual, so x.A.x costs no further product.
        curvature = jnp.vdot(direction, gradient - residual)
        scale = jnp.sqrt(2 * max_kl / jnp.maximum(curvature, 1e-12))
        flat, _ = ravel_pytree(params)
        step = -scale * direction
        finite = jnp.isfinite(loss_before) & jnp.all(jnp.isfinite(step))

        def candidate(i: jax.Array) -> jax.Array:
            return flat + backtrack_ratio ** i.astype(flat.dtype) * step

        def rejected(carry):
            i, _, _, accepted = carry
            return (i < line_search_steps) & ~accepted

        def try_step(carry):
            i, _, _, _ = carry
            there = unravel(candidate(i))
            new = map_blocks(lambda group: predict_fn(there, group), data, block)
            parts = surrogate_fn(new, old), mean_kl(old, new, weights)
            loss, kl = mapped_axis.total(parts, axis_name)
            # Comparisons with NaN are false, so a broken candidate is never accepted.
            accepted = finite & jnp.isfinite(loss) & (loss < loss_before) & (kl <= max_kl)
            return i + 1, loss, kl, accepted

        start = (jnp.zeros((), jnp.int32), loss_before, jnp.zeros_like(loss_before), jnp.array(False))
        tried, loss, kl, accepted = jax.lax.while_loop(rejected, try_step, start)
        broken = ~accepted & ~(finite & jnp.isfinite(loss) & jnp.isfinite(kl))
        new_params = unravel(jnp.where(accepted, candidate(tried - 1), flat))

    gradient_norm = jnp.linalg.norm(gradient)
    info = TRPOInfo(
        loss_before=loss_before,
        loss_after=jnp.where(accepted, loss, loss_before),
        kl=jnp.where(accepted, kl, 0.0),
        accepted=accepted.astype(loss.dtype),
        skipped=broken.astype(loss.dtype),
        line_search_steps=tried,
        gradient_norm=gradient_norm,
        cg_residual=jnp.linalg.norm(residual) / jnp.maximum(gradient_norm, 1e-12),
    )
    return new_params, info
