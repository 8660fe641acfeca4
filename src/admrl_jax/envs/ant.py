"""Ant: run at a velocity, in a direction, or to a goal (Finn et al. 2017, section 5.3.2)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import NOT_NEGATIVE, POSITIVE, check_order, one_of
from admrl_jax.core.types import Task
from admrl_jax.envs.base import spread_evenly
from admrl_jax.envs.physics import PhysicsConfig, PhysicsEnv, physics_spec
from admrl_jax.simulators import Model, SimState


def rotation_matrix(quaternion: jax.Array) -> jax.Array:
    """Rotation matrix `[3, 3]` of a quaternion `[4]`, scalar first, of any length but 0."""
    w, x, y, z = quaternion / jnp.linalg.norm(quaternion)
    return jnp.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True, kw_only=True)
class AntConfig(PhysicsConfig):
    """Ant. Defaults: pytorch-maml-rl's definition without contact forces (zero since MuJoCo 2)."""

    control_cost: Annotated[float, NOT_NEGATIVE] = 0.005
    alive_bonus: float = 0.05
    """Reward of every step in which the ant has not fallen."""
    task_bonus: float = 0.0
    """Constant added to the task's reward in every step."""
    ends_early: bool = True
    """End the episode when the torso leaves the height range."""
    min_height: float = 0.2
    """Lowest healthy height of the torso (m)."""
    max_height: float = 1.0
    """Greatest healthy height of the torso (m)."""
    observe_xy: bool = True
    """Observe the root's x and y as part of the positions."""
    torso_frame: bool = True
    """Add rotation matrix (9) and position (3) of the torso to the observation."""

    def check(self, prefix: str) -> None:
        """The range of heights is not empty."""
        check_order(self, prefix, "min_height", "max_height")


@dataclass(frozen=True, kw_only=True)
class AntVelConfig(AntConfig):
    """Ant running at a given forward velocity."""

    name: ClassVar[str] = "ant_vel"

    task_bonus: float = 1.0
    max_velocity: Annotated[float, POSITIVE] = 3.0
    """Targets are uniform from 0 to this (m/s)."""


@dataclass(frozen=True, kw_only=True)
class AntDirConfig(AntConfig):
    """Ant running in a given direction."""

    name: ClassVar[str] = "ant_dir"

    directions: Annotated[str, one_of("forward_backward", "circle")] = "forward_backward"
    """forward_backward: along the x axis. circle: any direction in the plane."""


@dataclass(frozen=True, kw_only=True)
class AntGoalConfig(AntConfig):
    """Ant walking to a goal it cannot see."""

    name: ClassVar[str] = "ant_goal"

    task_bonus: float = 4.0
    goal_range: Annotated[float, POSITIVE] = 3.0
    """Half width of the square, or radius of the disk, of goals (m)."""
    goal_shape: Annotated[str, one_of("square", "disk")] = "square"
    """square or disk, uniform in either."""


@dataclass(frozen=True)
class Ant(PhysicsEnv):
    """Four legs, eight motors. Observes positions, velocities, the torso's rotation and position.

    The contact forces of older definitions are zero in MuJoCo 2 and newer, and left out.
    """

    config: AntConfig

    model: ClassVar[Model] = Model("gymnasium:ant.xml", brax="ant")

    @property
    def obs_size(self) -> int:
        """15 positions (13 without x and y), 14 velocities, 12 numbers of the torso's frame."""
        return 29 - 2 * (not self.config.observe_xy) + 12 * self.config.torso_frame

    def observe(self, state: SimState, task: Task) -> jax.Array:
        """Observation `[41]` by default."""
        obs = [state.qpos if self.config.observe_xy else state.qpos[2:], state.qvel]
        if self.config.torso_frame:
            obs += [rotation_matrix(state.qpos[3:7]).ravel(), state.qpos[:3]]
        return jnp.concatenate(obs)

    def ended(self, state: SimState) -> jax.Array:
        """The torso is too low or too high."""
        height = state.qpos[2]
        healthy = (height >= self.config.min_height) & (height <= self.config.max_height)
        return jnp.logical_not(healthy) & self.config.ends_early

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """The task's own reward, bonuses for being alive, control cost."""
        bonus = self.config.task_bonus + self.config.alive_bonus
        return self.task_reward(state, new_state, task) + bonus - self.control_cost(ctrl)

    def task_reward(self, state: SimState, new_state: SimState, task: Task) -> jax.Array:
        """What differs between the families."""
        raise NotImplementedError


@dataclass(frozen=True)
class AntVel(Ant):
    """Task `[]`: forward velocity (m/s)."""

    config: AntVelConfig

    config_type = AntVelConfig

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a velocity."""
        return jax.random.uniform(key, (), maxval=self.config.max_velocity)

    def spread_tasks(self, count: int) -> jax.Array:
        """Velocities `[count]` spread over the range."""
        return self.config.max_velocity * spread_evenly(count)[:, 0]

    def task_reward(self, state: SimState, new_state: SimState, task: Task) -> jax.Array:
        """Minus the distance to the target velocity."""
        return -jnp.abs(self.velocity(state, new_state)[0] - task)


@dataclass(frozen=True)
class AntDir(Ant):
    """Task `[2]`: unit vector of the direction, (-1, 0) or (1, 0) by default."""

    config: AntDirConfig

    config_type = AntDirConfig

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a direction."""
        if self.config.directions == "circle":
            angle = jax.random.uniform(key, (), maxval=2 * jnp.pi)
            return jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return jnp.stack([jax.random.rademacher(key, (), dtype=jnp.float32), jnp.float32(0)])

    def spread_tasks(self, count: int) -> jax.Array:
        """Directions `[count, 2]`: around the circle, or both in turn."""
        number = jnp.arange(count)
        angle = 2 * jnp.pi * number / count if self.config.directions == "circle" else jnp.pi * (number % 2)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def task_reward(self, state: SimState, new_state: SimState, task: Task) -> jax.Array:
        """Velocity in the direction."""
        return jnp.sum(self.velocity(state, new_state)[:2] * task)


@dataclass(frozen=True)
class AntGoal(Ant):
    """Task `[2]`: goal in the plane (m)."""

    config: AntGoalConfig

    config_type = AntGoalConfig

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a goal."""
        size = self.config.goal_range
        if self.config.goal_shape == "square":
            return jax.random.uniform(key, (2,), minval=-size, maxval=size)
        radius, angle = jax.random.uniform(key, (2,))
        angle = 2 * jnp.pi * angle
        return size * jnp.sqrt(radius) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def spread_tasks(self, count: int) -> jax.Array:
        """Goals `[count, 2]` spread over the square or the disc."""
        size, points = self.config.goal_range, spread_evenly(count, 2)
        if self.config.goal_shape == "square":
            return size * (2 * points - 1)
        radius, angle = jnp.sqrt(points[:, 0]), 2 * jnp.pi * points[:, 1]
        return size * radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def task_reward(self, state: SimState, new_state: SimState, task: Task) -> jax.Array:
        """Minus the L1 distance to the goal."""
        return -jnp.sum(jnp.abs(new_state.qpos[:2] - task))


SPECS = (
    physics_spec("Ant-Vel", AntVel),
    physics_spec("Ant-Dir", AntDir),
    physics_spec("Ant-Goal", AntGoal),
)
