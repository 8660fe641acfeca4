"""Linear algebra: the norm's gradient at zero, conjugate gradients, and the solver for small systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.core.linalg import conjugate_gradient, safe_norm, solve_positive_definite


def test_safe_norm_value_and_gradient() -> None:
    value, gradient = jax.vmap(jax.value_and_grad(safe_norm))(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(value, [5, 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_conjugate_gradient_matches_solve(x64: None) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    matrix, b = root @ root.T + np.eye(8), rng.normal(size=8)
    x, residual = conjugate_gradient(
        lambda v: jnp.asarray(matrix) @ v, jnp.asarray(b), iterations=30, tolerance=1e-24
    )
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)
    np.testing.assert_allclose(residual, 0, atol=1e-10)


def test_conjugate_gradient_stops_when_asked_and_reports_its_residual() -> None:
    matrix = jnp.diag(jnp.array([1.0, 10.0, 100.0, 1000.0]))
    b = jnp.ones(4)
    x, residual = conjugate_gradient(lambda v: matrix @ v, b, iterations=2)
    np.testing.assert_allclose(residual, b - matrix @ x, atol=1e-4)
    assert np.linalg.norm(residual) > 1e-3
    zero, _ = conjugate_gradient(lambda v: matrix @ v, jnp.zeros(4), iterations=5)
    np.testing.assert_array_equal(zero, 0)


def test_solve_gives_dependent_columns_no_weight() -> None:
    # The third column is the sum of the first two but for rounding, which made its pivot negative.
    base = np.array([[1, 0.25, 1.25], [0.25, 1, 1.25], [1.25, 1.25, 2.5 - 1e-6]])
    ours = solve_positive_definite(jnp.asarray(base, jnp.float32), jnp.asarray([1.0, -1.0, 0.0], jnp.float32))
    np.testing.assert_allclose(ours, [4 / 3, -4 / 3, 0], rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 44])
def test_solve_positive_definite_matches_numpy(size: int) -> None:
    rng = np.random.default_rng(size)
    root = rng.normal(size=(3, size, size))
    matrix = root @ root.transpose(0, 2, 1) + 0.1 * size * np.eye(size)
    vector = rng.normal(size=(3, size))
    solve = jax.jit(jax.vmap(solve_positive_definite))
    ours = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(vector, jnp.float32))
    # Condition numbers up to about 100 in float32.
    np.testing.assert_allclose(ours, np.linalg.solve(matrix, vector[..., None])[..., 0], atol=1e-4)
