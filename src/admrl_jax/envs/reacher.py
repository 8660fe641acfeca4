"""Reacher: a two-link arm in the plane reaches for a target that it cannot see."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import NOT_NEGATIVE, POSITIVE, REPEATS, STEPS
from admrl_jax.core.types import Task
from admrl_jax.envs.base import spread_evenly
from admrl_jax.envs.physics import PhysicsConfig, PhysicsEnv, physics_spec
from admrl_jax.simulators import Model, SimState

LINK_LENGTHS = (0.1, 0.11)
"""From shoulder to elbow and from elbow to fingertip in the model file (m)."""

VELOCITY_NOISE = 0.005
"""Half width of the uniform joint velocities at reset (rad/s), as in Gymnasium."""


def fingertip(state: SimState) -> jax.Array:
    """Position `[2]` of the fingertip (m), by forward kinematics."""
    first, second = state.qpos[0], state.qpos[0] + state.qpos[1]
    length, tip = LINK_LENGTHS
    return jnp.stack(
        [
            length * jnp.cos(first) + tip * jnp.cos(second),
            length * jnp.sin(first) + tip * jnp.sin(second),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class ReacherConfig(PhysicsConfig):
    """A two-link arm reaching for a target it cannot see. Defaults: this project's definition."""

    name: ClassVar[str] = "reacher"

    horizon: Annotated[int, STEPS] = 200
    action_scale: Annotated[float, POSITIVE] = 1.0
    frame_skip: Annotated[int, REPEATS] = 2
    control_cost: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the sum of squared raw actions: neither scaled nor clipped, as in Gymnasium."""
    target_range: Annotated[float, POSITIVE] = 0.2
    """Targets are uniform in [-target_range, target_range]^2 (m)."""
    visible_target: bool = False
    """Show target and fingertip's offset from it: then no adaptation is needed."""


@dataclass(frozen=True)
class Reacher(PhysicsEnv):
    """Task `[2]`: target (m). Reward: minus the fingertip's distance, minus squared raw actions."""

    config: ReacherConfig

    model: ClassVar[Model] = Model("gymnasium:reacher.xml")
    config_type = ReacherConfig

    @property
    def obs_size(self) -> int:
        """4 cosines and sines, 2 velocities, 2 fingertip coordinates; 4 more of a visible target."""
        return 12 if self.config.visible_target else 8

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a target."""
        size = self.config.target_range
        return jax.random.uniform(key, (2,), minval=-size, maxval=size)

    def spread_tasks(self, count: int) -> jax.Array:
        """Targets `[count, 2]` spread over the square."""
        return self.config.target_range * (2 * spread_evenly(count, 2) - 1)

    def start(self, key: jax.Array, task: Task) -> tuple[jax.Array, jax.Array]:
        """Uniform noise on joints and their velocities; the target's own joints hold the task."""
        key_qpos, key_qvel = jax.random.split(key)
        noise = self.config.reset_noise
        joints = jax.random.uniform(key_qpos, (2,), minval=-noise, maxval=noise)
        speeds = jax.random.uniform(key_qvel, (2,), minval=-VELOCITY_NOISE, maxval=VELOCITY_NOISE)
        return jnp.concatenate([joints, task]), jnp.concatenate([speeds, jnp.zeros(2)])

    def observe(self, state: SimState, task: Task) -> jax.Array:
        """Observation `[8]`: cosines, sines, velocities, fingertip; `[12]` with target and offset."""
        angles, tip = state.qpos[:2], fingertip(state)
        obs = [jnp.cos(angles), jnp.sin(angles), state.qvel[:2], tip]
        if self.config.visible_target:
            obs += [task, tip - task]
        return jnp.concatenate(obs)

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """Minus distance after the step, minus the raw action's cost."""
        distance = jnp.sqrt(jnp.sum(jnp.square(fingertip(new_state) - task)))
        return -distance - self.control_cost(action)


SPECS = (physics_spec("Reacher", Reacher),)
