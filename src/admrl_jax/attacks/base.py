"""The attack interface and the threat model: norm, budget, projection."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.types import Params

NORMS = ("none", "l2", "linf")


class Budget(NamedTuple):
    """How far an attack may move an observation, and in which units.

    A perturbation is measured in unit space, `(obs - centre) / scale`. The paper attacks raw
    observations: centre 0, scale 1. Where `scale` is 0 nothing may move. All fields are arrays,
    so strengths can be vmapped over.

    Attributes:
        radius: `[]` bound on the perturbation's norm; the standard deviation of Gaussian noise.
        centre: `[O]` or `[]`.
        scale: `[O]` or `[]`.
    """

    radius: jax.Array | float
    centre: jax.Array | float = 0.0
    scale: jax.Array | float = 1.0

    def to_units(self, obs: jax.Array) -> jax.Array:
        """Observations `[..., O]` in unit space."""
        scale = jnp.asarray(self.scale)
        return (obs - self.centre) * jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0.0)


class Attack(NamedTuple):
    """An attack on observations, written for one observation.

    Attributes:
        init: `(key) -> Params`; `()` for attacks without parameters.
        perturb: `(attack_params, key, obs [O], policy_params, budget) -> perturbed_obs [O]`.
        norm: norm that `budget.radius` bounds: `l2`, `linf`, or `none` for unbounded noise.
    """

    init: Callable[[jax.Array], Params]
    perturb: Callable[[Params, jax.Array, jax.Array, Params, Budget], jax.Array]
    norm: str


def safe_norm(x: jax.Array) -> jax.Array:
    """L2 norm `[...]` of `[..., O]` whose gradient at zero is zero instead of NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def project_l2(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Shortens vectors `[..., O]` to L2 norm `radius` at most."""
    norm = safe_norm(x)[..., None]
    return x * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)


def perturbation_size(
    norm: str, obs: jax.Array, perturbed_obs: jax.Array, budget: Budget
) -> jax.Array:
    """Size `[...]` of perturbations of `[..., O]` in unit space; L2 where `norm` is `none`."""
    delta = budget._replace(centre=0.0).to_units(perturbed_obs - obs)
    if norm == "linf":
        return jnp.max(jnp.abs(delta), axis=-1)
    return safe_norm(delta)


def budget_excess(
    norm: str, obs: jax.Array, perturbed_obs: jax.Array, budget: Budget
) -> jax.Array:
    """By how much `[...]` a perturbation breaks its budget beyond rounding; 0 when it holds.

    Adding a perturbation to an observation rounds at the observation's magnitude, so a few units
    in the last place of that magnitude are forgiven.
    """
    if norm == "none":
        return jnp.zeros(obs.shape[:-1])
    size = perturbation_size(norm, obs, perturbed_obs, budget)
    magnitude = jnp.max(jnp.abs(budget.to_units(obs)), axis=-1)
    slack = 8 * jnp.finfo(obs.dtype).eps * (1 + magnitude) * obs.shape[-1] ** 0.5
    excess = jnp.maximum(size - budget.radius - slack, 0.0)
    return jnp.where(jnp.isfinite(size), excess, jnp.inf)
