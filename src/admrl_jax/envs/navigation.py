"""2D navigation: a point moves to a goal it cannot see (Finn et al. 2017, section 5.3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.env_config import NavigationConfig
from admrl_jax.types import TimeStep


class Navigation2D(NamedTuple):
    """A point at the origin, a goal `[2]` as task, position as observation.

    The reward is minus the distance to the goal after the move; the episode ends within
    `goal_radius` of the goal in both axes.
    """

    config: NavigationConfig = NavigationConfig()

    @property
    def obs_size(self) -> int:
        """Position."""
        return 2

    @property
    def action_size(self) -> int:
        """Displacement."""
        return 2

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.config.horizon

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a goal `[2]`."""
        size = self.config.goal_range
        return jax.random.uniform(key, (2,), minval=-size, maxval=size)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Starts at the origin."""
        position = jnp.zeros_like(task)
        return position, position

    def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[jax.Array, TimeStep]:
        """Moves by the scaled, clipped action."""
        limit = self.config.max_move
        position = state + jnp.clip(action / self.config.action_scale, -limit, limit)
        offset = position - task
        reward = -jnp.sqrt(jnp.sum(jnp.square(offset)))
        terminated = jnp.all(jnp.abs(offset) < self.config.goal_radius)
        return position, TimeStep(position, reward, terminated)
