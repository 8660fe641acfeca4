"""Policy-independent baselines: no attack, noise of several kinds (Gaussian: paper, Eq. 13), blindfold."""

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, AttackSpec, NoSettings, Scene, memoryless
from admrl_jax.attacks.threat import L2_SIZE, Budget, Units, make_threat, project_l2
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.types import Params

NO_ATTACK = make_threat(label="clean", norm="l2", strength="none", knowledge="none")
BLINDFOLD = make_threat(label="observation-blind", norm="none", strength="none", knowledge="none")
GAUSSIAN_NOISE = make_threat(
    label="Gaussian noise", norm="none", strength="noise std per dimension", knowledge="none"
)
UNIFORM_NOISE = make_threat(label="uniform noise", norm="linf", strength="L-inf radius", knowledge="none")
CORNER_NOISE = make_threat(label="corner noise", norm="linf", strength="L-inf size", knowledge="none")
L2_NOISE = make_threat(label="L2 noise", norm="l2", strength=L2_SIZE, knowledge="none")


def no_attack() -> Attack:
    """Leaves observations as they are."""

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        return obs

    return memoryless(perturb, NO_ATTACK)


def blindfold() -> Attack:
    """Shows the policy the mean observation, whatever happens: a reference, and within no budget.

    Its parameters are the `Units` whose centre is shown.
    """

    def perturb(params: Units, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(params.centre), obs.shape)

    return memoryless(perturb, BLINDFOLD, lambda key: Units())


def gaussian_noise() -> Attack:
    """Adds independent Gaussian noise of standard deviation `budget.radius` per dimension."""

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        noise = jax.random.normal(key, obs.shape, obs.dtype)
        return obs + budget.radius * budget.units.scale * noise

    return memoryless(perturb, GAUSSIAN_NOISE)


def uniform_noise() -> Attack:
    """Adds noise that is uniform in the box of half width `budget.radius`."""

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        noise = jax.random.uniform(key, obs.shape, obs.dtype, -1.0, 1.0)
        return obs + budget.radius * budget.units.scale * noise

    return memoryless(perturb, UNIFORM_NOISE)


def corner_noise() -> Attack:
    """Moves to a random corner of the box of half width `budget.radius`."""

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        corner = jax.random.rademacher(key, obs.shape, dtype=obs.dtype)
        return obs + budget.radius * budget.units.scale * corner

    return memoryless(perturb, CORNER_NOISE)


def l2_noise() -> Attack:
    """Moves by exactly `budget.radius` in a uniformly random direction.

    Noise of the same L2 size as a generator of the same radius: what an attack must beat to have
    learned anything.
    """

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        # Directions that may not move (scale 0) take no share of the length.
        noise = jax.random.normal(key, obs.shape, obs.dtype) * (jnp.asarray(budget.units.scale) > 0)
        length = safe_norm(noise)
        unit = noise / jnp.where(length > 0, length, 1.0)
        return obs + project_l2(budget.radius * unit, budget.radius) * budget.units.scale

    return memoryless(perturb, L2_NOISE)


NONE_SPEC = AttackSpec("none", NO_ATTACK, "#444444", NoSettings, lambda config, victim: no_attack())
GAUSSIAN_SPEC = AttackSpec(
    "gaussian", GAUSSIAN_NOISE, "#E69F00", NoSettings, lambda config, victim: gaussian_noise()
)
UNIFORM_SPEC = AttackSpec(
    "uniform_noise", UNIFORM_NOISE, "#D9A566", NoSettings, lambda config, victim: uniform_noise()
)
CORNER_SPEC = AttackSpec(
    "corner_noise", CORNER_NOISE, "#8F6B32", NoSettings, lambda config, victim: corner_noise()
)
L2_SPEC = AttackSpec("l2_noise", L2_NOISE, "#B8602E", NoSettings, lambda config, victim: l2_noise())
