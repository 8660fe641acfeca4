"""The outer step: metrics, chunks, retracing, seeds, frozen policies, broken simulators, a learning probe."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_no_leaf_is_zero, assert_trees_close, assert_trees_equal

from admrl_jax import adgan, attacks, training
from admrl_jax.attacks import Budget
from admrl_jax.config import (
    AdversaryConfig,
    MAMLConfig,
    TrainConfig,
    TRPOConfig,
)
from admrl_jax.env_config import NavigationConfig
from admrl_jax.envs import Navigation2D
from admrl_jax.networks import make_policy
from admrl_jax.types import TimeStep

ENV = Navigation2D(NavigationConfig(horizon=10))
POLICY = make_policy(2, 2, hidden_sizes=(8,))
CONFIG = TrainConfig(
    maml=MAMLConfig(num_tasks=20, num_trajectories=20, inner_lr=0.2, task_block=20),
    trpo=TRPOConfig(max_kl=0.05, cg_iterations=3, cg_damping=0.1),
    adversary=AdversaryConfig(hidden_sizes=(8,), num_minibatches=2),
)
"""Few, well-damped conjugate gradient iterations: with the defaults, float32 rounding alone moves a step by
several per cent of its size, which would hide what the comparison of seeds is after."""

ADGAN = adgan.make_adgan(2, CONFIG.adversary)


def initial_state(seed: int | jax.Array = 0, radius: float = 0.1) -> training.TrainState:
    """A fresh policy and a budget."""
    state = training.init(jax.random.key(seed), policy=POLICY, obs_size=2)
    return state.replace(budget=Budget(jnp.float32(radius), jnp.zeros(2), jnp.ones(2)))


def make_chunk(step_fn: Any):
    """`train_chunk`, compiled; more than three traces (two lengths and one vmapped call) are an error."""
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnames="num_steps")
    @chex.assert_max_traces(n=3)
    def chunk(state: training.TrainState, num_steps: int):
        return training.train_chunk(state, num_steps=num_steps, step_fn=step_fn)

    return chunk


@pytest.fixture(scope="module")
def noise_chunk():
    """Chunks of the method `random`: traced for 1 step, for 4 steps, and for vmapped seeds."""
    step = functools.partial(
        training.outer_step, env=ENV, policy=POLICY, attack=attacks.gaussian_noise(), config=CONFIG
    )
    return make_chunk(step)


def test_chunks_do_not_change_a_bit_and_do_not_retrace(noise_chunk) -> None:
    whole, whole_metrics = noise_chunk(initial_state(), num_steps=4)
    state, parts = initial_state(), []
    for _ in range(4):
        state, metrics = noise_chunk(state, num_steps=1)
        parts.append(metrics)
    assert_trees_equal(whole.replace(key=()), state.replace(key=()))
    assert_trees_equal(whole_metrics, jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    assert whole.step == 4
    assert all(value.shape == (4,) for value in whole_metrics.values())


def test_a_fresh_state_has_no_weak_types() -> None:
    # A weakly typed leaf comes back strongly typed from the first chunk, and the second one compiles anew.
    state = initial_state().replace(
        adversary=adgan.init_adversary(jax.random.key(1), ADGAN, CONFIG.adversary)
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert not leaf.aval.weak_type, jax.tree_util.keystr(path)


def test_outer_step_trains_and_reports(noise_chunk) -> None:
    before = initial_state()
    state, metrics = noise_chunk(before, num_steps=1)
    assert set(metrics) == {
        *("train/pre_return", "train/post_return", "train/env_steps", "train/std"),
        *("train/loss_before", "train/loss_after", "train/kl", "train/accepted", "train/line_search_steps"),
        *("train/gradient_norm", "train/cg_residual", "attack/size", "attack/budget_excess"),
        "train/diverged",
        "train/skipped",
    }
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    assert metrics["train/accepted"] == 1 and 0 < metrics["train/kl"] <= CONFIG.trpo.max_kl
    assert metrics["train/loss_after"] < metrics["train/loss_before"]
    # 20 tasks x 20 episodes x 10 steps, before and after adaptation; hardly any reaches its goal.
    assert 7600 <= metrics["train/env_steps"] <= 8000
    assert metrics["train/post_return"] < 0
    assert metrics["train/diverged"] == 0
    moved = jax.tree.map(lambda a, b: a - b, state.policy_params, before.policy_params)
    assert_no_leaf_is_zero(moved)
    assert_trees_equal(jax.random.key_data(state.key), jax.random.key_data(before.key))


def test_vmapped_seeds_are_close_to_single_runs(noise_chunk) -> None:
    together, metrics = jax.jit(jax.vmap(lambda seed: noise_chunk(initial_state(seed), num_steps=1)))(
        jnp.arange(2)
    )
    for seed in range(2):
        alone, alone_metrics = noise_chunk(initial_state(seed), num_steps=1)
        # Batched matrix products round differently, and conjugate gradient amplifies that.
        assert_trees_close(
            jax.tree.map(lambda x, s=seed: x[s], together.policy_params),
            alone.policy_params,
            rtol=1e-3,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            metrics["train/post_return"][seed], alone_metrics["train/post_return"], rtol=1e-4
        )


def test_switches_freeze_the_policy_or_the_adversary() -> None:
    @jax.jit
    def step(state: training.TrainState, train_policy: jax.Array, train_adversary: jax.Array):
        return training.outer_step(
            state,
            env=ENV,
            policy=POLICY,
            attack=ADGAN.attack,
            config=CONFIG,
            adgan=ADGAN,
            train_policy=train_policy,
            train_adversary=train_adversary,
        )

    adversary = adgan.init_adversary(jax.random.key(1), ADGAN, CONFIG.adversary)
    before = initial_state().replace(adversary=adversary)
    for train_policy, train_adversary in ((False, True), (True, False), (True, True)):
        after, metrics = step(before, jnp.array(train_policy), jnp.array(train_adversary))
        moved = jax.tree.map(lambda a, b: a - b, *(s.replace(key=(), step=()) for s in (after, before)))
        for part, trained in (
            (moved.policy_params, train_policy),
            (moved.adversary.generator_params, train_adversary),
            (moved.adversary.discriminator_params, train_adversary),
        ):
            if trained:
                assert_no_leaf_is_zero(part)
            else:
                jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), part)
        # What is frozen has nothing to report.
        assert bool(np.isfinite(metrics["train/kl"])) == train_policy
        assert bool(np.isfinite(metrics["adversary/gan_loss"])) == train_adversary
        assert metrics["attack/size"] > 0 and metrics["attack/budget_excess"] == 0


def test_a_few_outer_steps_learn_to_adapt(noise_chunk) -> None:
    # Ten steps without moving cost 3.8 on average, and so does the policy before adaptation: it cannot know
    # the goal. Noise of radius 0 is no noise. Measured after adaptation: -3.6 at first, about -1.75 later.
    state, history = initial_state(radius=0.0), []
    for _ in range(4):
        state, metrics = noise_chunk(state, num_steps=4)
        history.append(metrics)
    post, pre = (np.concatenate([m[f"train/{name}_return"] for m in history]) for name in ("post", "pre"))
    assert post[-4:].mean() > post[0] + 1.2
    assert post[-4:].mean() > pre[-4:].mean() + 1.2


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
    maml = dataclasses.replace(CONFIG.maml, num_tasks=12, num_trajectories=6)
    config = dataclasses.replace(CONFIG, maml=maml)
    step = functools.partial(
        training.outer_step, env=Breaking(), policy=POLICY, attack=attacks.gaussian_noise(), config=config
    )
    before = initial_state()
    after, metrics = jax.jit(step)(before)
    # An episode diverges once: that makes 6 before and 6 after adaptation in each broken task.
    broken, rest = divmod(int(metrics["train/diverged"]), 2 * 6)
    assert rest == 0 and 2 <= broken < 12
    # Whole episodes last 6 steps, those that break at step 3 last 2, those that break at once none.
    late, rest = divmod(int(metrics["train/env_steps"]) - 2 * 6 * (12 - broken) * 6, 2 * 6 * 2)
    assert rest == 0 and 1 <= late < broken
    for path, leaf in jax.tree_util.tree_leaves_with_path((after.policy_params, metrics)):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
    assert metrics["train/accepted"] == 1
    assert_no_leaf_is_zero(jax.tree.map(lambda a, b: a - b, after.policy_params, before.policy_params))


def test_a_chunk_of_one_step_is_compiled_as_a_loop_too(optimizations: None) -> None:
    # Inlined, its step would be fused with what surrounds it and give other bits than in a longer chunk.
    step: Any = lambda x: (jnp.sin(x), {"value": jnp.sum(x)})  # noqa: E731
    start: Any = jnp.arange(3.0)
    chunks = {
        size: jax.jit(functools.partial(training.train_chunk, num_steps=size, step_fn=step))
        for size in (1, 2)
    }
    for chunk in chunks.values():
        assert " while(" in str(chunk.lower(start).compile().as_text())
    once, first = chunks[1](start)
    twice, second = chunks[1](once)
    together, metrics = chunks[2](start)
    np.testing.assert_array_equal(twice, together)
    np.testing.assert_array_equal(jnp.concatenate([first["value"], second["value"]]), metrics["value"])
