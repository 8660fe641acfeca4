"""A stochastic policy over perturbations (Zhang et al. 2021, "SA-RL")."""

import jax

from admrl_jax.attacks.base import AttackSpec, Scene, Victim
from admrl_jax.attacks.generator import add_projected
from admrl_jax.attacks.learned.policy_gradient import PolicyGradientConfig, make_policy_gradient
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, make_threat

THREAT = make_threat(label="learned actor", norm="l2", strength="L2 radius", knowledge="policy and task")


def make_actor(config: PolicyGradientConfig, victim: Victim) -> AttackTrainer:
    """Chooses the perturbation itself, in units of the radius, projected onto the ball."""

    def realise(choice: jax.Array, obs: jax.Array, scene: Scene, budget: Budget, key: jax.Array) -> jax.Array:
        return add_projected(budget.radius * choice, obs, budget)

    return make_policy_gradient("actor", config, victim, size=victim.obs_size, realise=realise, threat=THREAT)


SPEC = AttackSpec(
    "actor",
    THREAT,
    "#17BECF",
    PolicyGradientConfig,
    lambda config, victim: make_actor(config, victim).attack,
    make_actor,
)
