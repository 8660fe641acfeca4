"""A policy that says where the action should go, and gradient steps that take it there (Sun et al. 2022)."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from admrl_jax.attacks.ascent import ascend
from admrl_jax.attacks.base import AttackSpec, Scene, Victim
from admrl_jax.attacks.learned.policy_gradient import PolicyGradientConfig, make_policy_gradient
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, make_threat
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.settings import POSITIVE, REPEATS

THREAT = make_threat(label="director", norm="l2", strength="L2 radius", knowledge="policy and task")

FIRST_SIZE = 0.1
"""Of the first mean choices, as a share of the usual: small beside the direction that it begins with."""


@dataclass(frozen=True, kw_only=True)
class DirectorConfig(PolicyGradientConfig):
    """Also the effort of the gradient steps."""

    init_std: Annotated[float, POSITIVE] = 0.3
    """Standard deviation of its first choices, beside a first direction of length 1."""
    steps: Annotated[int, REPEATS] = 3
    """Gradient steps per observation."""


def make_director(config: DirectorConfig, victim: Victim) -> AttackTrainer:
    """Chooses a direction among actions; the perturbation raises the mean action along it ("PA-AD").

    A choice is added to the direction against the action that the policy would take: the attack begins as
    `pgd_counter`, but for its own noise, and what it learns comes on top.
    """
    limit = victim.action_limit

    def realise(choice: jax.Array, obs: jax.Array, scene: Scene, budget: Budget, key: jax.Array) -> jax.Array:
        def action(x: jax.Array) -> jax.Array:
            return jnp.clip(victim.policy.apply(scene.policy_params, x).mean, -limit, limit)

        meant = action(obs)
        direction = choice - meant / jnp.maximum(safe_norm(meant), 1e-6)
        return ascend(lambda x: jnp.vdot(direction, action(x)), key, obs, budget, steps=config.steps)

    return make_policy_gradient(
        "director",
        config,
        victim,
        size=victim.action_size,
        realise=realise,
        threat=THREAT,
        first_size=FIRST_SIZE,
    )


SPEC = AttackSpec(
    "director",
    THREAT,
    "#1F77B4",
    DirectorConfig,
    lambda config, victim: make_director(config, victim).attack,
    make_director,
)
