"""Fast gradient sign method on a Gaussian policy (paper, Eq. 14 and 15)."""

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, AttackSpec, NoSettings, Scene, memoryless
from admrl_jax.attacks.threat import Budget, make_threat
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params

THREAT = make_threat(label="FGSM", norm="linf", strength="L-inf step", knowledge="policy")


def fgsm(policy: Policy) -> Attack:
    """One signed step of size `budget.radius` away from the policy's own action.

    The objective is the squared change of the mean action over the variance. Its gradient at
    the clean observation is exactly zero, so it is taken at a random corner of the box; the step
    starts from the clean observation and moves every coordinate by exactly the radius.
    """

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        clean = policy.apply(scene.policy_params, obs)
        step = jnp.asarray(budget.radius * budget.units.scale)
        corner = jax.random.rademacher(key, obs.shape, dtype=obs.dtype)

        def shift(x: jax.Array) -> jax.Array:
            moved = policy.apply(scene.policy_params, x)
            return jnp.sum(jnp.square((moved.mean - clean.mean) * jnp.exp(-clean.log_std)))

        # Where the radius is 0 the start must still differ from the clean observation.
        start = obs + jnp.where(step > 0, step, 1e-3) * corner
        gradient = jax.grad(shift)(start)
        # A coordinate without gradient keeps its random sign: the step has the same size everywhere.
        sign = jnp.where(gradient == 0, corner, jnp.sign(gradient))
        return obs + step * sign

    return memoryless(perturb, THREAT)


SPEC = AttackSpec("fgsm", THREAT, "#CC3D6B", NoSettings, lambda config, victim: fgsm(victim.policy))
