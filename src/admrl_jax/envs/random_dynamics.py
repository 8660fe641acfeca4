"""Walker2d and Hopper whose bodies differ from task to task (Rothfuss et al. 2019, ProMP)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import ABOVE_ONE, NOT_NEGATIVE, REPEATS, STEPS, UNIT, number_from
from admrl_jax.core.types import Task
from admrl_jax.envs.physics import PhysicsConfig, PhysicsEnv, physics_spec
from admrl_jax.simulators import Model, ModelParams, SimState, SimulatorError

MAX_OBSERVED_VELOCITY = 10.0
"""Velocities are clipped to +- this in the observation, as in Gymnasium."""

MAX_HOPPER_STATE = 100.0
"""Hopper's episode ends when any position but x and z, or any velocity, is beyond +- this."""


@dataclass(frozen=True, kw_only=True)
class RandomDynamicsConfig(PhysicsConfig):
    """A walking robot whose body differs from task to task. Defaults: ProMP's definition."""

    horizon: Annotated[int, STEPS] = 200
    frame_skip: Annotated[int, REPEATS] = 8
    """Physics steps of 0.002 s: ProMP's control step of 0.016 s on Gymnasium's model."""
    reset_noise: Annotated[float, UNIT] = 0.005
    control_cost: Annotated[float, NOT_NEGATIVE] = 0.001
    alive_bonus: float = 1.0
    """Reward of every step."""
    log_scale_limit: Annotated[float, number_from(0, 10)] = 3.0
    """Every scaled number of the model is multiplied by base^u, u uniform in +- this."""
    body_scale_base: Annotated[float, ABOVE_ONE] = 1.5
    """Base for masses, inertias and friction coefficients."""
    damping_scale_base: Annotated[float, ABOVE_ONE] = 1.3
    """Base for joint damping."""


@dataclass(frozen=True, kw_only=True)
class Walker2dParamsConfig(RandomDynamicsConfig):
    """Walker2d with random masses, inertias, friction and damping."""

    name: ClassVar[str] = "walker2d_params"


@dataclass(frozen=True, kw_only=True)
class HopperParamsConfig(RandomDynamicsConfig):
    """Hopper with random masses, inertias, friction and damping."""

    name: ClassVar[str] = "hopper_params"


@dataclass(frozen=True)
class RandomDynamics(PhysicsEnv):
    """Task: `ModelParams`, the model file's numbers times random factors, entry by entry.

    The observation is positions without the root's x and clipped velocities; the reward is forward
    velocity plus a bonus minus control cost. Tasks differ in their body alone.
    """

    config: RandomDynamicsConfig

    def __post_init__(self) -> None:
        if self.simulator.default_params is None:
            raise SimulatorError(
                f"simulator: {self.simulator.name!r} cannot change the body per task, which "
                f"{self.config.name} needs; accepted: auto, mujoco, mjx"
            )

    @property
    def obs_size(self) -> int:
        """Positions without x, velocities."""
        return len(self.simulator.qpos0) - 1 + self.simulator.nv

    def sample_task(self, key: jax.Array) -> ModelParams:
        """Draws a body. Factors always multiply the model file's numbers, so they never compound."""
        assert self.simulator.default_params is not None
        params, limit = self.simulator.default_params(), self.config.log_scale_limit

        def scaled(key: jax.Array, values: jax.Array, base: float) -> jax.Array:
            return values * base ** jax.random.uniform(key, values.shape, minval=-limit, maxval=limit)

        body, damping = self.config.body_scale_base, self.config.damping_scale_base
        keys = jax.random.split(key, len(params))
        return ModelParams(*map(scaled, keys, params, (body, body, body, damping)))

    def body(self, task: Task) -> ModelParams:
        """The task is the body."""
        return task

    def start(self, key: jax.Array, task: Task) -> tuple[jax.Array, jax.Array]:
        """Default pose at rest with uniform noise on positions and velocities."""
        key_qpos, key_qvel = jax.random.split(key)
        noise = self.config.reset_noise
        return self.noisy_pose(key_qpos), jax.random.uniform(
            key_qvel, (self.simulator.nv,), minval=-noise, maxval=noise
        )

    def observe(self, state: SimState, task: Task) -> jax.Array:
        """Observation: `[17]` (Walker2d) or `[11]` (Hopper)."""
        qvel = jnp.clip(state.qvel, -MAX_OBSERVED_VELOCITY, MAX_OBSERVED_VELOCITY)
        return jnp.concatenate([state.qpos[1:], qvel])

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """Forward velocity, bonus, control cost."""
        return self.velocity(state, new_state)[0] + self.config.alive_bonus - self.control_cost(ctrl)


@dataclass(frozen=True)
class Walker2dParams(RandomDynamics):
    """Ends when the torso is outside (0.8, 2) m or leans by 1 rad or more."""

    model: ClassVar[Model] = Model("gymnasium:walker2d_v5.xml")
    config_type = Walker2dParamsConfig

    def ended(self, state: SimState) -> jax.Array:
        """Too low, too high or leaning."""
        height, angle = state.qpos[1], state.qpos[2]
        return jnp.logical_not((height > 0.8) & (height < 2.0) & (jnp.abs(angle) < 1.0))


@dataclass(frozen=True)
class HopperParams(RandomDynamics):
    """Ends when the torso is at 0.7 m or lower, leans by 0.2 rad or more, or the state runs away."""

    model: ClassVar[Model] = Model("gymnasium:hopper.xml")
    config_type = HopperParamsConfig

    def ended(self, state: SimState) -> jax.Array:
        """Too low, leaning, or running away."""
        height, angle = state.qpos[1], state.qpos[2]
        rest = jnp.concatenate([state.qpos[2:], state.qvel])
        healthy = (height > 0.7) & (jnp.abs(angle) < 0.2) & jnp.all(jnp.abs(rest) < MAX_HOPPER_STATE)
        return jnp.logical_not(healthy)


SPECS = (
    physics_spec("Walker2d-Params", Walker2dParams),
    physics_spec("Hopper-Params", HopperParams),
)
