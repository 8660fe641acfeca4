"""Projected gradient ascent on one observation, which several attacks have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from admrl_jax.attacks.threat import Budget, project_l2
from admrl_jax.core.linalg import safe_norm

NORMS = ("l2", "linf")


def ascend(
    objective: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    obs: jax.Array,
    budget: Budget,
    *,
    norm: str = "l2",
    steps: int = 3,
    step_share: float = 1.0,
    restarts: int = 1,
) -> jax.Array:
    """The observation `[O]` within the budget at which an objective was largest (Madry et al. 2018).

    Steps have a fixed length, along the gradient for L2 and its signs for L-inf. Each start is a random point
    of the ball's surface: at the clean observation the gradient of many objectives is zero.

    Args:
        objective: `(obs [O]) -> []`.
        key: of the starts.
        obs: true observation.
        budget: its radius `[]`.
        norm: `l2` or `linf`, of the ball.
        steps: gradient steps.
        step_share: length of a step as a share of the radius.
        restarts: starts; the best end is taken.
    """
    scale = jnp.asarray(budget.units.scale)
    radius = jnp.asarray(budget.radius)

    def value(delta: jax.Array) -> jax.Array:
        return objective(obs + delta * scale)

    def surface(direction: jax.Array) -> jax.Array:
        if norm == "linf":
            return radius * jnp.sign(direction)
        length = safe_norm(direction)
        return radius * direction / jnp.where(length > 0, length, 1.0)

    def inside(delta: jax.Array) -> jax.Array:
        return jnp.clip(delta, -radius, radius) if norm == "linf" else project_l2(delta, radius)

    def step(delta: jax.Array, _: None) -> tuple[jax.Array, None]:
        return inside(delta + step_share * surface(jax.grad(value)(delta))), None

    def run(key: jax.Array) -> jax.Array:
        start = surface(jax.random.normal(key, obs.shape, obs.dtype) * (scale > 0))
        return jax.lax.scan(step, start, length=steps)[0]

    if restarts == 1:
        return obs + run(key) * scale
    ends = jax.vmap(run)(jax.random.split(key, restarts))
    return obs + ends[jnp.argmax(jax.vmap(value)(ends))] * scale
