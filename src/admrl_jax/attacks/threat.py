"""Threat models: how far an attack may move an observation, in which norm, and what it knows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.settings import ConfigError

NORMS = ("none", "l2", "linf")
KNOWLEDGE = ("none", "actions", "policy", "policy and task", "pipeline")
"""Of an attack: nothing; the actions it has seen; the policy that acts; that and the task; that and how the
policy adapts."""
L2_SIZE = "L2 size"
"""Strength of noise whose L2 norm is the radius itself, not only bounded by it."""


class Units(NamedTuple):
    """An affine map of observations to units, `(obs - centre) / scale`.

    Attributes:
        centre: `[O]` or `[]`.
        scale: `[O]` or `[]`; what has scale 0 is 0 in these units and cannot be moved.
    """

    centre: jax.Array | float = 0.0
    scale: jax.Array | float = 1.0

    def apply(self, obs: jax.Array) -> jax.Array:
        """Observations `[..., O]` in these units."""
        return self.shift(obs - self.centre)

    def shift(self, delta: jax.Array) -> jax.Array:
        """Differences of observations `[..., O]` in these units."""
        scale = jnp.asarray(self.scale)
        return delta * jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0.0)


class Budget(NamedTuple):
    """How far an attack may move an observation, and in which units.

    A perturbation is measured in `units`. The paper attacks raw observations: centre 0, scale 1.
    All fields are arrays, so strengths can be vmapped over.

    Attributes:
        radius: `[]` bound on the perturbation's norm; the standard deviation of Gaussian noise.
        units: in which the norm is taken.
    """

    radius: jax.Array | float
    units: Units = Units()


class Sides(NamedTuple):
    """Which data an attacker reaches, as factors of its radius.

    Attributes:
        support: `[]` 1 or 0, before and during adaptation.
        query: `[]` 1 or 0, after it.
    """

    support: jax.Array | float = 1.0
    query: jax.Array | float = 1.0


SIDES = {"both": Sides(), "query": Sides(support=0.0), "support": Sides(query=0.0)}
"""By name."""


class Measurement(NamedTuple):
    """How far observations were moved, in the budget's units.

    Attributes:
        size: `[...]` norm of the perturbation, in the attack's own norm (L2 if unbounded).
        excess: `[...]` by how much it breaks its budget beyond rounding; 0 when it holds.
    """

    size: jax.Array
    excess: jax.Array


class ThreatModel(NamedTuple):
    """What an attack may do and what it knows.

    Attributes:
        label: name for people.
        norm: `l2` or `linf`, in which the budget's radius bounds a perturbation; `none` for noise that
            no radius bounds.
        strength: what the budget's radius means, in words.
        knowledge: one of `KNOWLEDGE`.
    """

    label: str
    norm: str
    strength: str
    knowledge: str

    def measure(self, obs: jax.Array, perturbed_obs: jax.Array, budget: Budget) -> Measurement:
        """Sizes of perturbations, and by how much they break the budget.

        Adding a perturbation to an observation rounds at the observation's magnitude, so a few units
        in the last place of that magnitude are forgiven. Anything not finite has infinite excess, and so
        has whatever moves what cannot be moved, unless nothing bounds the attack.

        Args:
            obs: `[..., O]`.
            perturbed_obs: `[..., O]`.
            budget: its radius is `[]`, or as many leading axes of `obs` as it has.
        """
        delta = budget.units.shift(perturbed_obs - obs)
        size = jnp.max(jnp.abs(delta), axis=-1) if self.norm == "linf" else safe_norm(delta)
        magnitude = jnp.max(jnp.abs(budget.units.shift(obs)), axis=-1)
        slack = 8 * jnp.finfo(obs.dtype).eps * (1 + magnitude) * obs.shape[-1] ** 0.5
        radius = jnp.asarray(budget.radius)
        radius = radius.reshape(radius.shape + (1,) * (size.ndim - radius.ndim))
        excess = jnp.maximum(size - radius - slack, 0.0)
        is_moved = (perturbed_obs != obs) & (jnp.asarray(budget.units.scale) <= 0)
        excess = jnp.where(jnp.any(is_moved, axis=-1), jnp.inf, excess)
        if self.norm == "none":
            excess = jnp.zeros_like(size)
        return Measurement(size, jnp.where(jnp.isfinite(size), excess, jnp.inf))


def make_threat(*, label: str, norm: str, strength: str, knowledge: str) -> ThreatModel:
    """A threat model with its words checked.

    Raises:
        ConfigError: the norm or the knowledge is not known.
    """
    for name, value, accepted in (("norm", norm, NORMS), ("knowledge", knowledge, KNOWLEDGE)):
        if value not in accepted:
            raise ConfigError(f"{name}: {value!r} is not known; accepted: {', '.join(accepted)}")
    return ThreatModel(label, norm, strength, knowledge)


def project_l2(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Shortens vectors `[..., O]` to L2 norm `radius` at most, `[]` or `[...]`."""
    norm, radius = safe_norm(x)[..., None], jnp.asarray(radius)[..., None]
    return x * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
