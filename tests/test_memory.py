"""Observations that hold what was done: what they say, and that no attack moves it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_policy

from admrl_jax.attacks.registry import ATTACKS, make_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.config import Config, from_dict, to_dict
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.envs.base import attackable_only, raw_units, spread_tasks
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.envs.memory import ASSUMPTION, RememberingEnv
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.sampling import rollout
from admrl_jax.training import Setup, init_train_state
from admrl_jax.victims import make_victim

ENV = make_env(NavigationConfig(horizon=8, remembers_actions=True))


def test_what_is_remembered_is_where_the_point_is() -> None:
    assert isinstance(ENV, RememberingEnv) and ENV.obs_size == 5 and ENV.attackable == (1, 1, 0, 0, 0)
    wild = Policy(lambda key: (), lambda params, obs: Gaussian(jnp.zeros(2), jnp.log(jnp.full(2, 2.0))))
    taken = rollout(
        (),
        (),
        jax.random.key(0),
        jnp.array([0.4, 0.4]),
        env=ENV,
        policy=wild,
        attack=make_attack("none", make_victim(ENV, wild)),
        budget=Budget(0.0, raw_units(ENV)),
    )
    assert np.any(np.abs(taken.action) > 1) and np.any(np.abs(taken.action) < 1)
    np.testing.assert_allclose(taken.obs[:, 2], np.arange(8) / 8, atol=1e-6)
    # Clipped as the environment does it, so the sum is the position.
    np.testing.assert_allclose(taken.obs[:, 3:], taken.obs[:, :2], atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"none"}))
def test_no_attack_moves_what_is_remembered(name: str) -> None:
    policy = tiny_policy(obs_size=5)
    victim = make_victim(ENV, policy, make_maml_trpo(policy))
    attack = make_attack(name, victim)
    params = attack.init(jax.random.key(1))
    run = functools.partial(
        rollout, env=ENV, policy=policy, attack=attack, budget=Budget(0.5, raw_units(ENV))
    )
    taken = jax.jit(lambda p, q, key: run(p, q, key, jnp.array([0.3, -0.2])))(
        policy.init(jax.random.key(2)), params, jax.random.key(3)
    )
    np.testing.assert_array_equal(taken.perturbed_obs[:, 2:], taken.obs[:, 2:])
    if name not in ("stuck_sensor", "sensor_dropout", "sensor_delay", "black_box"):
        assert np.any(taken.perturbed_obs[:, :2] != taken.obs[:, :2])


def test_units_leave_it_out() -> None:
    setup = Setup(ENV, policy := tiny_policy(obs_size=5), make_maml_trpo(policy), None)  # type: ignore[arg-type]
    state = init_train_state(jax.random.key(0), setup)
    np.testing.assert_array_equal(state.units.scale, [1, 1, 0, 0, 0])
    scaled = attackable_only(ENV, raw_units(ENV)._replace(scale=jnp.full(5, 3.0)))
    np.testing.assert_array_equal(scaled.scale, [3, 3, 0, 0, 0])
    # Without memory everything can be moved.
    np.testing.assert_array_equal(raw_units(make_env("navigation_2d")).scale, [1, 1])


def test_it_is_a_setting_of_every_environment_and_old_configs_are_without() -> None:
    env = make_env(HalfCheetahDirConfig(remembers_actions=True), simulator="mujoco")
    assert env.obs_size == 20 + 1 + 6 and env.simulator.name == "mujoco" and env.assumption == ASSUMPTION
    tasks = spread_tasks(env, jax.random.key(0), 4)
    np.testing.assert_array_equal(tasks, [1, -1, 1, -1])
    config = Config(env=NavigationConfig(remembers_actions=True))
    assert from_dict(to_dict(config)) == config
    old = to_dict(config)
    del old["env"]["remembers_actions"]
    assert from_dict(old) == dataclasses.replace(config, env=NavigationConfig())
