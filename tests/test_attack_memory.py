"""What an attack carries from step to step of an episode, and the stuck sensor that needs it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.once import once
from admrl_jax.attacks.stuck_sensor import StuckSensorConfig, stuck_sensor
from admrl_jax.attacks.threat import Budget, make_threat
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Trajectory
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.sampling import collect

HORIZON = 40
ENV = Navigation2D(NavigationConfig(horizon=HORIZON, goal_radius=0.1))
WALK = Policy(lambda key: (), lambda params, obs: Gaussian(jnp.zeros(2), jnp.zeros(2)))
"""Moves at random and ignores what it sees, so every attack meets the same episodes."""
FAR, NEAR = jnp.array([9.0, 9.0]), jnp.array([0.25, 0.25])
"""Goals that the walk does not reach, and reaches now and then."""
FREE = make_threat(label="", norm="none", strength="", knowledge="none")


def count(params, memory, key, obs, scene, budget):
    """Adds the number of the step, and remembers the next."""
    return obs + memory, memory + 1


COUNTER = Attack(lambda key: (), lambda key: jnp.zeros(()), count, FREE)


@functools.cache
def collector(attack: Attack):
    """Eight compiled episodes under an attack."""
    run = functools.partial(collect, num_trajectories=8, env=ENV, policy=WALK, attack=attack, is_query=True)
    return jax.jit(lambda goal, radius: run((), (), jax.random.key(0), goal, budget=Budget(radius)))


def episodes(attack: Attack, *, goal: jax.Array = FAR, radius: float = 1e3) -> Trajectory:
    """Eight episodes under an attack of that radius."""
    return collector(attack)(goal, jnp.float32(radius))


def test_memory_goes_from_step_to_step_and_starts_anew_with_every_episode() -> None:
    taken = episodes(COUNTER)
    assert np.all(taken.mask == 1)
    seen = taken.perturbed_obs - taken.obs
    np.testing.assert_allclose(seen, np.broadcast_to(np.arange(HORIZON)[:, None], seen.shape), atol=1e-5)


def test_an_attack_on_one_step_goes_on_unseen_on_the_others() -> None:
    taken = episodes(once(COUNTER._replace(record=lambda memory: memory), HORIZON))
    shift = np.asarray(taken.perturbed_obs - taken.obs)[..., 0]
    np.testing.assert_allclose(taken.attack_record, np.broadcast_to(np.arange(1, HORIZON + 1), shift.shape))
    # Where it acts, it moves by the number of the step: what it carries has counted all of them.
    rows, steps = np.nonzero(shift > 0.5)
    np.testing.assert_allclose(shift[rows, steps], steps, atol=1e-5)
    assert len(set(rows)) == len(rows) >= 7, "one step of an episode (its first moves by 0)"
    assert len(set(steps)) > 4, "each its own"


def test_every_step_is_attacked_as_often() -> None:
    attack = once(COUNTER._replace(reset=lambda key: jnp.float32(1.0)), 4)
    keys = jax.random.split(jax.random.key(3), 4000)
    drawn = np.bincount(jax.vmap(lambda key: attack.reset(key)[1])(keys), minlength=4)
    assert drawn.size == 4 and np.all(np.abs(drawn - 1000) < 4 * np.sqrt(750))


def test_memory_stands_still_once_an_episode_has_ended() -> None:
    taken = episodes(COUNTER._replace(reset=lambda key: jnp.full((), 5.0)), goal=NEAR)
    length = np.asarray(taken.mask.sum(-1), int)
    assert np.any(length < HORIZON) and np.all(length > 1)
    for seen, steps in zip(np.asarray(taken.perturbed_obs - taken.obs), length, strict=True):
        # The step that ends an episode is part of it and hence counted.
        np.testing.assert_allclose(seen[:, 0], 5 + np.minimum(np.arange(HORIZON), steps), atol=1e-5)


def test_every_episode_is_reset_with_a_key_of_its_own() -> None:
    hold = lambda params, memory, key, obs, scene, budget: (obs + memory, memory)  # noqa: E731
    taken = episodes(Attack(lambda key: (), jax.random.uniform, hold, FREE))
    shift = np.asarray(taken.perturbed_obs - taken.obs)[..., 0]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-6)
    assert len(np.unique(shift[:, 0].round(5))) == 8


def stuck_steps(taken: Trajectory) -> np.ndarray:
    """Whether the sensor showed something else, `[K, H]`; the walk never stands still."""
    return np.any(np.asarray(taken.perturbed_obs != taken.obs), axis=-1)


def test_a_stuck_sensor_repeats_what_it_last_showed() -> None:
    duration = 3
    taken = episodes(stuck_sensor(2, StuckSensorConfig(probability=0.3, duration=duration)))
    stuck, freezes = stuck_steps(taken), 0
    assert not stuck[:, 0].any()
    for episode in range(8):
        start = None
        for step in range(HORIZON):
            if stuck[episode, step]:
                start = step if start is None else start
                # The last observation that it showed while it worked.
                shown, held = taken.perturbed_obs[episode, step], taken.obs[episode, start - 1]
                np.testing.assert_allclose(shown, held, atol=1e-6)
            elif start is not None:
                assert step - start == duration
                start, freezes = None, freezes + 1
    # It works for about 1 / 0.3 steps between freezes of 3: about 6 of them in 40 steps.
    assert 20 <= freezes <= 70


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_sensor_that_never_and_one_that_always_freezes(probability: float) -> None:
    taken = episodes(stuck_sensor(2, StuckSensorConfig(probability=probability, duration=2)))
    if probability == 0:
        assert_trees_equal(taken.perturbed_obs, taken.obs)
    else:
        # It works for one step, then is stuck for two.
        stuck = stuck_steps(taken)
        np.testing.assert_array_equal(stuck, np.broadcast_to(np.arange(HORIZON) % 3 != 0, stuck.shape))


def test_a_stuck_sensor_keeps_its_budget() -> None:
    attack = stuck_sensor(2, StuckSensorConfig(probability=0.5, duration=5))
    free, held = episodes(attack), episodes(attack, radius=0.1)
    # What the sensor remembers does not depend on how far it may be off.
    np.testing.assert_array_equal(stuck_steps(held), stuck_steps(free))
    measured = attack.threat.measure(held.obs, held.perturbed_obs, Budget(0.1))
    np.testing.assert_array_equal(measured.excess, 0)
    distance = np.linalg.norm(free.perturbed_obs - free.obs, axis=-1)
    # As far towards the old observation as the ball allows.
    np.testing.assert_allclose(measured.size, np.minimum(distance, 0.1), atol=1e-5)
    assert np.any(distance > 0.1)
    assert_trees_equal(episodes(attack, radius=0.0).perturbed_obs, free.obs)
