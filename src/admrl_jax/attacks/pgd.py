"""Projected gradient ascent on the mean action: away from it, or against it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from admrl_jax.attacks.ascent import ascend
from admrl_jax.attacks.base import Attack, AttackSpec, Scene, Victim, memoryless
from admrl_jax.attacks.threat import Budget, ThreatModel, make_threat
from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import REPEATS, SHARE
from admrl_jax.core.types import Params

THREAT = make_threat(label="PGD", norm="l2", strength="L2 radius", knowledge="policy")
THREAT_LINF = make_threat(label="PGD, L-inf", norm="linf", strength="L-inf radius", knowledge="policy")
THREAT_COUNTER = THREAT._replace(label="PGD against the action")


@dataclass(frozen=True, kw_only=True)
class PGDConfig:
    """Effort of the ascent."""

    steps: Annotated[int, REPEATS] = 3
    """Gradient steps per observation."""
    step_share: Annotated[float, SHARE] = 1.0
    """Length of a step as a share of the radius."""
    restarts: Annotated[int, REPEATS] = 1
    """Random starts per observation; the best end is taken."""


Objective = Callable[[Gaussian, Gaussian], jax.Array]
"""`(clean, moved) -> []` of the policy's distributions; what the attack raises."""


def divergence(clean: Gaussian, moved: Gaussian) -> jax.Array:
    """KL divergence of the actions ("MAD", Zhang et al. 2020).

    As the standard deviation does not depend on the observation, it is half the squared change of the mean
    action over the variance: ascent on either takes the same steps.
    """
    return gaussian.kl(clean, moved)


def against(limit: float) -> Objective:
    """Minus the product of the mean actions, each clipped at the motors' limit: turns the action around."""

    def objective(clean: Gaussian, moved: Gaussian) -> jax.Array:
        return -jnp.sum(jnp.clip(clean.mean, -limit, limit) * jnp.clip(moved.mean, -limit, limit))

    return objective


def pgd(
    policy: Policy,
    config: PGDConfig | None = None,
    *,
    objective: Objective = divergence,
    threat: ThreatModel = THREAT,
) -> Attack:
    """Gradient steps of fixed length on a function of the policy's action, projected onto the budget.

    Args:
        policy: the victim's.
        config: effort.
        objective: see `Objective`.
        threat: its norm is that of the ball.
    """
    config = config or PGDConfig()

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        clean = policy.apply(scene.policy_params, obs)

        def value(x: jax.Array) -> jax.Array:
            return objective(clean, policy.apply(scene.policy_params, x))

        return ascend(value, key, obs, budget, norm=threat.norm, **vars(config))

    return memoryless(perturb, threat)


def _counter(config: PGDConfig, victim: Victim) -> Attack:
    objective = against(victim.action_limit)
    return pgd(victim.policy, config, objective=objective, threat=THREAT_COUNTER)


SPEC = AttackSpec("pgd", THREAT, "#7B4FA3", PGDConfig, lambda config, victim: pgd(victim.policy, config))
SPEC_LINF = AttackSpec(
    "pgd_linf",
    THREAT_LINF,
    "#A37BC0",
    PGDConfig,
    lambda config, victim: pgd(victim.policy, config, threat=THREAT_LINF),
)
SPEC_COUNTER = AttackSpec("pgd_counter", THREAT_COUNTER, "#4B2E83", PGDConfig, _counter)
