"""NaN and infinity from every part: what is masked, skipped and counted; nothing learned is harmed."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.learned.adgan import AdGANConfig, make_adgan_trainer
from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.core.types import TimeStep
from admrl_jax.defences.adgan import train_against
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo
from admrl_jax.learners.trpo import TRPOConfig
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import Setup, TrainState, bad_steps, init_train_state, outer_step

POLICY = make_policy(2, 2, PolicyConfig(hidden_sizes=(8,)))
LEARNER = make_maml_trpo(POLICY, MAMLTRPOConfig(trpo=TRPOConfig(cg_iterations=3, cg_damping=0.1)))
SAMPLING = SamplingConfig(num_tasks=4, num_trajectories=6)
TRAINER = make_adgan_trainer(
    AdGANConfig(hidden_sizes=(8,), num_epochs=1, num_minibatches=2), Victim(POLICY, 2, 2)
)
DEFENCE = train_against(TRAINER, radius=0.1, attack_name="adgan")
MASKED = ("nan state", "infinite state", "nan reward", "infinite reward", "nan at reset")
BROKEN_GENERATORS = ("nan generator", "huge generator")
BROKEN_UPDATES = ("nan discriminator", "huge discriminator", "infinite adam")
FAULTS = ("none", *MASKED, "huge reward", *BROKEN_GENERATORS, *BROKEN_UPDATES)


class Faulty(NamedTuple):
    """Pays for small moves. In about half of the episodes something breaks at step 3, or at reset."""

    fault: Any = 0
    obs_size: int = 2
    action_size: int = 2
    horizon: int = 6

    def sample_task(self, key: jax.Array) -> jax.Array:
        """Where to go."""
        return jax.random.normal(key, (2,))

    def is_fault(self, name: str) -> jax.Array:
        """Whether it is this environment's."""
        return jnp.asarray(self.fault == FAULTS.index(name))

    def reset(self, key: jax.Array, task: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A random place, the number of the step, and whether this episode breaks."""
        place = jax.random.normal(key, (2,))
        breaks = place[0] > 0
        state = jnp.concatenate([place, jnp.array([0.0]), breaks.astype(place.dtype)[None]])
        state = state.at[0].set(jnp.where(self.is_fault("nan at reset") & breaks, jnp.nan, state[0]))
        return state, state[:2]

    def step(self, state: jax.Array, action: jax.Array, task: jax.Array) -> tuple[jax.Array, TimeStep]:
        """Moves by a tenth of the action."""
        state = state.at[:2].add(0.1 * action).at[2].add(1)
        breaks = (state[2] == 3) & (state[3] == 1)
        for name, value in (("nan state", jnp.nan), ("infinite state", jnp.inf)):
            state = state.at[0].set(jnp.where(self.is_fault(name) & breaks, value, state[0]))
        reward = -jnp.sum(jnp.square(state[:2] - task))
        for name, value in (("nan reward", jnp.nan), ("infinite reward", -jnp.inf), ("huge reward", 3e38)):
            reward = jnp.where(self.is_fault(name) & ((breaks) | (name == "huge reward")), value, reward)
        return state, TimeStep(state[:2], reward, jnp.array(False))


def setup(fault: Any) -> Setup:
    """What is trained on that environment."""
    return Setup(Faulty(fault), POLICY, LEARNER, SAMPLING)


def initial(fault: str) -> TrainState:
    """A fresh policy and adversary, the latter broken where the fault is its own."""
    state = init_train_state(jax.random.key(0), setup(0), DEFENCE)

    def fill(tree: Any, value: float) -> Any:
        return jax.tree.map(lambda x: jnp.full_like(x, value) if x.ndim else x, tree)

    change = {
        "nan generator": lambda a: a.replace(generator=fill(a.generator, jnp.nan)),
        "huge generator": lambda a: a.replace(generator=fill(a.generator, 1e38)),
        "nan discriminator": lambda a: a.replace(discriminator=fill(a.discriminator, jnp.nan)),
        "huge discriminator": lambda a: a.replace(discriminator=fill(a.discriminator, 1e30)),
        "infinite adam": lambda a: a.replace(generator_opt_state=fill(a.generator_opt_state, jnp.inf)),
    }.get(fault, lambda a: a)
    return state.replace(opponent=change(state.opponent), key=jax.random.key(3))


class Outcome(NamedTuple):
    before: TrainState
    after: TrainState
    metrics: dict[str, np.ndarray]
    is_bad: bool


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """One outer step under every fault, side by side in one program, as seeds are."""

    def step(state: TrainState, fault: jax.Array):
        return outer_step(state, setup=setup(fault), defence=DEFENCE)

    before = jax.tree.map(lambda *x: jnp.stack(x), *map(initial, FAULTS))
    after, metrics = jax.jit(jax.vmap(step))(before, jnp.arange(len(FAULTS)))
    bad = bad_steps(metrics)
    assert bad.shape == (len(FAULTS),)
    pick = [functools.partial(jax.tree.map, lambda x, i=i: x[i]) for i in range(len(FAULTS))]
    return {
        name: Outcome(p(before), p(after), {k: v[i] for k, v in metrics.items()}, bool(bad[i]))
        for i, (name, p) in enumerate(zip(FAULTS, pick, strict=True))
    }


def learned(state: TrainState) -> Any:
    """Everything that training changes, all of which is finite in a fresh state."""
    return state.learner, state.opponent


def differs(a: Any, b: Any) -> bool:
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(x != y)), a, b)))


@pytest.mark.parametrize("fault", MASKED)
def test_broken_episodes_are_masked_and_the_rest_is_learned_from(fault: str, outcomes) -> None:
    before, after, metrics, is_bad = outcomes[fault]
    # 4 tasks x 6 episodes before and after adaptation; about half of them break.
    assert 12 <= metrics["train/diverged"] <= 36
    lost = 6 if fault == "nan at reset" else 4
    assert metrics["train/env_steps"] == 2 * 24 * 6 - lost * metrics["train/diverged"]
    assert metrics["train/skipped"] == 0 and metrics["adversary/skipped"] == 0 and not is_bad
    assert metrics["train/accepted"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(learned(after)))
    assert differs(before.learner, after.learner)
    assert differs(before.opponent.generator, after.opponent.generator)


def test_a_healthy_step_counts_nothing(outcomes) -> None:
    _, _, metrics, is_bad = outcomes["none"]
    assert metrics["train/diverged"] == metrics["train/skipped"] == metrics["adversary/skipped"] == 0
    assert metrics["train/env_steps"] == 2 * 24 * 6 and not is_bad


def test_returns_that_overflow_change_nothing(outcomes) -> None:
    before, after, metrics, is_bad = outcomes["huge reward"]
    assert metrics["train/skipped"] == 1 and metrics["adversary/skipped"] == 1 and is_bad
    assert_trees_equal(learned(before), learned(after))
    assert after.step == 1


@pytest.mark.parametrize("fault", BROKEN_GENERATORS)
def test_a_generator_that_is_not_finite_masks_its_episodes_and_learns_nothing(fault: str, outcomes) -> None:
    before, after, metrics, is_bad = outcomes[fault]
    assert metrics["train/env_steps"] == 0 and metrics["train/diverged"] == 48 and is_bad
    assert metrics["adversary/skipped"] == 1
    assert metrics["attack/budget_excess"] == 0
    assert_trees_equal(learned(before), learned(after))


@pytest.mark.parametrize("fault", BROKEN_UPDATES)
def test_adversary_updates_that_are_not_finite_are_skipped(fault: str, outcomes) -> None:
    before, after, metrics, is_bad = outcomes[fault]
    assert metrics["adversary/skipped"] == 1 and is_bad
    assert_trees_equal(before.opponent, after.opponent)
    # The policy's own step is none of its business.
    assert metrics["train/accepted"] == 1
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.learner))
    assert_trees_equal(after.learner, outcomes["none"].after.learner)
