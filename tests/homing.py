"""A toy whose return under attack is known: a policy that goes home, and pays for where it stands."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.threat import Units
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import TimeStep
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import Setup


class Home(NamedTuple):
    """Stay at the origin: each step costs the squared distance to it. All tasks are the same."""

    obs_size: int = 2
    action_size: int = 2
    horizon: int = 10

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Nothing to draw."""
        return jnp.zeros(1)

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Starts near the origin."""
        place = 0.2 * jax.random.normal(key, (2,))
        return place, place

    def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[jax.Array, TimeStep]:
        """Moves by the action."""
        state = state + action
        return state, TimeStep(state, -jnp.sum(jnp.square(state)), jnp.array(False))


HOMING = Policy(
    lambda key: {"gain": jnp.full(2, 0.5), "log_std": jnp.full(2, jnp.log(0.2))},
    lambda params, obs: Gaussian(-params["gain"] * obs, params["log_std"]),
)
"""Goes half of the way to where it believes the origin is. Always moved by d, it settles at -d and pays |d|^2
a step more; moved by as much in random directions, a third of that."""
LEARNER = make_maml_trpo(HOMING, MAMLTRPOConfig(inner_lr=1e-6))
SETUP = Setup(Home(), HOMING, LEARNER, SamplingConfig(num_tasks=6, num_trajectories=12))
META_PARAMS = HOMING.init(jax.random.key(0))
INPUTS = Units(jnp.zeros(2), jnp.full(2, 0.3))
