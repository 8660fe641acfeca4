"""What is no environment is refused in one line that names the member; what is harmless is cast."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy, make_policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import TimeStep
from admrl_jax.envs.adapters import from_model_file
from admrl_jax.envs.contract import check_env
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.sampling import SamplingConfig, rollout
from admrl_jax.training import Setup, init_train_state


class Line(NamedTuple):
    """A point on a line; every part of what it returns can be another."""

    first_obs: Any = (0.0,)
    obs: Any = (0.0,)
    reward: Any = -1.0
    terminated: Any = False
    state: Any = 0.0
    obs_size: Any = 1
    action_size: Any = 1
    horizon: Any = 4

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Nothing to draw."""
        return jnp.zeros(())

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[Any, Any]:
        """Starts at 0."""
        return jnp.zeros(()), jax.tree.map(jnp.asarray, self.first_obs)

    def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[Any, TimeStep]:
        """Returns what it was made with."""
        new = TimeStep(*jax.tree.map(jnp.asarray, (self.obs, self.reward, self.terminated)))
        return jnp.asarray(self.state), new


def line(**parts: Any) -> Line:
    """With arrays in place of numbers."""
    defaults = {"first_obs": np.zeros(1, np.float32), "obs": np.zeros(1, np.float32)}
    env = Line(**(defaults | {"state": np.float32(0)} | parts))
    # `check_env` keeps what it has checked, by hash.
    Line.__hash__ = lambda self: id(self)  # type: ignore[method-assign]
    return env


REFUSED = {
    "dictionary": (
        {"first_obs": {"x": np.zeros(3, np.float32)}},
        r"reset: observation is \{x: float32\[3\]\}",
    ),
    "image": ({"first_obs": np.zeros((4, 4), np.float32)}, r"reset: observation is float32\[4, 4\]"),
    "scalar": ({"first_obs": np.float32(1)}, r"reset: observation is float32\[\]; accepted: float\[1\]$"),
    "whole": (
        {"first_obs": np.zeros(1, np.int32)},
        r"reset: observation is int32\[1\]; accepted: float\[1\]$",
    ),
    "longer": ({"obs": np.zeros(2, np.float32)}, r"step: observation is float32\[2\]; accepted: float\[1\]$"),
    "reward": ({"reward": np.zeros(1)}, r"step: reward is float32\[1\]; accepted: a number or bool\[\]$"),
    "end": ({"terminated": np.zeros(1, bool)}, r"step: terminated is bool\[1\]; accepted: a number or bool"),
    "state": (
        {"state": np.zeros(2, np.float32)},
        r"returns the state float32\[2\]; accepted: .* float32\[\]$",
    ),
    "no motors": ({"action_size": 0}, r"action_size: 0 is not accepted; accepted: a whole number from 1$"),
    "horizon": ({"horizon": 2.5}, r"horizon: 2.5 is not accepted; accepted: a whole number from 1$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_environment_is_refused(name: str) -> None:
    parts, words = REFUSED[name]
    with pytest.raises(ConfigError, match="^env: Line.*" + words) as refusal:
        check_env(line(**parts))
    assert "\n" not in str(refusal.value)


def test_functions_that_fail_are_named() -> None:
    class Broken(Line):
        def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> Any:
            """Fails."""
            return state + jnp.zeros(2) @ jnp.zeros(3)

    with pytest.raises(ConfigError, match=r"^env: Broken\.step fails: TypeError: dot_general"):
        check_env(Broken(np.zeros(1, np.float32), np.zeros(1, np.float32), state=np.float32(0)))


def test_what_cannot_be_hashed_is_refused() -> None:
    @dataclasses.dataclass
    class Listed:
        goals: list[float]

    with pytest.raises(ConfigError, match=r"^env: Listed cannot be hashed .*; accepted: .* frozen dataclass"):
        check_env(Listed([1.0]))  # type: ignore[arg-type]


def test_training_refuses_what_is_no_environment() -> None:
    policy = make_policy(1, 1)
    setup = Setup(line(reward=np.zeros(1)), policy, make_maml_trpo(policy), SamplingConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^env: Line\.step: reward"):
        init_train_state(jax.random.key(0), setup)


@pytest.mark.parametrize("terminated", [1.0, 1, True])
@pytest.mark.parametrize("reward", [-2, np.float64(-2), True])
def test_numbers_of_other_types_are_cast(terminated: Any, reward: Any) -> None:
    env = line(terminated=terminated, reward=reward)
    check_env(env)
    still = Policy(lambda key: (), lambda params, obs: Gaussian(jnp.zeros(1), jnp.zeros(1)))
    taken = rollout(
        (),
        (),
        jax.random.key(0),
        jnp.zeros(()),
        env=env,
        policy=still,
        attack=no_attack(),
        budget=Budget(0.0),
    )
    np.testing.assert_array_equal(taken.mask, [1, 0, 0, 0])
    np.testing.assert_array_equal(taken.reward, [float(reward), 0, 0, 0])
    assert taken.reward.dtype == taken.obs.dtype


def test_bodies_without_motors_are_refused(tmp_path) -> None:
    path = tmp_path / "stone.xml"
    path.write_text("<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>")
    with pytest.raises(ConfigError, match=r"^env: ModelFileEnv\.action_size: 0 is not accepted"):
        from_model_file(
            path, frame_skip=1, sample_task=lambda key: jnp.zeros(()), reward=lambda *args: jnp.zeros(())
        )
