"""Sensor faults that know nothing of the policy: dropout, bias, delay. A stuck sensor has its own file."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, AttackSpec, Memory, NoSettings, Scene, memoryless
from admrl_jax.attacks.threat import L2_SIZE, Budget, make_threat, project_l2
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.settings import REPEATS, UNIT
from admrl_jax.core.types import Params

DROPOUT = make_threat(label="sensor dropout", norm="l2", strength="L2 radius", knowledge="none")
BIAS = make_threat(label="sensor bias", norm="l2", strength=L2_SIZE, knowledge="none")
DELAY = make_threat(label="sensor delay", norm="l2", strength="L2 radius", knowledge="none")


def towards(shown: jax.Array, obs: jax.Array, budget: Budget) -> jax.Array:
    """As close to `shown` as the budget's L2 ball around the true observation `[O]` allows."""
    delta = project_l2(budget.units.shift(shown - obs), budget.radius)
    return obs + delta * jnp.asarray(budget.units.scale)


@dataclass(frozen=True, kw_only=True)
class DropoutConfig:
    """How often readings are lost."""

    probability: Annotated[float, UNIT] = 0.3
    """Chance of each reading to be lost in a step."""


def dropout(config: DropoutConfig | None = None) -> Attack:
    """Readings that are lost show the centre of the budget's units, as far as the budget allows."""
    config = config or DropoutConfig()

    def perturb(params: Params, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget) -> jax.Array:
        lost = jax.random.bernoulli(key, config.probability, obs.shape)
        shown = jnp.where(lost, jnp.broadcast_to(jnp.asarray(budget.units.centre), obs.shape), obs)
        return towards(shown, obs, budget)

    return memoryless(perturb, DROPOUT)


def bias(obs_size: int) -> Attack:
    """An offset of the budget's full size in a random direction that stays the same through an episode."""

    def reset(key: jax.Array) -> Memory:
        return jax.random.normal(key, (obs_size,))

    def perturb(
        params: Params, memory: Memory, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Memory]:
        scale = jnp.asarray(budget.units.scale)
        direction = memory * (scale > 0)
        length = safe_norm(direction)
        unit = direction / jnp.where(length > 0, length, 1.0)
        return obs + project_l2(budget.radius * unit, budget.radius) * scale, memory

    return Attack(lambda key: (), reset, perturb, BIAS)


@dataclass(frozen=True, kw_only=True)
class DelayConfig:
    """How late readings come."""

    steps: Annotated[int, REPEATS] = 3
    """Steps by which an observation is late; the first ones are on time."""


def delay(obs_size: int, config: DelayConfig | None = None) -> Attack:
    """Shows the observation of some steps ago, as far as the budget allows.

    Its memory is `(last observations [steps, O], how many are there [])`.
    """
    config = config or DelayConfig()

    def reset(key: jax.Array) -> Memory:
        return jnp.zeros((config.steps, obs_size)), jnp.zeros((), jnp.int32)

    def perturb(
        params: Params, memory: Memory, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Memory]:
        past, count = memory
        shown = jnp.where(count >= config.steps, past[0], obs)
        new = jnp.concatenate([past[1:], obs[None]])
        return towards(shown, obs, budget), (new, jnp.minimum(count + 1, config.steps))

    return Attack(lambda key: (), reset, perturb, DELAY)


DROPOUT_SPEC = AttackSpec(
    "sensor_dropout", DROPOUT, "#BCBD22", DropoutConfig, lambda config, victim: dropout(config)
)
BIAS_SPEC = AttackSpec(
    "sensor_bias", BIAS, "#C49C94", NoSettings, lambda config, victim: bias(victim.obs_size)
)
DELAY_SPEC = AttackSpec(
    "sensor_delay", DELAY, "#F7B6D2", DelayConfig, lambda config, victim: delay(victim.obs_size, config)
)
