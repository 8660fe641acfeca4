"""adGAN's networks and what its training carries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.generator import Generator, GeneratorParams, make_generator
from admrl_jax.attacks.learned.adgan.config import AdGANConfig
from admrl_jax.attacks.threat import Units
from admrl_jax.core.networks import Network, Policy, make_network
from admrl_jax.core.types import Params

FIRST_SIZE = 0.3
"""Size of a fresh generator's last layer, as a share of the usual: its perturbations are about as large as
the budget. Starting from almost nothing would start where a trained victim's return is flat, at its
maximum."""


class AdGAN(NamedTuple):
    """Networks, optimisers and settings.

    Attributes:
        generator: of perturbations.
        discriminator: `[..., O] -> [...]`, a score, high for clean observations.
        generator_optimizer: Adam.
        discriminator_optimizer: Adam.
        policy: the victim's.
        config: loss kind, clip, passes and minibatches; the loss weights are stored in the state.
    """

    generator: Generator
    discriminator: Network
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    policy: Policy
    config: AdGANConfig


class LossWeights(NamedTuple):
    """Weights of the generator's losses (alpha and beta in Eq. 12), arrays `[]`."""

    gan: jax.Array
    hinge: jax.Array


class AdGANState(struct.PyTreeNode):
    """Everything that training carries.

    Attributes:
        weights: of the losses.
        generator: parameters of the generator's network.
        discriminator: parameters of the discriminator's network.
        generator_opt_state: Adam's.
        discriminator_opt_state: Adam's.
        inputs: units in which both networks read observations.
    """

    weights: LossWeights
    generator: Params
    discriminator: Params
    generator_opt_state: Any
    discriminator_opt_state: Any
    inputs: Units

    @property
    def attack_params(self) -> GeneratorParams:
        """The generator as an attack's parameters."""
        return GeneratorParams(self.generator, self.inputs)


def make_adgan(victim: Victim, config: AdGANConfig, *, knows_radius: bool = False) -> AdGAN:
    """Builds generator, discriminator and two Adam optimisers; the generator may read the budget's radius."""
    body = make_network(victim.obs_size, 1, hidden_sizes=config.hidden_sizes, activation="leaky_relu")
    return AdGAN(
        generator=make_generator(
            victim, config.hidden_sizes, output_scale=FIRST_SIZE, knows_radius=knows_radius
        ),
        discriminator=Network(body.init, lambda params, x: body.apply(params, x)[..., 0]),
        generator_optimizer=optax.adam(config.generator_lr),
        discriminator_optimizer=optax.adam(config.discriminator_lr),
        policy=victim.policy,
        config=config,
    )


def init_adgan(
    adgan: AdGAN, key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None
) -> AdGANState:
    """Fresh networks and optimiser states, with the loss weights of the settings.

    Args:
        adgan: networks and optimisers.
        key: of their first weights.
        inputs: units of clean observations, used where `config.standardise` is set.
        start_from: a generator to go on from, which keeps the units that it was trained with.
    """
    config = adgan.config
    key_generator, key_discriminator = jax.random.split(key)
    if not config.standardise:
        inputs = jax.tree.map(lambda x, same: jnp.full_like(jnp.asarray(x, float), same), inputs, Units())
    generator = adgan.generator.network.init(key_generator)
    if start_from is not None:
        generator, inputs = start_from
    discriminator = adgan.discriminator.init(key_discriminator)
    return AdGANState(
        weights=LossWeights(jnp.asarray(config.gan_weight, float), jnp.asarray(config.hinge_weight, float)),
        generator=generator,
        discriminator=discriminator,
        generator_opt_state=adgan.generator_optimizer.init(generator),
        discriminator_opt_state=adgan.discriminator_optimizer.init(discriminator),
        inputs=inputs,
    )
