"""Attacks that know nothing: none at all, and Gaussian noise (paper, Eq. 13)."""

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Budget, measure_by, project_l2, safe_norm
from admrl_jax.types import Params


def no_attack() -> Attack:
    """Leaves observations as they are."""

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        return obs

    return Attack(lambda key: (), perturb, measure_by("l2"))


def gaussian_noise() -> Attack:
    """Adds independent Gaussian noise of standard deviation `budget.radius` per dimension."""

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        noise = jax.random.normal(key, obs.shape, obs.dtype)
        return obs + budget.radius * budget.scale * noise

    return Attack(lambda key: (), perturb, measure_by("none"))


def l2_noise() -> Attack:
    """Moves by exactly `budget.radius` in a uniformly random direction.

    Noise of the same L2 size as a generator of the same radius: what an attack must beat to have
    learned anything.
    """

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        # Directions that may not move (scale 0) take no share of the length.
        noise = jax.random.normal(key, obs.shape, obs.dtype) * (jnp.asarray(budget.scale) > 0)
        length = safe_norm(noise)
        unit = noise / jnp.where(length > 0, length, 1.0)
        return obs + project_l2(budget.radius * unit, budget.radius) * budget.scale

    return Attack(lambda key: (), perturb, measure_by("l2"))
