"""Networks: the policy's activation is the hyperbolic tangent, its slopes included."""

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax import networks


def test_tanh_and_its_first_three_derivatives() -> None:
    x = jnp.array([-30.0, -2.0, -0.5, 0.0, 1e-4, 0.7, 3.0, 30.0])
    ours, true = networks.ACTIVATIONS["tanh"], jnp.tanh
    for _ in range(4):
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(true)(x), rtol=1e-5, atol=1e-6)
        ours, true = jax.grad(ours), jax.grad(true)
