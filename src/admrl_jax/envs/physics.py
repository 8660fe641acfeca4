"""What all environments on a physics engine share: reset noise, control step, ending."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import NOT_NEGATIVE, REPEATS, UNIT
from admrl_jax.core.types import Task, TimeStep
from admrl_jax.envs.base import BuiltInConfig, Env, EnvSpec
from admrl_jax.simulators import (
    SIMULATORS,
    Model,
    ModelParams,
    SimState,
    Simulator,
    SimulatorError,
    make_simulator,
    resolve,
)


@dataclass(frozen=True, kw_only=True)
class PhysicsConfig(BuiltInConfig):
    """Numbers of an environment on a physics engine."""

    frame_skip: Annotated[int, REPEATS] = 5
    """Physics steps per control step."""
    reset_noise: Annotated[float, UNIT] = 0.1
    """Half width of the uniform noise on positions at reset; see the family for velocities."""
    control_cost: Annotated[float, NOT_NEGATIVE] = 0.05
    """Weight of the sum of squared controls, after scaling and clipping."""


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
    def action_limit(self) -> float:
        """Magnitude of a raw action at which every motor is at its limit."""
        return self.config.action_scale * max(abs(x) for pair in self.simulator.ctrl_range for x in pair)

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
        velocity = self.config.reset_noise * jax.random.normal(key_qvel, (self.simulator.nv,))
        return self.noisy_pose(key_qpos), velocity

    def noisy_pose(self, key: jax.Array) -> jax.Array:
        """Default pose `[nq]` with uniform noise of half width `reset_noise`."""
        qpos0 = jnp.asarray(self.simulator.qpos0, jnp.float32)
        noise = self.config.reset_noise
        return qpos0 + jax.random.uniform(key, qpos0.shape, minval=-noise, maxval=noise)

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

    def positions(self, state: SimState) -> jax.Array:
        """The engine's positions `[nq]`, which films are drawn from."""
        return state.qpos

    def velocity(self, state: SimState, new_state: SimState) -> jax.Array:
        """Mean velocity `[nq]` of the positions over a control step."""
        return (new_state.qpos - state.qpos) / self.simulator.dt

    def control_cost(self, ctrl: jax.Array) -> jax.Array:
        """Weighted sum of squares."""
        return self.config.control_cost * jnp.sum(jnp.square(ctrl))


def physics_spec(label: str, family: type[PhysicsEnv]) -> EnvSpec:
    """The spec of a family that has a model file."""
    has_brax = bool(family.model.brax)
    simulators = tuple(name for name in SIMULATORS if has_brax or not name.startswith("brax-"))

    def make(config: PhysicsConfig, simulator: str, num_threads: int) -> Env:
        name = resolve(simulator)
        if name not in simulators:
            raise SimulatorError(
                f"simulator: {config.name} does not run on {name!r}; "
                f"accepted: {', '.join(('auto', *simulators))}"
            )
        return family(make_simulator(name, family.model, config.frame_skip, num_threads), config)

    return EnvSpec(label, family.config_type, make, simulators)
