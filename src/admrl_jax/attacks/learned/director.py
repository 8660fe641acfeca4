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
from admrl_jax.core.settings import REPEATS

THREAT = make_threat(label="director", norm="l2", strength="L2 radius", knowledge="policy and task")


@dataclass(frozen=True, kw_only=True)
class DirectorConfig(PolicyGradientConfig):
    """Also the effort of the gradient steps."""

    steps: Annotated[int, REPEATS] = 2
    """Gradient steps per observation."""


def make_director(config: DirectorConfig, victim: Victim) -> AttackTrainer:
    """Chooses a direction among actions; the perturbation raises the mean action along it ("PA-AD")."""

    def realise(choice: jax.Array, obs: jax.Array, scene: Scene, budget: Budget, key: jax.Array) -> jax.Array:
        def along(x: jax.Array) -> jax.Array:
            return jnp.vdot(choice, victim.policy.apply(scene.policy_params, x).mean)

        return ascend(along, key, obs, budget, steps=config.steps)

    return make_policy_gradient(
        "director", config, victim, size=victim.action_size, realise=realise, threat=THREAT
    )


SPEC = AttackSpec(
    "director",
    THREAT,
    "#1F77B4",
    DirectorConfig,
    lambda config, victim: make_director(config, victim).attack,
    make_director,
)
