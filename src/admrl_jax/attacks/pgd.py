"""Projected gradient ascent on the change of the mean action (maximal action difference, MAD)."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, AttackSpec, Scene, memoryless
from admrl_jax.attacks.threat import Budget, make_threat, project_l2
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import REPEATS, SHARE
from admrl_jax.core.types import Params

THREAT = make_threat(label="PGD", norm="l2", strength="L2 radius", knowledge="policy")


@dataclass(frozen=True, kw_only=True)
class PGDConfig:
    """Effort of the ascent."""

    steps: Annotated[int, REPEATS] = 3
    """Gradient steps per observation."""
    step_share: Annotated[float, SHARE] = 1.0
    """Length of a step as a share of the radius."""


def pgd(policy: Policy, config: PGDConfig | None = None) -> Attack:
    """Gradient steps of fixed length on the squared change of the mean action over the variance.

    They start at a random point of the sphere, as the gradient is zero at the clean observation, and are
    projected onto the L2 ball (Madry et al. 2018; Zhang et al. 2020, "MAD").
    """
    config = config or PGDConfig()

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        clean = policy.apply(scene.policy_params, obs)
        scale = jnp.asarray(budget.units.scale)

        def shift(delta: jax.Array) -> jax.Array:
            moved = policy.apply(scene.policy_params, obs + delta * scale)
            return jnp.sum(jnp.square((moved.mean - clean.mean) * jnp.exp(-clean.log_std)))

        def on_sphere(direction: jax.Array) -> jax.Array:
            length = safe_norm(direction)
            return budget.radius * direction / jnp.where(length > 0, length, 1.0)

        def ascend(delta: jax.Array, _: None) -> tuple[jax.Array, None]:
            step = config.step_share * on_sphere(jax.grad(shift)(delta))
            return project_l2(delta + step, budget.radius), None

        start = on_sphere(jax.random.normal(key, obs.shape, obs.dtype) * (scale > 0))
        delta, _ = jax.lax.scan(ascend, start, length=config.steps)
        return obs + delta * scale

    return memoryless(perturb, THREAT)


SPEC = AttackSpec("pgd", THREAT, "#7B4FA3", PGDConfig, lambda config, victim: pgd(victim.policy, config))
