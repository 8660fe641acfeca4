"""A generator as an attack: a network that maps an observation to its perturbation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, memoryless
from admrl_jax.attacks.threat import Budget, ThreatModel, Units, project_l2
from admrl_jax.core.networks import Network
from admrl_jax.core.types import Params


class GeneratorParams(NamedTuple):
    """Parameters of a generator.

    Attributes:
        network: of the network; what is trained.
        inputs: units in which the network reads observations, those of clean rollouts. They are
            independent of the budget's, in which it writes.
    """

    network: Params
    inputs: Units


def raw_perturbation(
    generator: Network, params: GeneratorParams, obs: jax.Array, budget: Budget
) -> jax.Array:
    """`G(x)` `[..., O]` in the budget's units, before projection (what the hinge of Eq. 11 reads)."""
    return budget.radius * generator.apply(params.network, params.inputs.apply(obs))


def add_projected(raw: jax.Array, obs: jax.Array, budget: Budget) -> jax.Array:
    """`obs` `[..., O]` plus a raw perturbation, given in the budget's units, after its projection."""
    return obs + project_l2(raw, budget.radius) * jnp.asarray(budget.units.scale)


def perturb_with(generator: Network, params: GeneratorParams, obs: jax.Array, budget: Budget) -> jax.Array:
    """`x + G(x)` `[..., O]` with `G(x)` projected onto the L2 ball of `budget.radius`."""
    return add_projected(raw_perturbation(generator, params, obs, budget), obs, budget)


def generator_attack(generator: Network, threat: ThreatModel) -> Attack:
    """The attack of Eq. 10 to 12; its parameters are `GeneratorParams`."""

    def perturb(
        params: GeneratorParams, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        return perturb_with(generator, params, obs, budget)

    return memoryless(perturb, threat, lambda key: GeneratorParams(generator.init(key), Units()))
