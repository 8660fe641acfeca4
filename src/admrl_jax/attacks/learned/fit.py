"""Adam steps on a network, which several attackers have in common."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from admrl_jax.core.types import Params, all_finite, where_tree


def fit(
    value_and_grad: Callable[[Params, jax.Array], tuple[jax.Array, Params]],
    optimizer: optax.GradientTransformation,
    network: Params,
    opt_state: Any,
    keys: jax.Array,
) -> tuple[Params, Any, jax.Array, jax.Array]:
    """One step per key; a step in which anything is not finite changes nothing.

    Args:
        value_and_grad: `(network, key) -> (loss [], gradient)`.
        optimizer: takes the steps.
        network: parameters to start from.
        opt_state: of the optimiser.
        keys: `[T]`.

    Returns:
        `(network, opt_state, losses [T], skipped [T])`, `skipped` 1 for a step that changed nothing.
    """

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
        network, opt_state = carry
        value, gradient = value_and_grad(network, key)
        updates, opt_state = optimizer.update(gradient, opt_state, network)
        new = (optax.apply_updates(network, updates), opt_state)
        finite = all_finite((gradient, new))
        return where_tree(finite, new, carry), (value, 1.0 - finite.astype(value.dtype))

    (network, opt_state), (losses, skipped) = jax.lax.scan(step, (network, opt_state), keys)
    return network, opt_state, losses, skipped
