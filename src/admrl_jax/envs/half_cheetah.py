"""HalfCheetah: run in a given direction or at a given velocity (Finn et al. 2017, section 5.3.2)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import check_order
from admrl_jax.core.types import Task
from admrl_jax.envs.base import spread_evenly
from admrl_jax.envs.physics import PhysicsConfig, PhysicsEnv, physics_spec
from admrl_jax.simulators import Model, SimState

TORSO_HEIGHT = 0.7
"""Height of the torso's frame in the model file where its root joint reads 0 (m)."""


@dataclass(frozen=True, kw_only=True)
class HalfCheetahConfig(PhysicsConfig):
    """HalfCheetah. Defaults: pytorch-maml-rl's definition."""

    torso_position: bool = True
    """Add the torso's position to the observation (20 numbers, with absolute x) or not (17)."""


@dataclass(frozen=True, kw_only=True)
class HalfCheetahDirConfig(HalfCheetahConfig):
    """HalfCheetah running forwards or backwards."""

    name: ClassVar[str] = "halfcheetah_dir"


@dataclass(frozen=True, kw_only=True)
class HalfCheetahVelConfig(HalfCheetahConfig):
    """HalfCheetah running at a given velocity."""

    name: ClassVar[str] = "halfcheetah_vel"

    min_velocity: float = 0.0
    """Lowest target (m/s)."""
    max_velocity: float = 2.0
    """Highest target (m/s)."""

    def check(self, prefix: str) -> None:
        """The range is not empty."""
        check_order(self, prefix, "min_velocity", "max_velocity")


@dataclass(frozen=True)
class HalfCheetah(PhysicsEnv):
    """A planar body with two legs and six motors.

    Observes joint positions without the root's x, all velocities (17 numbers), and the position of
    the torso's frame (20), which follows from the root joints.
    """

    config: HalfCheetahConfig

    model: ClassVar[Model] = Model("gymnasium:half_cheetah.xml", brax="halfcheetah")

    @property
    def obs_size(self) -> int:
        """8 positions, 9 velocities and, by default, 3 torso coordinates."""
        return 20 if self.config.torso_position else 17

    def observe(self, state: SimState, task: Task) -> jax.Array:
        """Observation `[20]` or `[17]`."""
        obs = jnp.concatenate([state.qpos[1:], state.qvel])
        if not self.config.torso_position:
            return obs
        x, z = state.qpos[0], state.qpos[1] + TORSO_HEIGHT
        return jnp.concatenate([obs, jnp.stack([x, jnp.zeros_like(x), z])])


@dataclass(frozen=True)
class HalfCheetahDir(HalfCheetah):
    """Task `[]`: direction -1 or +1. Reward: direction x velocity minus control cost."""

    config_type = HalfCheetahDirConfig

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a direction."""
        return jax.random.rademacher(key, (), dtype=jnp.float32)

    def spread_tasks(self, count: int) -> jax.Array:
        """Both directions in turn `[count]`."""
        return jnp.where(jnp.arange(count) % 2 == 0, 1.0, -1.0)

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """Direction x velocity minus control cost."""
        return task * self.velocity(state, new_state)[0] - self.control_cost(ctrl)


@dataclass(frozen=True)
class HalfCheetahVel(HalfCheetah):
    """Task `[]`: target velocity (m/s). Reward: minus the distance to it, minus control cost."""

    config: HalfCheetahVelConfig

    config_type = HalfCheetahVelConfig

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a velocity."""
        return jax.random.uniform(key, (), minval=self.config.min_velocity, maxval=self.config.max_velocity)

    def spread_tasks(self, count: int) -> jax.Array:
        """Velocities `[count]` spread over the range."""
        low, high = self.config.min_velocity, self.config.max_velocity
        return low + (high - low) * spread_evenly(count)[:, 0]

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """Minus the distance to the target velocity, minus control cost."""
        return -jnp.abs(self.velocity(state, new_state)[0] - task) - self.control_cost(ctrl)


SPECS = (
    physics_spec("HalfCheetah-Dir", HalfCheetahDir),
    physics_spec("HalfCheetah-Vel", HalfCheetahVel),
)
