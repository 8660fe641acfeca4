"""Training against a population of fits: who attacks which task, how hard, and who starts afresh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_policy
from jax.sharding import PartitionSpec

from admrl_jax.attacks.base import Scene
from admrl_jax.attacks.generator import make_generator
from admrl_jax.attacks.learned.counter_action import (
    CounterActionConfig,
    Fit,
    agreement,
    least_alike,
    make_counter_action,
)
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, Trajectory
from admrl_jax.defences.base import Defence
from admrl_jax.defences.population import PopulationConfig, population_defence
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.runs.devices import TASKS, Devices
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import Setup, collect_step, init_train_state, outer_step

POLICY = tiny_policy()
SETUP = Setup(
    Navigation2D(NavigationConfig(horizon=5)),
    POLICY,
    make_maml_trpo(POLICY),
    SamplingConfig(num_tasks=8, num_trajectories=3),
)
FIT = CounterActionConfig(
    hidden_sizes=(4,),
    through="adaptation",
    under_attack=True,
    target="other_task",
    knows_task=True,
    num_steps=2,
    num_samples=8,
)
UNITS = Units(jnp.zeros(2), jnp.ones(2))


def make(**settings) -> Defence:
    """Three generators on half of the tasks."""
    defaults = {"radius": 0.4, "task_share": 0.5, "num_generators": 3, "fit": FIT}
    return population_defence(PopulationConfig(**(defaults | settings)), SETUP.victim)


@functools.cache
def stepped():
    """A compiled outer step of the defence."""
    return jax.jit(functools.partial(outer_step, setup=SETUP, defence=make()))


def test_every_attacked_task_has_its_generator_and_they_change_places() -> None:
    defence = make()
    state = defence.init(jax.random.key(0), UNITS)
    members = jax.tree.map(np.asarray, state.members.params.network)
    for step in (0, 1, 5):
        exposure = defence.expose(state, jnp.int32(step), UNITS, 8)
        assert exposure.per_task
        np.testing.assert_allclose(exposure.query.radius, [0.4] * 4 + [0.0] * 4)
        for leaf, all_of_them in zip(
            jax.tree.leaves(exposure.params.generator.network), jax.tree.leaves(members), strict=True
        ):
            np.testing.assert_array_equal(leaf, all_of_them[(np.arange(8) + step + step // 4) % 3])


def test_radii_are_dealt_out_and_ramped() -> None:
    defence = make(all_radii=True, ramp_steps=4, task_share=1.0)
    state = defence.init(jax.random.key(0), UNITS)
    levels = 0.4 * np.arange(1, 9) / 8
    for step, share in ((0, 0.25), (1, 0.5), (9, 1.0)):
        radius = defence.expose(state, jnp.int32(step), UNITS, 8).support.radius
        np.testing.assert_allclose(np.sort(radius), share * levels, rtol=1e-6)
    first, second = (defence.expose(state, jnp.int32(step), UNITS, 8).support.radius for step in (8, 9))
    assert np.all(first != second)


@pytest.mark.parametrize("num_tasks", [6, 8, 20])
def test_every_generator_meets_every_radius(num_tasks: int) -> None:
    defence = make(all_radii=True, task_share=0.7, num_generators=4)
    state = defence.init(jax.random.key(0), UNITS)
    first = np.asarray(jax.tree.leaves(state.members.params.network)[1])
    met = set()
    for step in range(8 * num_tasks):
        exposure = defence.expose(state, jnp.int32(step), UNITS, num_tasks)
        dealt = np.asarray(jax.tree.leaves(exposure.params.generator.network)[1])
        who = [next(i for i in range(4) if np.array_equal(one, first[i])) for one in dealt]
        met |= {
            pair for pair in zip(who, np.round(exposure.query.radius, 5).tolist(), strict=True) if pair[1]
        }
    assert len(met) == 4 * round(0.7 * num_tasks)


@pytest.mark.parametrize("num_tasks", [20, 40, 110])
def test_every_radius_is_dealt_out_whatever_the_number_of_tasks(num_tasks: int) -> None:
    defence = make(all_radii=True, task_share=0.7)
    state, attacked = defence.init(jax.random.key(0), UNITS), round(0.7 * num_tasks)
    radius = np.asarray(defence.expose(state, jnp.int32(3), UNITS, num_tasks).query.radius)
    levels = 0.4 * np.arange(1, attacked + 1) / attacked
    np.testing.assert_allclose(np.sort(radius[:attacked]), levels, rtol=1e-6)
    np.testing.assert_array_equal(radius[attacked:], 0)


def test_some_attacked_tasks_meet_noise_of_the_same_size() -> None:
    defence = make(noise_share=0.5)
    state = init_train_state(jax.random.key(0), SETUP, defence)
    exposure = defence.expose(state.opponent, jnp.int32(0), UNITS, 8)
    np.testing.assert_array_equal(exposure.params.is_noise[:4], [False, False, True, True])
    batch, metrics = jax.jit(functools.partial(collect_step, setup=SETUP, defence=defence))(state)
    taken = batch.query.trajectory
    moved = taken.perturbed_obs - taken.obs
    np.testing.assert_allclose(np.linalg.norm(moved[2:4], axis=-1), 0.4, rtol=1e-4)
    # A generator's shifts of neighbouring steps agree, noise does not.
    directions = moved[:4] / np.linalg.norm(moved[:4], axis=-1, keepdims=True)
    agree = (directions[:, :, 1:] * directions[:, :, :-1]).sum(axis=-1).mean(axis=(1, 2))
    assert agree[:2].min() > 0.8 > 0.6 > np.abs(agree[2:]).max()
    assert metrics["attack/budget_excess"] == 0


def test_devices_together_hold_what_one_holds() -> None:
    defence, devices = make(), Devices(4)
    state = defence.init(jax.random.key(0), UNITS)

    def exposed(step: jax.Array, axis: TaskAxis):
        exposure = defence.expose(state, step, UNITS, 8, axis)
        return exposure.query.radius, exposure.params

    spread = devices.spread(
        functools.partial(exposed, axis=devices.axis), PartitionSpec(), PartitionSpec(TASKS)
    )
    together, alone = jax.jit(spread)(jnp.int32(1)), exposed(jnp.int32(1), TaskAxis())
    jax.tree.map(np.testing.assert_array_equal, together, alone)


def test_episodes_are_moved_by_the_generator_of_their_task() -> None:
    defence = make()
    state = init_train_state(jax.random.key(0), SETUP, defence).replace(step=jnp.int32(1))
    batch, metrics = jax.jit(functools.partial(collect_step, setup=SETUP, defence=defence))(state)
    generator = make_generator(SETUP.victim, (4,), knows_task=True)
    for taken, is_query in ((batch.support.trajectory, False), (batch.query.trajectory, True)):
        for number in range(8):
            mine = jax.tree.map(lambda x, i=(number + 1) % 3: x[i], state.opponent.members.params)
            obs, seen = (
                x[number, 0] if not is_query else x[number] for x in (taken.obs, taken.perturbed_obs)
            )
            radius = 0.4 if number < 4 else 0.0
            scene = Scene((), batch.tasks[number], is_query)
            moved = generator.perturb(mine, obs, scene, Budget(jnp.float32(radius), UNITS))
            np.testing.assert_allclose(seen, moved, atol=1e-6)
    assert metrics["attack/budget_excess"] == 0 and metrics["attack/size"] > 0


def test_all_of_them_learn_from_every_batch() -> None:
    state = init_train_state(jax.random.key(0), SETUP, make())
    before = state.opponent.members.params.network
    state, metrics = stepped()(state)
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(state.opponent.members.params.network), strict=True
    ):
        moved = np.abs(new - old).reshape(3, -1).max(axis=1)
        assert np.all(moved > 0) and len(set(moved)) == 3
    assert int(state.opponent.updates) == 1 and metrics["adversary/skipped"] == 0
    assert np.isfinite(metrics["adversary/agreement"])


@pytest.mark.parametrize(("updates", "fresh"), [(0, None), (1, None), (2, 1), (4, 2), (6, 0)])
def test_the_oldest_starts_afresh_when_it_is_due(updates: int, fresh: int | None) -> None:
    defence = make(renew_every=2)
    state = init_train_state(jax.random.key(0), SETUP, defence)
    # Marked, so that what started afresh is seen.
    marked = jax.tree.map(lambda x: x + 100.0, state.opponent.members.params.network)
    params = state.opponent.members.params._replace(network=marked)
    opponent = state.opponent._replace(
        members=state.opponent.members._replace(params=params), updates=jnp.int32(updates)
    )
    batch, _ = collect_step(state, setup=SETUP, defence=defence)
    assert defence.update is not None
    new, _ = defence.update(opponent, jax.random.key(1), state.learner.meta_params, batch, UNITS)
    bias = new.members.params.network["params"]["Dense_0"]["bias"]
    is_fresh = np.abs(np.asarray(bias)).max(axis=1) < 50
    np.testing.assert_array_equal(np.flatnonzero(is_fresh), [] if fresh is None else [fresh])


def test_one_task_has_no_other() -> None:
    setup = SETUP._replace(sampling=SamplingConfig(num_tasks=1, num_trajectories=3))
    defence = make()
    state = init_train_state(jax.random.key(0), setup, defence)
    with pytest.raises(ConfigError, match="target: 'other_task' is not accepted with one task; accepted: 2"):
        jax.eval_shape(functools.partial(outer_step, setup=setup, defence=defence), state)


def test_the_policy_of_the_task_that_differs_most_is_chosen() -> None:
    policy = Policy(lambda key: (), lambda params, obs: Gaussian(params * obs, jnp.zeros(2)))
    victim = SETUP.victim._replace(policy=policy)
    fitted = Fit(FIT, victim, make_generator(victim, (4,)), jnp.float32(10.0), make_optimizer())
    obs = jax.random.normal(jax.random.key(0), (3, 5, 2))
    zeros = jnp.zeros((3, 5))
    taken = Trajectory(obs, obs, obs, zeros, zeros, jnp.ones((3, 5)), zeros)
    query = Experience(taken, zeros)
    everyone = jnp.array([[1.0, 1.0], [-0.5, 0.5], [-1.0, -2.0], [0.1, 0.1]])
    np.testing.assert_array_equal(least_alike(fitted, everyone, jnp.ones(2), query), [-1.0, -2.0])
    # Away from the one and towards the other.
    same = agreement(fitted, jnp.ones(2), jnp.ones(2), query, lambda x: x)
    both = agreement(fitted, jnp.ones(2), jnp.ones(2), query, lambda x: x, instead=-jnp.ones(2))
    np.testing.assert_allclose(same, jnp.mean(jnp.sum(obs**2, axis=-1)), rtol=1e-6)
    np.testing.assert_allclose(both, 2 * same, rtol=1e-6)


def make_optimizer():
    """Not used by what is tested."""
    import optax

    return optax.adam(1e-3)


def test_an_attack_through_other_tasks_needs_no_more_than_one() -> None:
    setup = SETUP._replace(sampling=SamplingConfig(num_tasks=1, num_trajectories=3))
    trainer = make_counter_action(FIT, setup.victim)
    assert not trainer.is_offline and "other_task" in trainer.name
