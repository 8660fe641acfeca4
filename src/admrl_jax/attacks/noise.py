"""Attacks that know nothing: none at all, and Gaussian noise (paper, Eq. 13)."""

import jax

from admrl_jax.attacks.base import Attack, Budget
from admrl_jax.types import Params


def no_attack() -> Attack:
    """Leaves observations as they are."""

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        return obs

    return Attack(lambda key: (), perturb, "l2")


def gaussian_noise() -> Attack:
    """Adds independent Gaussian noise of standard deviation `budget.radius` per dimension."""

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        noise = jax.random.normal(key, obs.shape, obs.dtype)
        return obs + budget.radius * budget.scale * noise

    return Attack(lambda key: (), perturb, "none")
