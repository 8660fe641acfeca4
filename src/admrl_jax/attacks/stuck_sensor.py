"""A sensor fault: now and then an observation freezes for a while."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, AttackSpec, Memory, Scene
from admrl_jax.attacks.threat import Budget, make_threat, project_l2
from admrl_jax.core.settings import REPEATS, UNIT
from admrl_jax.core.types import Params

THREAT = make_threat(label="stuck sensor", norm="l2", strength="L2 radius", knowledge="none")


@dataclass(frozen=True, kw_only=True)
class StuckSensorConfig:
    """How often the sensor freezes, and for how long."""

    probability: Annotated[float, UNIT] = 0.1
    """Chance of freezing in a step in which it works."""
    duration: Annotated[int, REPEATS] = 5
    """Steps for which it then repeats its last reading."""


def stuck_sensor(obs_size: int, config: StuckSensorConfig | None = None) -> Attack:
    """Repeats an old observation, as far as the budget's L2 ball around the true one allows.

    Its memory is `(last observation shown [O], steps left to repeat it [])`; -1 where it must work next.
    """
    config = config or StuckSensorConfig()

    def reset(key: jax.Array) -> Memory:
        return jnp.zeros((obs_size,)), jnp.array(-1)

    def perturb(
        params: Params,
        memory: Memory,
        key: jax.Array,
        obs: jax.Array,
        scene: Scene,
        budget: Budget,
    ) -> tuple[jax.Array, Memory]:
        shown, left = memory
        freezes = jax.random.bernoulli(key, config.probability) & (left == 0)
        left = jnp.where(freezes, config.duration, left)
        # The first observation of an episode has nothing before it.
        is_stuck = left > 0
        scale = jnp.asarray(budget.units.scale)
        delta = project_l2(budget.units.shift(shown - obs), budget.radius) * scale
        seen = jnp.where(is_stuck, obs + delta, obs)
        held = jnp.where(is_stuck, shown, obs)
        # It works for a step before it can freeze again.
        return seen, (held, jnp.where(left == 1, -1, jnp.maximum(left - 1, 0)))

    return Attack(lambda key: (), reset, perturb, THREAT)


SPEC = AttackSpec(
    "stuck_sensor",
    THREAT,
    "#8C564B",
    StuckSensorConfig,
    lambda config, victim: stuck_sensor(victim.obs_size, config),
)
