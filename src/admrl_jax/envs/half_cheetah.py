"""HalfCheetah task families: run in a given direction (Finn et al. 2017, section 5.3.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.config import HalfCheetahDirConfig
from admrl_jax.simulators import SimState, Simulator
from admrl_jax.types import TimeStep

TORSO_HEIGHT = 0.7
"""Height of the torso's frame in the model file where its root joint reads 0 (m)."""


class HalfCheetahDir(NamedTuple):
    """Task `[]`: direction -1 or +1. Reward: direction x velocity minus control cost.

    The observation `[20]` is joint positions without the root's x, all velocities, and the
    position of the torso's frame, which follows from the root joints.
    """

    simulator: Simulator
    config: HalfCheetahDirConfig = HalfCheetahDirConfig()

    @property
    def obs_size(self) -> int:
        """8 positions, 9 velocities, 3 torso coordinates."""
        return 20

    @property
    def action_size(self) -> int:
        """Six joint torques."""
        return 6

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.config.horizon

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Draws a direction."""
        return jax.random.rademacher(key, (), dtype=jnp.float32)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[SimState, jax.Array]:
        """Starts near the default pose, almost at rest."""
        key_qpos, key_qvel = jax.random.split(key)
        qpos0 = jnp.asarray(self.simulator.qpos0, jnp.float32)
        noise = self.config.reset_noise
        qpos = qpos0 + jax.random.uniform(key_qpos, qpos0.shape, minval=-noise, maxval=noise)
        qvel = noise * jax.random.normal(key_qvel, (self.simulator.nv,))
        state = self.simulator.init(qpos, qvel)
        return state, self._observe(state)

    def step(self, state: SimState, action: jax.Array, task: jax.Array) -> tuple[SimState, TimeStep]:
        """One control step of 0.05 s."""
        ctrl = jnp.clip(action / self.config.action_scale, -1.0, 1.0)
        new_state = self.simulator.step(state, ctrl)
        velocity = (new_state.qpos[0] - state.qpos[0]) / self.simulator.dt
        cost = self.config.control_cost * jnp.sum(jnp.square(ctrl))
        reward = task * velocity - cost
        return new_state, TimeStep(self._observe(new_state), reward, jnp.array(False))

    def _observe(self, state: SimState) -> jax.Array:
        x, z = state.qpos[0], state.qpos[1] + TORSO_HEIGHT
        torso = jnp.stack([x, jnp.zeros_like(x), z])
        return jnp.concatenate([state.qpos[1:], state.qvel, torso])
