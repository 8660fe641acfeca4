"""Environments of a user's own, for `--env tests.own_envs:<function>`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import admrl_jax as admrl


def reach() -> admrl.FunctionEnv:
    """A point on a line moves to a hidden target."""
    return admrl.FunctionEnv(
        obs_size=1,
        action_size=1,
        horizon=8,
        sample_task=lambda key: jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0),
        reset=lambda key, task: (jnp.zeros(1), jnp.zeros(1)),
        step=_reach_step,
    )


def _reach_step(state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[jax.Array, admrl.TimeStep]:
    state = state + jnp.clip(action, -0.2, 0.2)
    return state, admrl.TimeStep(state, -jnp.abs(state - task)[0], jnp.array(False))


def brax_pendulum() -> admrl.FunctionEnv:
    """Brax's inverted pendulum, leaning to one side or the other."""
    from brax import envs

    env = envs.get_environment("inverted_pendulum", backend="spring")

    def reward(state: Any, ctrl: jax.Array, new_state: Any, task: jax.Array) -> jax.Array:
        return task * new_state.pipeline_state.q[0]

    sample = lambda key: jax.random.rademacher(key, (), dtype=jnp.float32)  # noqa: E731
    return admrl.from_brax(env, sample_task=sample, reward=reward, horizon=4)


def slider() -> Any:
    """A mass on a rail, from an MJCF file, pushed in one direction or the other."""
    path = Path(__file__).parent / "slider.xml"
    return admrl.from_model_file(
        path,
        frame_skip=2,
        sample_task=lambda key: jax.random.rademacher(key, (), dtype=jnp.float32),
        reward=lambda state, ctrl, new_state, task: task * new_state.qvel[0],
        horizon=4,
    )


def not_an_env() -> int:
    """No environment."""
    return 3
