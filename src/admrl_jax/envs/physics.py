"""What all environments on a physics engine share: reset noise, control step, ending."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from admrl_jax.env_config import PhysicsConfig
from admrl_jax.simulators import Model, ModelParams, SimState, Simulator
from admrl_jax.types import Task, TimeStep


@dataclass(frozen=True)
class PhysicsEnv:
    """A family of tasks for one body. Everything is computed from the engine's `qpos` and `qvel`.

    A subclass says where its body is (`model`), how big an observation is (`obs_size`), and gives
    `sample_task`, `observe` and `reward`; it may change how an episode starts (`start`) or ends
    (`ended`), and the body itself (`body`).

    Attributes:
        simulator: the engine, built for `model`.
        config: the environment's numbers.
    """

    simulator: Simulator
    config: Any

    model: ClassVar[Model]
    config_type: ClassVar[type[PhysicsConfig]]

    @property
    def obs_size(self) -> int:
        """Length of an observation."""
        raise NotImplementedError

    @property
    def action_size(self) -> int:
        """One action per motor."""
        return self.simulator.nu

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.config.horizon

    def sample_task(self, key: jax.Array) -> Task:
        """Draws a task."""
        raise NotImplementedError

    def observe(self, state: SimState, task: Task) -> jax.Array:
        """Observation `[O]`."""
        raise NotImplementedError

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """Reward of one step, from the raw `action` and the scaled, clipped `ctrl`."""
        raise NotImplementedError

    def start(self, key: jax.Array, task: Task) -> tuple[jax.Array, jax.Array]:
        """Default pose with uniform noise; normal velocities of standard deviation `reset_noise`."""
        key_qpos, key_qvel = jax.random.split(key)
        qpos0 = jnp.asarray(self.simulator.qpos0, jnp.float32)
        noise = self.config.reset_noise
        qpos = qpos0 + jax.random.uniform(key_qpos, qpos0.shape, minval=-noise, maxval=noise)
        return qpos, noise * jax.random.normal(key_qvel, (self.simulator.nv,))

    def ended(self, state: SimState) -> jax.Array:
        """Whether the episode ends here before its time."""
        return jnp.array(False)

    def body(self, task: Task) -> ModelParams | None:
        """The body of a task, where tasks differ in it."""
        return None

    def reset(self, key: jax.Array, task: Task) -> tuple[SimState, jax.Array]:
        """Starts an episode."""
        state = self.simulator.init(*self.start(key, task))
        return state, self.observe(state, task)

    def step(self, state: SimState, action: jax.Array, task: Task) -> tuple[SimState, TimeStep]:
        """One control step under the scaled, clipped action; a state that has ended stays as it is."""
        low, high = jnp.asarray(self.simulator.ctrl_range).T
        ctrl = jnp.clip(action / self.config.action_scale, low, high)
        ended = self.ended(state)
        new_state = self.simulator.step(state, ctrl, self.body(task), ended)
        new_state = jax.tree.map(lambda old, new: jnp.where(ended, old, new), state, new_state)
        reward = self.reward(state, action, ctrl, new_state, task)
        return new_state, TimeStep(self.observe(new_state, task), reward, self.ended(new_state))

    def velocity(self, state: SimState, new_state: SimState) -> jax.Array:
        """Mean velocity `[nq]` of the positions over a control step."""
        return (new_state.qpos - state.qpos) / self.simulator.dt

    def control_cost(self, ctrl: jax.Array) -> jax.Array:
        """Weighted sum of squares."""
        return self.config.control_cost * jnp.sum(jnp.square(ctrl))
