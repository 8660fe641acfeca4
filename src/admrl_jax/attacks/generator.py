"""adGAN's generator as an attack: a network that maps an observation to its perturbation."""

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Budget, measure_by, project_l2
from admrl_jax.networks import Network
from admrl_jax.types import Params


def raw_perturbation(generator: Network, params: Params, obs: jax.Array, budget: Budget) -> jax.Array:
    """`G(x)` `[..., O]` in unit space, before projection (what the hinge of Eq. 11 reads)."""
    return budget.radius * generator.apply(params, budget.to_units(obs))


def perturb_with(generator: Network, params: Params, obs: jax.Array, budget: Budget) -> jax.Array:
    """`x + G(x)` `[..., O]` with `G(x)` projected onto the L2 ball of `budget.radius`."""
    return add_projected(raw_perturbation(generator, params, obs, budget), obs, budget)


def add_projected(raw: jax.Array, obs: jax.Array, budget: Budget) -> jax.Array:
    """`obs` `[..., O]` plus a raw perturbation, given in unit space, after its projection."""
    return obs + project_l2(raw, budget.radius) * jnp.asarray(budget.scale)


def generator_attack(generator: Network) -> Attack:
    """The attack of Eq. 10 to 12. Its parameters are trained by `adgan.update_adversary`."""

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        return perturb_with(generator, attack_params, obs, budget)

    return Attack(generator.init, perturb, measure_by("l2"))
