"""Diagonal Gaussian over actions: sample, log density, KL divergence and entropy."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Gaussian(NamedTuple):
    """Mean `[..., A]` and log standard deviation, broadcastable to `[..., A]`."""

    mean: jax.Array
    log_std: jax.Array


def from_noise(dist: Gaussian, noise: jax.Array) -> jax.Array:
    """Turns standard normal `noise` `[..., A]` into a sample `[..., A]`."""
    return dist.mean + jnp.exp(dist.log_std) * noise


def sample(dist: Gaussian, key: jax.Array) -> jax.Array:
    """Draws one sample `[..., A]`."""
    return from_noise(dist, jax.random.normal(key, dist.mean.shape, dist.mean.dtype))


def log_prob(dist: Gaussian, value: jax.Array) -> jax.Array:
    """Log density `[...]` of `value` `[..., A]`, summed over the action axis."""
    z = (value - dist.mean) * jnp.exp(-dist.log_std)
    return -jnp.sum(0.5 * jnp.square(z) + dist.log_std + 0.5 * math.log(2 * math.pi), axis=-1)


def log_prob_of_noise(dist: Gaussian, noise: jax.Array) -> jax.Array:
    """Log density `[...]` of the sample that `from_noise` makes of `noise` `[..., A]`."""
    return -jnp.sum(0.5 * jnp.square(noise) + dist.log_std + 0.5 * math.log(2 * math.pi), axis=-1)


def kl(old: Gaussian, new: Gaussian) -> jax.Array:
    """KL(old || new) `[...]`, summed over the action axis."""
    variance_ratio = jnp.exp(2 * (old.log_std - new.log_std))
    shift = jnp.square((old.mean - new.mean) * jnp.exp(-new.log_std))
    return jnp.sum(new.log_std - old.log_std + 0.5 * (variance_ratio + shift - 1), axis=-1)


def entropy(dist: Gaussian) -> jax.Array:
    """Differential entropy `[...]` in nats, summed over the action axis."""
    log_std = jnp.broadcast_to(dist.log_std, dist.mean.shape)
    return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)
