"""A generator as an attack: a network that maps an observation to its perturbation."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Scene, Victim, memoryless
from admrl_jax.attacks.threat import Budget, ThreatModel, Units, project_l2
from admrl_jax.core.networks import Network, make_network
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


class Generator(NamedTuple):
    """A network and what it reads besides the observation.

    Attributes:
        network: `[..., I] -> [..., O]`, in units of the radius.
        victim: whose tasks it can read.
        knows_task: it also reads whether the policy has adapted, and the task.
        knows_radius: it also reads the budget's radius, so that one generator serves many.
    """

    network: Network
    victim: Victim
    knows_task: bool = False
    knows_radius: bool = False

    def start(
        self, key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None
    ) -> GeneratorParams:
        """Fresh parameters, or those to go on from."""
        return GeneratorParams(self.network.init(key), inputs) if start_from is None else start_from

    def features(self, inputs: Units, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        """What the network reads `[..., I]`."""

        def column(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (*obs.shape[:-1], x.shape[-1])).astype(obs.dtype)

        found = [inputs.apply(obs)]
        if self.knows_task:
            found += [column(jnp.asarray(scene.is_query)[..., None])]
            found += [column(self.victim.task_features(scene.task))]
        if self.knows_radius:
            found += [column(jnp.asarray(budget.radius)[..., None])]
        return jnp.concatenate(found, axis=-1) if len(found) > 1 else found[0]

    def raw(self, params: GeneratorParams, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        """`G(x)` `[..., O]` in the budget's units, before projection (what the hinge of Eq. 11 reads).

        Args:
            params: of the generator.
            obs: `[..., O]`, all of one task.
            scene: of the task; `is_query` is `[]` or `[...]`.
            budget: its radius is `[]` or `[...]`.
        """
        features = self.features(params.inputs, obs, scene, budget)
        return jnp.asarray(budget.radius)[..., None] * self.network.apply(params.network, features)

    def perturb(self, params: GeneratorParams, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        """`x + G(x)` `[..., O]` with `G(x)` projected onto the L2 ball of `budget.radius`."""
        return add_projected(self.raw(params, obs, scene, budget), obs, budget)


def make_generator(
    victim: Victim,
    hidden_sizes: Sequence[int],
    *,
    output_scale: float = 1.0,
    knows_task: bool = False,
    knows_radius: bool = False,
) -> Generator:
    """Builds a generator for a victim's observations."""
    size = victim.obs_size + knows_task * (1 + victim.task_size) + knows_radius
    network = make_network(size, victim.obs_size, hidden_sizes=hidden_sizes, output_scale=output_scale)
    return Generator(network, victim, knows_task, knows_radius)


def add_projected(raw: jax.Array, obs: jax.Array, budget: Budget) -> jax.Array:
    """`obs` `[..., O]` plus a raw perturbation, given in the budget's units, after its projection."""
    return obs + project_l2(raw, budget.radius) * jnp.asarray(budget.units.scale)


def generator_attack(generator: Generator, threat: ThreatModel) -> Attack:
    """The attack of Eq. 10 to 12; its parameters are `GeneratorParams`."""

    def perturb(
        params: GeneratorParams, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> jax.Array:
        return generator.perturb(params, obs, scene, budget)

    def init(key: jax.Array) -> GeneratorParams:
        return GeneratorParams(generator.network.init(key), Units())

    return memoryless(perturb, threat, init)
