"""Linear algebra that the learners need: conjugate gradients and a Cholesky solver that batches well."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def safe_norm(x: jax.Array) -> jax.Array:
    """L2 norm `[...]` of `[..., O]` whose gradient at zero is zero instead of NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


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


def solve_positive_definite(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Solves `matrix @ x = vector` by Cholesky's factorisation, column by column.

    Columns that depend on earlier ones to within rounding get the weight 0.

    Not `jax.scipy.linalg` on a CPU: that calls LAPACK, and jaxlib (seen in 0.10.2) hands the matrices of a
    batch to the pool of threads on which it already runs and waits for them there. When as many devices as
    the pool has threads are at such a call, they wait for each other for ever. Other devices have no such
    pool and take their own solver.

    Args:
        matrix: `[F, F]`, symmetric and positive definite but for rounding.
        vector: `[F]`.

    Returns:
        `x [F]`.
    """
    return jax.lax.platform_dependent(matrix, vector, cpu=_solve_by_columns, default=_solve_by_library)


def _solve_by_library(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """`solve_positive_definite` by the device's own factorisation of a slightly larger diagonal."""
    # Dependent columns leave rounding on the diagonal; a few units in the last place keep it positive.
    jitter = 64 * jnp.finfo(matrix.dtype).eps * jnp.diag(jnp.diagonal(matrix) + 1e-12)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix + jitter, lower=True), vector)


def _solve_by_columns(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """`solve_positive_definite`, column by column."""
    size = vector.shape[0]
    index = jnp.arange(size)
    smallest = 8 * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix)

    def eliminate(j, carry):
        rest, factor, y = carry
        # Exact pivots are positive. One that is only rounding would blow up all that follow.
        is_dependent = rest[j, j] <= smallest[j]
        pivot = jnp.sqrt(jnp.where(is_dependent, 1.0, rest[j, j]))
        column = jnp.where(is_dependent | (index < j), 0.0, rest[:, j]) / pivot
        solved = jnp.where(is_dependent, 0.0, y[j] / pivot)
        y = jnp.where(index > j, y - solved * column, y).at[j].set(solved)
        factor = factor.at[:, j].set(column).at[j, j].set(pivot)
        return rest - column[:, None] * column[None, :], factor, y

    def substitute(i, carry):
        factor, x = carry
        j = size - 1 - i
        later = jnp.sum(jnp.where(index > j, factor[:, j] * x, 0.0))
        return factor, x.at[j].set((x[j] - later) / factor[j, j])

    start = (matrix, jnp.zeros_like(matrix), vector)
    _, factor, y = jax.lax.fori_loop(0, size, eliminate, start)
    return jax.lax.fori_loop(0, size, substitute, (factor, y))[1]
