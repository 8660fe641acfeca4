"""Turns other environments into task families: functions, Brax, MuJoCo model files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.core.settings import ConfigError, check_fields
from admrl_jax.core.types import Task, TimeStep
from admrl_jax.envs.contract import check_env, describe
from admrl_jax.envs.physics import PhysicsConfig, PhysicsEnv
from admrl_jax.simulators import Model, SimState, make_simulator

SampleTask = Callable[[jax.Array], Task]
Reward = Callable[[Any, jax.Array, Any, Task], jax.Array]
"""`(state, control, new_state, task) -> reward []`."""


class FunctionEnv(NamedTuple):
    """A task family from pure functions of your own, each written for one episode.

    Attributes:
        obs_size: length of an observation.
        action_size: length of an action.
        horizon: steps per episode.
        sample_task: `(key) -> task`, an array or a pytree of arrays.
        reset: `(key, task) -> (state, obs [O])`; the state is any pytree of arrays.
        step: `(state, raw action [A], task) -> (state, TimeStep)`. No auto-reset: `rollout` masks what
            follows a `terminated` step.
    """

    obs_size: int
    action_size: int
    horizon: int
    sample_task: SampleTask
    reset: Callable[[jax.Array, Task], tuple[Any, jax.Array]]
    step: Callable[[Any, jax.Array, Task], tuple[Any, TimeStep]]


def from_brax(
    env: Any, *, sample_task: SampleTask, reward: Reward, horizon: int = 100, action_scale: float = 1.0
) -> FunctionEnv:
    """Makes any environment of `brax.envs` a task family; its own reward is not used.

    Args:
        env: of `brax.envs.get_environment` or `create`; the wrappers with which `create` ends and restarts
            episodes are taken off.
        sample_task: `(key) -> task`.
        reward: `(state, control, new_state, task) -> []` on Brax's `State`s.
        horizon: steps per episode.
        action_scale: raw actions are divided by this, then clipped to +-1.

    Raises:
        ConfigError: observations are not one vector, or a function returns something else than it should.
        SimulatorError: a wrapper restarts or batches episodes and cannot be taken off.
    """
    from admrl_jax.simulators.brax import unwrap

    env = unwrap(env)
    shape = jax.eval_shape(env.reset, jax.random.key(0)).obs
    if not isinstance(shape, jax.ShapeDtypeStruct) or len(shape.shape) != 1:
        raise ConfigError(
            f"env: observations of {type(env).__name__} are {describe(shape)}; accepted: float[O]"
        )

    def reset(key: jax.Array, task: Task) -> tuple[Any, jax.Array]:
        state = env.reset(key)
        return state, state.obs

    def step(state: Any, action: jax.Array, task: Task) -> tuple[Any, TimeStep]:
        ctrl = jnp.clip(action / action_scale, -1.0, 1.0)
        new = env.step(state, ctrl)
        return new, TimeStep(new.obs, reward(state, ctrl, new, task), new.done > 0)

    made = FunctionEnv(shape.shape[0], env.action_size, horizon, sample_task, reset, step)
    check_env(made)
    return made


def _all_of_it(state: SimState, task: Task) -> jax.Array:
    return jnp.concatenate([state.qpos, state.qvel])


def _never(state: SimState) -> jax.Array:
    return jnp.array(False)


@dataclass(frozen=True)
class ModelFileEnv(PhysicsEnv):
    """A task family on an MJCF file, from functions of the engine's state; see `from_model_file`."""

    config: PhysicsConfig
    sample: SampleTask
    reward_fn: Reward
    observe_fn: Callable[[SimState, Task], jax.Array]
    ended_fn: Callable[[SimState], jax.Array]
    keyframe: str = ""

    def start(self, key: jax.Array, task: Task) -> tuple[jax.Array, jax.Array]:
        """The default pose or a keyframe, with noise; quaternions stay unit quaternions."""
        qpos, qvel = super().start(key, task)
        if self.keyframe:
            start = self.simulator.keyframe(self.keyframe)
            at_rest = jnp.asarray(self.simulator.qpos0, qpos.dtype)
            qpos, qvel = qpos - at_rest + jnp.asarray(start[0], qpos.dtype), qvel + jnp.asarray(start[1])
        for place in self.simulator.quaternions:
            part = qpos[place : place + 4]
            qpos = qpos.at[place : place + 4].set(part / jnp.linalg.norm(part))
        return qpos, qvel

    @property
    def obs_size(self) -> int:
        """Length of what `observe` returns."""
        state, task = jax.eval_shape(
            lambda key: (self.simulator.init(*self.start(key, None)), self.sample(key)), jax.random.key(0)
        )
        shape = jax.eval_shape(self.observe_fn, state, task)
        if getattr(shape, "ndim", None) != 1:
            raise ConfigError(f"env: observe returns {describe(shape)}; accepted: float[O]")
        return shape.shape[0]

    def sample_task(self, key: jax.Array) -> Task:
        """Draws a task."""
        return self.sample(key)

    def observe(self, state: SimState, task: Task) -> jax.Array:
        """Observation `[O]`."""
        return self.observe_fn(state, task)

    def ended(self, state: SimState) -> jax.Array:
        """Whether the episode ends here before its time."""
        return self.ended_fn(state)

    def reward(
        self, state: SimState, action: jax.Array, ctrl: jax.Array, new_state: SimState, task: Task
    ) -> jax.Array:
        """The user's reward."""
        return self.reward_fn(state, ctrl, new_state, task)


def from_model_file(
    path: str | Path,
    *,
    frame_skip: int,
    sample_task: SampleTask,
    reward: Reward,
    observe: Callable[[SimState, Task], jax.Array] | None = None,
    ended: Callable[[SimState], jax.Array] | None = None,
    horizon: int = 100,
    action_scale: float = 1.0,
    reset_noise: float = 0.1,
    keyframe: str = "",
    simulator: str = "auto",
    num_threads: int = 0,
) -> ModelFileEnv:
    """Makes a MuJoCo model file, as Gymnasium's environments have one, a task family.

    Args:
        path: MJCF file, or the name of one of Gymnasium's: `swimmer.xml`, or `gymnasium:swimmer.xml` where a
            file of that name in the current folder shall not come first.
        frame_skip: physics steps per control step.
        sample_task: `(key) -> task`.
        reward: `(state, control, new_state, task) -> []` on `SimState`s; `control` is scaled and clipped.
        observe: `(state, task) -> [O]`; positions and velocities by default.
        ended: `(state) -> []` bool; never by default.
        horizon: steps per episode.
        action_scale: raw actions are divided by this, then clipped to the motors' range.
        reset_noise: half width of the noise on positions, standard deviation of that on velocities.
        keyframe: of the file, from which episodes start; its default pose at rest if empty.
        simulator: `auto`, `mujoco`, `mjx` or `mjx-warp`.
        num_threads: host threads of `mujoco`; 0 takes one per core.

    Raises:
        ConfigError: a number is not accepted, a function returns something else than it should, or the body
            has no motors.
        SimulatorError: there is no such file or keyframe, or the simulator cannot run here.
    """
    config = PhysicsConfig(
        horizon=horizon, action_scale=action_scale, frame_skip=frame_skip, reset_noise=reset_noise
    )
    check_fields(config, "env.")
    env = ModelFileEnv(
        simulator=make_simulator(simulator, Model(path), frame_skip, num_threads),
        config=config,
        sample=sample_task,
        reward_fn=reward,
        observe_fn=observe or _all_of_it,
        ended_fn=ended or _never,
        keyframe=keyframe,
    )
    if keyframe:
        env.simulator.keyframe(keyframe)
    check_env(env)
    return env
