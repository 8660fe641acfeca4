"""The attack interface and the threat model: norm, budget, projection."""

from collections.abc import Callable, Sequence
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


class Measurement(NamedTuple):
    """How far observations were moved, in unit space.

    Attributes:
        size: `[...]` norm of the perturbation, in the attack's own norm (L2 if unbounded).
        excess: `[...]` by how much it breaks its budget beyond rounding; 0 when it holds.
    """

    size: jax.Array
    excess: jax.Array


class Attack(NamedTuple):
    """An attack on observations.

    Attributes:
        init: `(key) -> Params`; `()` for attacks without parameters.
        perturb: `(attack_params, key, obs [O], policy_params, budget) -> perturbed_obs [O]`.
        measure: `(obs [..., O], perturbed_obs [..., O], budget) -> Measurement`, see `measure_by`.
    """

    init: Callable[[jax.Array], Params]
    perturb: Callable[[Params, jax.Array, jax.Array, Params, Budget], jax.Array]
    measure: Callable[[jax.Array, jax.Array, Budget], Measurement]


def measure_by(norm: str) -> Callable[[jax.Array, jax.Array, Budget], Measurement]:
    """The threat model's check: norm `l2` or `linf`, or `none` for unbounded noise.

    Adding a perturbation to an observation rounds at the observation's magnitude, so a few units
    in the last place of that magnitude are forgiven. Anything not finite has infinite excess.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: {norm!r} is not known; accepted: {', '.join(NORMS)}")

    def measure(obs: jax.Array, perturbed_obs: jax.Array, budget: Budget) -> Measurement:
        delta = budget._replace(centre=0.0).to_units(perturbed_obs - obs)
        size = jnp.max(jnp.abs(delta), axis=-1) if norm == "linf" else safe_norm(delta)
        magnitude = jnp.max(jnp.abs(budget._replace(centre=0.0).to_units(obs)), axis=-1)
        slack = 8 * jnp.finfo(obs.dtype).eps * (1 + magnitude) * obs.shape[-1] ** 0.5
        excess = jnp.maximum(size - budget.radius - slack, 0.0)
        if norm == "none":
            excess = jnp.zeros_like(size)
        return Measurement(size, jnp.where(jnp.isfinite(size), excess, jnp.inf))

    return measure


def select(attacks: Sequence[Attack], index: jax.Array) -> Attack:
    """The attack of that number, where the number is known only when the program runs.

    One compiled program then serves every attack; only the chosen one is computed. All attacks
    get the same `attack_params`.

    Args:
        attacks: to choose from.
        index: `[]` int; not batched, or every attack is computed.
    """

    def perturb(
        attack_params: Params, key: jax.Array, obs: jax.Array, policy_params: Params, budget: Budget
    ) -> jax.Array:
        branches = [attack.perturb for attack in attacks]
        return jax.lax.switch(index, branches, attack_params, key, obs, policy_params, budget)

    def measure(obs: jax.Array, perturbed_obs: jax.Array, budget: Budget) -> Measurement:
        branches = [attack.measure for attack in attacks]
        return jax.lax.switch(index, branches, obs, perturbed_obs, budget)

    return Attack(lambda key: (), perturb, measure)


def safe_norm(x: jax.Array) -> jax.Array:
    """L2 norm `[...]` of `[..., O]` whose gradient at zero is zero instead of NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def project_l2(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Shortens vectors `[..., O]` to L2 norm `radius` at most."""
    norm = safe_norm(x)[..., None]
    return x * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
