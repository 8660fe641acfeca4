"""Memory that no attack reaches: observations end with a clock and the sum of the actions executed so far.

A policy that only sees perturbed observations cannot tell where it is. One that knows what it has done can,
wherever its body does what it is told. That these numbers cannot be moved is an assumption: it holds where
the controller itself counts them.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from admrl_jax.core.types import Task, TimeStep
from admrl_jax.envs.base import Env

ASSUMPTION = (
    "Observations end with a clock and the sum of executed actions, which no attack can move: an assumption "
    "about the controller."
)
"""Printed with every result."""


@dataclass(frozen=True)
class RememberingEnv:
    """A task family whose observations `[O]` become `[O + 1 + A]`.

    The clock runs from 0 to 1. Actions are summed as they are executed, clipped to `action_limit` and divided
    by `action_scale`; in 2D navigation that is the distance covered.

    Attributes:
        env: what is wrapped; clips raw actions at `action_limit`.
        action_scale: by which it divides raw actions.
    """

    env: Any
    action_scale: float = 1.0

    @property
    def assumption(self) -> str:
        """What reports have to say."""
        return ASSUMPTION

    @property
    def obs_size(self) -> int:
        """Of the wrapped observations, clock and sums."""
        return self.env.obs_size + 1 + self.env.action_size

    @property
    def attackable(self) -> tuple[float, ...]:
        """1 for what an attack can move, 0 for the rest."""
        return (1.0,) * self.env.obs_size + (0.0,) * (1 + self.env.action_size)

    @property
    def action_size(self) -> int:
        """As wrapped."""
        return self.env.action_size

    @property
    def action_limit(self) -> float:
        """As wrapped."""
        return self.env.action_limit

    @property
    def horizon(self) -> int:
        """As wrapped."""
        return self.env.horizon

    @property
    def simulator(self) -> Any:
        """As wrapped; None where there is none."""
        return getattr(self.env, "simulator", None)

    def positions(self, state: Any) -> jax.Array:
        """The engine's positions; of bodies only."""
        return self.env.positions(state[0])

    @property
    def spread_tasks(self) -> Any:
        """As wrapped; None where tasks cannot be spread."""
        return getattr(self.env, "spread_tasks", None)

    def sample_task(self, key: jax.Array) -> Task:
        """As wrapped."""
        return self.env.sample_task(key)

    def reset(self, key: jax.Array, task: Task) -> tuple[Any, jax.Array]:
        """Starts an episode with nothing remembered."""
        inner, obs = self.env.reset(key, task)
        time, total = jnp.zeros((), obs.dtype), jnp.zeros((self.action_size,), obs.dtype)
        return (inner, time, total), self._append(obs, time, total)

    def step(self, state: Any, action: jax.Array, task: Task) -> tuple[Any, TimeStep]:
        """One step, remembered."""
        inner, time, total = state
        inner, new = self.env.step(inner, action, task)
        limit = self.action_limit
        time, total = time + 1 / self.horizon, total + jnp.clip(action, -limit, limit) / self.action_scale
        return (inner, time, total), new._replace(obs=self._append(new.obs, time, total))

    def _append(self, obs: jax.Array, time: jax.Array, total: jax.Array) -> jax.Array:
        return jnp.concatenate([obs, time[None], total])


def remember(env: Env, config: Any) -> Env:
    """Wraps an environment where its config says so."""
    if not getattr(config, "remembers_actions", False):
        return env
    return RememberingEnv(env, config.action_scale)
