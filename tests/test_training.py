"""The outer step: its parts and metrics, retracing, seeds, opponents, broken simulators, a learning probe."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_no_leaf_is_zero, assert_trees_close, assert_trees_equal

from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.learned.adgan import AdGANConfig, make_adgan_trainer
from admrl_jax.attacks.threat import Units
from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.core.types import TimeStep
from admrl_jax.defences.adgan import train_against
from admrl_jax.defences.fixed import NoiseConfig, no_defence, noise_defence
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo
from admrl_jax.learners.trpo import TRPOConfig
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import (
    Setup,
    TrainState,
    bad_steps,
    collect_step,
    init_train_state,
    learn_step,
    opponent_key,
    opponent_step,
    outer_step,
    step_keys,
)

ENV = Navigation2D(NavigationConfig(horizon=10))
POLICY = make_policy(2, 2, PolicyConfig(hidden_sizes=(8,)))
VICTIM = Victim(POLICY, 2, 2)
TRPO = TRPOConfig(max_kl=0.05, cg_iterations=3, cg_damping=0.1)
"""Few, well-damped conjugate gradient iterations: with the defaults, float32 rounding alone moves a step by
several per cent of its size, which would hide what the comparison of seeds is after."""
LEARNER = make_maml_trpo(POLICY, MAMLTRPOConfig(inner_lr=0.2, trpo=TRPO))
SETUP = Setup(ENV, POLICY, LEARNER, SamplingConfig(num_tasks=20, num_trajectories=20))
SMALL = SETUP._replace(sampling=SamplingConfig(num_tasks=12, num_trajectories=6))
NOISE = noise_defence(NoiseConfig(radius=0.1), VICTIM)
ADGAN = train_against(
    make_adgan_trainer(AdGANConfig(hidden_sizes=(8,), num_epochs=1, num_minibatches=2), VICTIM),
    radius=0.1,
    attack_name="adgan",
)


def initial_state(seed: int | jax.Array = 0) -> TrainState:
    """A fresh policy under noise."""
    return init_train_state(jax.random.key(seed), SETUP, NOISE)


@pytest.fixture(scope="module")
def noise_step():
    """Steps of the method `random`; more than two traces, one state and vmapped seeds, are an error."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2)
    def step(state: TrainState):
        return outer_step(state, setup=SETUP, defence=NOISE)

    return step


def test_a_fresh_state_has_no_weak_types() -> None:
    # A weakly typed leaf comes back strongly typed from the first step, and the second one compiles anew.
    for path, leaf in jax.tree_util.tree_leaves_with_path(init_train_state(jax.random.key(0), SETUP, ADGAN)):
        assert not leaf.aval.weak_type, jax.tree_util.keystr(path)


def test_outer_step_trains_and_reports(noise_step) -> None:
    before = initial_state()
    state, metrics = noise_step(before)
    assert set(metrics) == {
        *("train/pre_return", "train/post_return", "train/env_steps", "train/std"),
        *("train/loss_before", "train/loss_after", "train/kl", "train/accepted", "train/line_search_steps"),
        *("train/gradient_norm", "train/cg_residual", "attack/size", "attack/budget_excess"),
        "train/diverged",
        "train/skipped",
    }
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())
    assert metrics["train/accepted"] == 1 and 0 < metrics["train/kl"] <= TRPO.max_kl
    assert metrics["train/loss_after"] < metrics["train/loss_before"]
    # 20 tasks x 20 episodes x 10 steps, before and after adaptation; hardly any reaches its goal.
    assert 7600 <= metrics["train/env_steps"] <= 8000
    assert metrics["train/post_return"] < 0
    assert metrics["train/diverged"] == 0
    moved = jax.tree.map(lambda a, b: a - b, state.learner.meta_params, before.learner.meta_params)
    assert_no_leaf_is_zero(moved)
    assert state.step == 1
    # Two noises of standard deviation 0.1 have the mean length 0.1 sqrt(pi / 2).
    np.testing.assert_allclose(metrics["attack/size"], 0.1 * (np.pi / 2) ** 0.5, rtol=0.05)
    assert_trees_equal(jax.random.key_data(state.key), jax.random.key_data(before.key))


def test_the_same_state_gives_the_same_bits_and_each_step_other_ones(noise_step) -> None:
    before = initial_state()
    state, metrics = noise_step(before)
    again, again_metrics = noise_step(before)
    assert_trees_equal((state.replace(key=()), metrics), (again.replace(key=()), again_metrics))
    # The key stays, the step's number is folded in: the same policy meets other tasks at another step.
    _, later = noise_step(before.replace(step=before.step + 1))
    assert later["train/post_return"] != metrics["train/post_return"]


def test_vmapped_seeds_are_close_to_single_runs(noise_step) -> None:
    together, metrics = jax.jit(jax.vmap(lambda seed: noise_step(initial_state(seed))))(jnp.arange(2))
    for seed in range(2):
        alone, alone_metrics = noise_step(initial_state(seed))
        # Batched matrix products round differently, and conjugate gradient amplifies that.
        assert_trees_close(
            jax.tree.map(lambda x, s=seed: x[s], together.learner.meta_params),
            alone.learner.meta_params,
            rtol=1e-3,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            metrics["train/post_return"][seed], alone_metrics["train/post_return"], rtol=1e-4
        )


def test_a_few_outer_steps_learn_to_adapt(noise_step) -> None:
    # Ten steps without moving cost 3.8 on average, and so does the policy before adaptation: it cannot know
    # the goal. In units of scale 0 nothing moves. Measured after adaptation: -3.6 at first, -1.75 later.
    state, history = initial_state().replace(units=Units(jnp.zeros(2), jnp.zeros(2))), []
    for _ in range(16):
        state, metrics = noise_step(state)
        assert metrics["attack/size"] == 0
        history.append(metrics)
    post, pre = (np.array([m[f"train/{name}_return"] for m in history]) for name in ("post", "pre"))
    assert post[-4:].mean() > post[0] + 1.2
    assert post[-4:].mean() > pre[-4:].mean() + 1.2


