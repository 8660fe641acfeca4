"""Episodes: masks, falls and broken ends, log densities, budgets, true dynamics, reproducible randomness."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, assert_trees_equal, random_experience, random_like, tiny_policy

from admrl_jax.attacks.base import Attack, Victim
from admrl_jax.attacks.learned.adgan import AdGANConfig
from admrl_jax.attacks.noise import no_attack
from admrl_jax.attacks.registry import make_attack
from admrl_jax.attacks.threat import Budget
from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import TimeStep
from admrl_jax.envs.ant import AntVelConfig
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.envs.physics import PhysicsConfig
from admrl_jax.envs.random_dynamics import HopperParamsConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.sampling import (
    SamplingConfig,
    collect,
    collect_meta_batch,
    episode_returns,
    expose,
    rollout,
    score_tasks,
)


class Counter(NamedTuple):
    """Counts steps; ends at step `task[0]`, breaks at step `task[1]`. Step t (from 1) pays t."""

    obs_size: int = 1
    action_size: int = 1
    horizon: int = 6

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Never ends, never breaks."""
        return jnp.array([99.0, 99.0])

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Starts at 0."""
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[jax.Array, TimeStep]:
        """Adds one."""
        count = state + 1
        obs = jnp.where(count == task[1], jnp.nan, count)[None]
        reward = jnp.where(count == task[1] + 100, jnp.inf, count)
        return count, TimeStep(obs, reward, count == task[0])


NAVIGATION = Navigation2D(NavigationConfig(horizon=8))
POLICY = tiny_policy()
WALK = Policy(lambda key: (), lambda params, obs: Gaussian(jnp.zeros(NAVIGATION.action_size), jnp.zeros(2)))
"""A policy that ignores what it sees."""
STILL = Policy(lambda key: (), lambda params, obs: Gaussian(jnp.zeros(1), jnp.zeros(1)))


@functools.cache
def counter_rollout():
    """One compiled episode of the counter."""
    run = functools.partial(rollout, env=Counter(), policy=STILL, attack=no_attack(), budget=Budget(0.0))
    return jax.jit(lambda task: run((), (), jax.random.key(0), task))


def test_steps_up_to_termination_count_and_nothing_after() -> None:
    trajectory = counter_rollout()(jnp.array([3.0, 99.0]))
    # The step that terminates is part of the episode; the state then stays where it was.
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.reward, [1, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.obs[:, 0], [0, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(trajectory.perturbed_obs, trajectory.obs)
    np.testing.assert_array_equal(trajectory.diverged, 0)
    assert episode_returns(trajectory) == 6


def test_full_episodes_are_not_masked() -> None:
    trajectory = counter_rollout()(jnp.array([99.0, 99.0]))
    np.testing.assert_array_equal(trajectory.mask, 1)
    np.testing.assert_array_equal(trajectory.diverged, 0)
    np.testing.assert_array_equal(trajectory.reward, [1, 2, 3, 4, 5, 6])
    assert trajectory.obs.shape == (6, 1) and trajectory.action.shape == (6, 1)


@pytest.mark.parametrize("task", [[99.0, 4.0], [99.0, -96.0]], ids=["observation", "reward"])
def test_a_broken_simulator_ends_the_episode(task: list[float]) -> None:
    # Something not finite appears at step 4, so step 4 is not valid and pays nothing; it alone has diverged.
    trajectory = counter_rollout()(jnp.array(task))
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.diverged, [0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(trajectory.reward, [1, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.obs[:, 0], [0, 1, 2, 3, 3, 3])
    jax.tree.map(lambda x: np.testing.assert_array_equal(np.isfinite(x), True), trajectory)


def test_an_episode_that_has_ended_cannot_diverge() -> None:
    # It ends at step 3; the next step, which would break, no longer counts.
    trajectory = counter_rollout()(jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.diverged, 0)
    # A step that ends the episode and breaks has diverged.
    trajectory = counter_rollout()(jnp.array([3.0, 3.0]))
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.diverged, [0, 0, 1, 0, 0, 0])


FALLS: dict[str, tuple[PhysicsConfig, Callable[[jax.Array], jax.Array]]] = {
    # A robot that may not sink below 0.65 m soon does; whether it has fallen can be read off the observation.
    "ant_vel": (AntVelConfig(min_height=0.65, horizon=20), lambda obs: (obs[2] < 0.65) | (obs[2] > 1.0)),
    "hopper_params": (HopperParamsConfig(horizon=20), lambda obs: (obs[0] <= 0.7) | (jnp.abs(obs[1]) >= 0.2)),
}


@pytest.mark.parametrize("name", FALLS)
def test_a_fall_ends_the_episode(name: str) -> None:
    config, fallen = FALLS[name]
    env: Any = make_env(config, simulator="mujoco", num_threads=1)

    # Wild actions; once it has fallen, the policy does as its parameter says.
    def act(params: jax.Array, obs: jax.Array) -> Gaussian:
        mean = jnp.where(fallen(obs), params, 0.0)
        return Gaussian(jnp.full(env.action_size, mean), jnp.full(env.action_size, 2.0))

    policy = Policy(lambda key: jnp.zeros(()), act)
    task = env.sample_task(jax.random.key(1))
    run = functools.partial(rollout, env=env, policy=policy, attack=no_attack(), budget=Budget(0.0))
    episode = jax.jit(lambda params: run(params, (), jax.random.key(2), task))
    trajectory, other = episode(0.0), episode(1000.0)

    # The same actions one by one, without `rollout`.
    step = jax.jit(lambda state, action: env.step(state, action, task))
    state, obs = env.reset(jax.random.split(jax.random.key(2), 3)[0], task)
    rewards = []
    for t in range(20):
        np.testing.assert_allclose(trajectory.obs[t], obs, atol=1e-5)
        state, new = step(state, trajectory.action[t])
        obs = new.obs
        rewards.append(float(new.reward))
        if new.terminated:
            break
    length = len(rewards)
    assert 1 < length < 19, "it must fall on the way"
    assert fallen(obs)
    # The step of the fall is part of the episode; nothing after it is.
    np.testing.assert_array_equal(trajectory.mask, np.arange(20) < length)
    np.testing.assert_array_equal(trajectory.diverged, 0)
    np.testing.assert_allclose(trajectory.reward[:length], rewards, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(trajectory.reward[length:], 0)
    np.testing.assert_allclose(trajectory.obs[length], obs, atol=1e-5)
    for t in range(length, 20):
        np.testing.assert_array_equal(trajectory.obs[t], trajectory.obs[length])
    np.testing.assert_allclose(episode_returns(trajectory), np.sum(rewards), rtol=1e-4, atol=1e-3)
    # What the policy does on the floor changes nothing but the record of its actions.
    np.testing.assert_array_equal(trajectory.action[:length], other.action[:length])
    assert np.all(trajectory.action[length:] != other.action[length:])
    assert_trees_equal(trajectory._replace(action=()), other._replace(action=()))


VICTIM = Victim(POLICY, 2, 2)
ATTACKS: dict[str, Attack] = {
    name: make_attack(name, VICTIM, AdGANConfig(hidden_sizes=(4,)) if name == "adgan" else None)
    for name in ("none", "gaussian", "fgsm", "adgan")
}


@functools.cache
def navigator(name: str, policy: Policy = POLICY):
    """Five compiled episodes of 2D navigation under one attack."""
    attack = ATTACKS[name]
    run = functools.partial(
        collect,
        num_trajectories=5,
        env=NAVIGATION,
        policy=policy,
        attack=attack,
        budget=Budget(0.3),
        is_query=True,
    )
    attack_params = random_like(attack.init, 1, size=2.0)
    params = random_like(policy.init, 2)
    return jax.jit(lambda key: run(params, attack_params, key, jnp.array([0.4, -0.3])))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_budget_holds_in_every_rollout(name: str) -> None:
    trajectory = navigator(name)(jax.random.key(0))
    measured = ATTACKS[name].threat.measure(trajectory.obs, trajectory.perturbed_obs, Budget(0.3))
    np.testing.assert_array_equal(measured.excess, 0)
    assert np.any(trajectory.obs != trajectory.perturbed_obs) == (name != "none")


@pytest.mark.parametrize("name", ["gaussian", "adgan"])
def test_dynamics_use_the_true_state(name: str) -> None:
    clean, attacked = (navigator(n, WALK)(jax.random.key(0)) for n in ("none", name))
    assert_trees_equal(clean._replace(perturbed_obs=()), attacked._replace(perturbed_obs=()))
    # And a policy that looks is led elsewhere.
    assert np.any(navigator("none")(jax.random.key(0)).obs != navigator(name)(jax.random.key(0)).obs)


def test_the_same_key_gives_the_same_bits() -> None:
    run = navigator("gaussian")
    assert_trees_equal(run(jax.random.key(0)), run(jax.random.key(0)))
    other = run(jax.random.key(1))
    assert np.all(run(jax.random.key(0)).action != other.action)
    # Episodes of one call differ from each other, too.
    assert len(np.unique(other.action[:, 0, 0])) == 5


def test_collect_equals_a_loop_over_episodes() -> None:
    key, task = jax.random.key(0), jnp.array([0.4, -0.3])
    together = navigator("fgsm")(key)
    one = jax.jit(
        functools.partial(rollout, env=NAVIGATION, policy=POLICY, attack=ATTACKS["fgsm"], budget=Budget(0.3))
    )
    params = random_like(POLICY.init, 2)
    alone = [one(params, (), k, task) for k in jax.random.split(key, 5)]
    # Batched and single matrix products round differently.
    assert_trees_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-4, atol=1e-5)


def test_horizon_can_be_shortened() -> None:
    trajectory = jax.eval_shape(
        functools.partial(
            rollout, env=NAVIGATION, policy=POLICY, attack=ATTACKS["none"], budget=Budget(0.0), horizon=3
        ),
        random_like(POLICY.init, 2),
        (),
        jax.random.key(0),
        jnp.zeros(2),
    )
    assert trajectory.reward.shape == (3,)


@pytest.mark.parametrize("name", ATTACKS)
def test_recorded_log_densities_are_those_of_the_policy_at_what_it_saw(name: str) -> None:
    taken = navigator(name)(jax.random.key(2))
    dist = POLICY.apply(random_like(POLICY.init, 2), taken.perturbed_obs)
    np.testing.assert_allclose(taken.log_prob, gaussian.log_prob(dist, taken.action), rtol=1e-4, atol=1e-5)
    assert np.std(taken.log_prob) > 0.1


def test_a_meta_batch_records_each_policy_that_collected_it() -> None:
    # Support by the policy so far, query by the adapted one; each task under its own.
    learner = make_maml_trpo(POLICY)
    config = SamplingConfig(num_trajectories=3, num_adapt_steps=2)
    meta_params = random_like(POLICY.init, 2)
    tasks = jnp.array([[0.4, -0.3], [-0.5, 0.1]])

    @jax.jit
    def run(key: jax.Array):
        batch = collect_meta_batch(
            meta_params,
            key,
            tasks,
            expose(ATTACKS["gaussian"], (), Budget(0.2), num_tasks=2),
            env=NAVIGATION,
            policy=POLICY,
            learner=learner,
            config=config,
            axis=TaskAxis(1),
        )
        first = jax.tree.map(lambda x: x[:, :1], batch.support)
        once = jax.vmap(lambda support: learner.adapt(meta_params, support))(first)
        twice = jax.vmap(lambda support: learner.adapt(meta_params, support))(batch.support)
        return batch, once, twice

    batch, once, twice = run(jax.random.key(0))
    assert_trees_close(batch.adapted_params, twice, rtol=1e-4, atol=1e-5)
    before = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), meta_params)
    support, query = batch.support.trajectory, batch.query.trajectory
    for params, taken in (
        (before, jax.tree.map(lambda x: x[:, 0], support)),
        (once, jax.tree.map(lambda x: x[:, 1], support)),
        (twice, query),
    ):
        dist = jax.vmap(POLICY.apply)(params, taken.perturbed_obs)
        dist = dist._replace(log_std=dist.log_std[:, None, None])
        expected = gaussian.log_prob(dist, taken.action)
        np.testing.assert_allclose(taken.log_prob, expected, rtol=1e-3, atol=1e-4)


def test_actions_before_and_after_adaptation_are_scored_by_discounts_of_their_own() -> None:
    episodes = jax.tree.map(lambda x: x[None], random_experience(5, (4, 6)).trajectory)

    @functools.partial(jax.jit, static_argnums=0)
    def score(config: SamplingConfig, is_query: bool) -> jax.Array:
        return score_tasks(episodes, config, POLICY, is_query).advantage

    both = SamplingConfig(discount=0.9, support_discount=0.4)
    assert_trees_equal(score(both, True), score(SamplingConfig(discount=0.9), True))
    before = score(both, False)
    np.testing.assert_allclose(before, score(SamplingConfig(discount=0.4), False), rtol=1e-5, atol=1e-6)
    assert np.abs(before - score(both, True)).max() > 0.1
