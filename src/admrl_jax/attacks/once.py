"""Another attack, on one observation of every episode and no other: what a single decision is worth to it."""

from typing import Any

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Memory, Scene
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.types import Params


def once(attack: Attack, horizon: int) -> Attack:
    """The attack on one step of an episode, drawn evenly from all; the policy sees the others as they are.

    What the attack carries from step to step goes on as if it acted all the time. Two episodes of one key,
    with and without it, differ by that one observation and what follows from it: a sample of the advantage
    of the attacked action. An episode that ends before the step is not attacked.

    Args:
        attack: any.
        horizon: steps of an episode.
    """

    def reset(key: jax.Array) -> Memory:
        key_step, key_attack = jax.random.split(key)
        return attack.reset(key_attack), jax.random.randint(key_step, (), 0, horizon)

    def perturb(
        params: Params, memory: Memory, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Memory]:
        carried, steps_left = memory
        perturbed, carried = attack.perturb(params, carried, key, obs, scene, budget)
        return jnp.where(steps_left == 0, perturbed, obs), (carried, steps_left - 1)

    def record(memory: Memory) -> Any:
        return attack.record(memory[0])

    return attack._replace(reset=reset, perturb=perturb, record=record)
