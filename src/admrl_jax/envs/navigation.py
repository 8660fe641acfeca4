"""2D navigation: a point moves to a goal it cannot see (Finn et al. 2017, section 5.3.1)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import NOT_NEGATIVE, POSITIVE
from admrl_jax.core.types import TimeStep
from admrl_jax.envs.base import BuiltInConfig, EnvSpec, spread_evenly


@dataclass(frozen=True, kw_only=True)
class NavigationConfig(BuiltInConfig):
    """2D navigation. Defaults: MAML's definition (goals in a unit square, moves up to 0.1)."""

    name: ClassVar[str] = "navigation_2d"

    goal_range: Annotated[float, POSITIVE] = 0.5
    """Goals are uniform in [-goal_range, goal_range]^2."""
    max_move: Annotated[float, POSITIVE] = 0.1
    """Longest move per axis and step."""
    goal_radius: Annotated[float, NOT_NEGATIVE] = 0.01
    """The episode ends when both coordinates are this close to the goal."""


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
    def action_limit(self) -> float:
        """Magnitude of a raw action beyond which moves are clipped."""
        return self.config.max_move * self.config.action_scale

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.config.horizon

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a goal `[2]`."""
        size = self.config.goal_range
        return jax.random.uniform(key, (2,), minval=-size, maxval=size)

    def spread_tasks(self, count: int) -> jax.Array:
        """Goals `[count, 2]` spread over the square."""
        return self.config.goal_range * (2 * spread_evenly(count, 2) - 1)

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


def picture_goals(config: NavigationConfig) -> jax.Array:
    """Four goals `[4, 2]`, one per quadrant."""
    corners = jnp.array([[1.0, 1.0], [-1.0, 0.6], [-0.6, -1.0], [1.0, -0.5]])
    return 0.8 * config.goal_range * corners


SPECS = (
    EnvSpec(
        "2D navigation",
        NavigationConfig,
        lambda config, simulator, num_threads: Navigation2D(config),
        picture_tasks=picture_goals,
    ),
)