def test_a_step_is_its_three_parts_and_both_sides_learn() -> None:
    # Methods that share a part share its program; each learns from the batch that both have collected.
    before = init_train_state(jax.random.key(0), SMALL, ADGAN)
    after, metrics = jax.jit(functools.partial(outer_step, setup=SMALL, defence=ADGAN))(before)
    batch, measured = jax.jit(functools.partial(collect_step, setup=SMALL, defence=ADGAN))(before)
    learn = jax.jit(functools.partial(learn_step, learner=LEARNER, loss_term=ADGAN.loss_term))
    learner, learned = learn(before.learner, before.key, before.step, batch)
    face = jax.jit(functools.partial(opponent_step, defence=ADGAN))
    opponent, faced = face(
        before.opponent, before.key, before.step, before.units, before.learner.meta_params, batch
    )
    assert_trees_close(after.learner, learner, rtol=1e-3, atol=1e-5)
    assert_trees_close(after.opponent, opponent, rtol=1e-3, atol=1e-5)
    parts = {**measured, **learned, **faced}
    assert set(parts) == set(metrics)
    for name in ("train/post_return", "train/kl", "adversary/hinge_loss", "attack/size"):
        np.testing.assert_allclose(parts[name], metrics[name], rtol=1e-3, atol=1e-5, err_msg=name)
    moved = jax.tree.map(
        lambda a, b: a - b,
        (after.learner.meta_params, after.opponent.generator, after.opponent.discriminator),
        (before.learner.meta_params, before.opponent.generator, before.opponent.discriminator),
    )
    assert_no_leaf_is_zero(moved)
    assert metrics["attack/size"] > 0 and metrics["attack/budget_excess"] == 0
    # No opponent, nothing to learn or report.
    nothing, silent = opponent_step(
        (), before.key, before.step, before.units, before.learner.meta_params, batch, defence=no_defence()
    )
    assert nothing == () and silent == {}


def test_the_learner_starts_the_same_whatever_it_faces() -> None:
    key = jax.random.key(3)
    clean, faced = (init_train_state(key, SETUP, defence) for defence in (None, ADGAN))
    assert_trees_equal(clean.learner, faced.learner)
    assert clean.opponent == ()
    # Fresh opponents read in the units that they are given.
    inputs = Units(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    assert_trees_equal(init_train_state(key, SETUP, ADGAN, inputs).opponent.inputs, inputs)


def test_no_two_random_things_share_a_key() -> None:
    key = jax.random.key(0)
    found = [k for step in range(3) for k in step_keys(key, jnp.int32(step))]
    found += [opponent_key(key, number) for number in range(3)]
    assert len({tuple(np.asarray(jax.random.key_data(k))) for k in found}) == len(found)


class Breaking(NamedTuple):
    """Pays for small actions. The task is the step, from 1, at which the simulator breaks: 1, 3 or never."""

    obs_size: int = 2
    action_size: int = 2
    horizon: int = 6

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Any of the three."""
        return jax.random.choice(key, jnp.array([1.0, 3.0, 99.0]))

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Starts at a random place, counting steps from 0."""
        place = jax.random.normal(key, (2,))
        return jnp.append(place, 0.0), place

    def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[jax.Array, TimeStep]:
        """Moves by the action; a broken simulator returns NaN in its state, observation and reward."""
        state = state + jnp.append(0.1 * action, 1.0)
        state = jnp.where(state[2] == task, jnp.nan, state)
        reward = -jnp.sum(jnp.square(action)) + 0.0 * state[0]
        return state, TimeStep(state[:2], reward, jnp.array(False))


def test_diverged_episodes_are_counted_and_harm_nothing() -> None:
    before = initial_state()
    setup = SMALL._replace(env=Breaking())
    after, metrics = jax.jit(functools.partial(outer_step, setup=setup, defence=NOISE))(before)
    # An episode diverges once: that makes 6 before and 6 after adaptation in each broken task.
    broken, rest = divmod(int(metrics["train/diverged"]), 2 * 6)
    assert rest == 0 and 2 <= broken < 12
    # Whole episodes last 6 steps, those that break at step 3 last 2, those that break at once none.
    late, rest = divmod(int(metrics["train/env_steps"]) - 2 * 6 * (12 - broken) * 6, 2 * 6 * 2)
    assert rest == 0 and 1 <= late < broken
    for path, leaf in jax.tree_util.tree_leaves_with_path((after.learner, metrics)):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
    assert metrics["train/accepted"] == 1
    moved = jax.tree.map(lambda a, b: a - b, after.learner.meta_params, before.learner.meta_params)
    assert_no_leaf_is_zero(moved)


def test_bad_steps_are_those_in_which_nothing_could_be_learned() -> None:
    metrics = {
        "train/env_steps": jnp.array([5.0, 0.0, 5.0, 5.0, 5.0]),
        "train/skipped": jnp.array([0.0, 0.0, 1.0, 0.8, 0.0]),
        "adversary/skipped": jnp.array([0.5, 0.0, 0.0, 0.0, 1.0]),
    }
    np.testing.assert_array_equal(bad_steps(metrics), [False, True, True, False, True])
    # Clean training has no opponent, an attacker's training no learner.
    del metrics["adversary/skipped"]
    np.testing.assert_array_equal(bad_steps(metrics), [False, True, True, False, False])
    del metrics["train/skipped"]
    np.testing.assert_array_equal(bad_steps(metrics), [False, True, False, False, False])
