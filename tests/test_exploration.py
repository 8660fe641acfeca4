"""A policy that tries contexts: what it draws, what it learns from, and what an attack can reach of that."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from admrl_jax.attacks.base import Scene, memoryless
from admrl_jax.attacks.learned.counter_action import CounterActionConfig, make_counter_action
from admrl_jax.attacks.learned.misstep import MisstepConfig, MisstepParams, make_misstep
from admrl_jax.attacks.learned.pipeline import PipelineConfig, make_pipeline
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.config import Config, LearnerConfigs
from admrl_jax.core import gaussian
from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.core.returns import estimate_advantages, score_episodes
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import MetaBatch, Params, Trajectory
from admrl_jax.defences.smooth import SmoothConfig, smooth_term
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo
from admrl_jax.learners.promp import make_promp
from admrl_jax.runs.artefact import POLICIES, load_policy, save_policies
from admrl_jax.sampling import SamplingConfig, collect_meta_batch, expose, score_tasks
from admrl_jax.victims import make_victim

STD, LR, TASKS, EPISODES = 0.7, 0.3, 2, 6
ENV = Navigation2D(NavigationConfig(horizon=5))
SETTINGS = PolicyConfig(hidden_sizes=(4,), context_size=3, context_std=STD, init_std=0.1, min_std=0.05)
POLICY = make_policy(2, 2, SETTINGS)
LEARNER = make_maml_trpo(POLICY, MAMLTRPOConfig(inner_lr=LR, adapts="context"))
VICTIM = make_victim(ENV, POLICY, LEARNER)
# A context that is not at its start, and weights that read it.
META = POLICY.init(jax.random.key(3)) | {"context": jnp.array([0.2, -0.1, 0.4])}


def sampling(num_adapt_steps: int) -> SamplingConfig:
    return SamplingConfig(num_tasks=TASKS, num_trajectories=EPISODES, num_adapt_steps=num_adapt_steps)


@functools.partial(jax.jit, static_argnums=(1, 2))
def collect(radius: jax.Array, num_adapt_steps: int, inner_lr: float = LR) -> MetaBatch:
    threat = make_threat(label="away", norm="l2", strength="L2 radius", knowledge="none")
    away = memoryless(lambda params, key, obs, scene, budget: obs + budget.radius / jnp.sqrt(2.0), threat)
    tasks = jax.vmap(ENV.sample_task)(jax.random.split(jax.random.key(0), TASKS))
    budget = Budget(radius, Units())
    return collect_meta_batch(
        META,
        jax.random.key(1),
        tasks,
        expose(away, (), budget, num_tasks=TASKS),
        env=ENV,
        policy=POLICY,
        learner=make_maml_trpo(POLICY, MAMLTRPOConfig(inner_lr=inner_lr, adapts="context")),
        config=sampling(num_adapt_steps),
    )


@pytest.fixture(scope="module")
def batch() -> MetaBatch:
    return collect(jnp.float32(0.0), 2)


def drawn(taken: Trajectory) -> np.ndarray:
    """Contexts `[..., K, C]`, each the same at every step of its episode."""
    contexts = np.asarray(taken.context)
    assert (contexts == contexts[..., :1, :]).all()
    return contexts[..., 0, :]


def test_every_support_episode_has_a_context_of_its_own_and_query_episodes_have_the_adapted_one(
    batch: MetaBatch,
) -> None:
    support, query = drawn(batch.support.trajectory), drawn(batch.query.trajectory)
    assert len(np.unique(support.reshape(-1, 3), axis=0)) == TASKS * 2 * EPISODES
    adapted = np.asarray(batch.adapted_params["context"])
    np.testing.assert_array_equal(query, np.broadcast_to(adapted[:, None], query.shape))


def test_a_second_round_is_drawn_around_what_the_first_has_made_of_it() -> None:
    far = collect(jnp.float32(0.0), 2, 30.0)
    own = np.asarray(far.support_params["context"])
    # The first step went much further than contexts are spread.
    assert np.all(np.linalg.norm(own[:, 1] - own[:, 0], axis=-1) > 6 * STD)
    apart = np.linalg.norm(drawn(far.support.trajectory) - own[:, :, None], axis=-1)
    assert np.all(apart < 5 * STD)


def test_query_episodes_are_scored_step_by_step_and_support_episodes_as_wholes(batch: MetaBatch) -> None:
    config = sampling(2)
    step_by_step = functools.partial(
        estimate_advantages, discount=config.discount, gae_lambda=config.gae_lambda
    )
    query = jax.vmap(step_by_step)(batch.query.trajectory)
    np.testing.assert_allclose(batch.query.advantage, query.advantage, rtol=1e-3, atol=1e-4)
    support = jax.vmap(jax.vmap(score_episodes))(batch.support.trajectory)
    np.testing.assert_allclose(batch.support.advantage, support.advantage, rtol=1e-5, atol=1e-6)
    # With a spread of their own.
    first = jax.tree.map(lambda x: x[:, 0], batch.support.trajectory)
    spread = score_tasks(first, replace(config, support_spread=3.0), POLICY, False)
    wholes = jax.vmap(lambda one: score_episodes(one, 3.0))(first)
    np.testing.assert_allclose(spread.advantage, wholes.advantage, rtol=1e-5, atol=1e-6)


def test_contexts_are_drawn_with_the_set_deviation() -> None:
    assert POLICY.explore is not None
    draw = functools.partial(POLICY.explore.draw, META, is_query=False)
    found = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(found.mean(axis=0), META["context"], atol=0.05)
    np.testing.assert_allclose(found.std(axis=0), STD, rtol=0.05)


def test_actions_are_those_of_the_context_that_was_drawn(batch: MetaBatch) -> None:
    taken = jax.tree.map(lambda x: x[:, 0], batch.support.trajectory)
    dist = POLICY.apply(POLICY.acting(META, taken.context), taken.perturbed_obs)
    np.testing.assert_allclose(taken.log_prob, gaussian.log_prob(dist, taken.action), rtol=1e-4, atol=1e-4)
    unlike = gaussian.log_prob(POLICY.apply(META, taken.perturbed_obs), taken.action)
    assert np.abs(np.asarray(taken.log_prob - unlike)).max() > 0.01


def test_a_step_of_adaptation_weighs_contexts_by_the_returns_of_their_episodes(batch: MetaBatch) -> None:
    contexts = drawn(batch.support.trajectory)[:, 0]
    returns = np.asarray(batch.support.trajectory.reward)[:, 0].sum(axis=-1)
    score = (returns - returns.mean(axis=1, keepdims=True)) / returns.std(axis=1, keepdims=True)
    own = np.asarray(META["context"])
    step = (score[..., None] * (contexts - own)).mean(axis=1) / STD**2
    after_one = np.asarray(batch.support_params["context"])[:, 1]
    np.testing.assert_allclose(after_one, own + LR * step, rtol=1e-4, atol=1e-5)
    rest = jax.tree.map(lambda x: x[0], batch.adapted_params) | {"context": META["context"]}
    assert_trees_equal(rest, META)


def test_adaptation_reads_no_observation(batch: MetaBatch) -> None:
    def adapted(support: Params) -> Params:
        return LEARNER.adapt(META, support)["context"]

    one = jax.tree.map(lambda x: x[0], batch.support)
    moved = one._replace(trajectory=one.trajectory._replace(perturbed_obs=one.trajectory.obs + 5.0))
    np.testing.assert_array_equal(adapted(one), adapted(moved))
    # What an attack makes the policy do, it does read.
    attacked = collect(jnp.float32(1.0), 2)
    assert np.abs(np.asarray(attacked.adapted_params["context"] - batch.adapted_params["context"])).max() > 0


def test_episodes_count_alike_whenever_they_end() -> None:
    mask = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    reward = jnp.array([[1.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.0, 0.0]])
    zeros = jnp.zeros((2, 4))
    taken = Trajectory(zeros[..., None], zeros[..., None], zeros[..., None], zeros, reward, mask, zeros)
    np.testing.assert_allclose(
        score_episodes(taken).advantage, [[0.625] * 4, [-2.5, 0.0, 0.0, 0.0]], rtol=1e-5
    )
    np.testing.assert_allclose(score_episodes(taken, 4.0).advantage[1], [-1.25, 0.0, 0.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize("lasted", [0, 2])
def test_an_episode_that_diverged_counts_nothing(lasted: int) -> None:
    """Cut short, it would return more than its neighbours, whose rewards are negative."""
    reward = jnp.array([[-1.0] * 4, [-2.0] * 4, [-4.0] * 4, [-1.0] * 4])
    mask = jnp.ones((4, 4)).at[3].set(jnp.arange(4) < lasted)
    diverged = jnp.zeros((4, 4)).at[3, lasted].set(1.0)
    zeros = jnp.zeros((4, 4))
    taken = Trajectory(
        zeros[..., None], zeros[..., None], zeros[..., None], zeros, reward * mask, mask, diverged
    )
    advantage = score_episodes(taken).advantage
    weights = np.asarray((advantage * mask).sum(axis=1) / mask.sum())
    healthy = jax.tree.map(lambda x: x[:3], taken)
    np.testing.assert_allclose(weights[:3], score_episodes(healthy).advantage[:, 0] / 3, rtol=1e-5)
    assert weights[3] == 0 and abs(weights.sum()) < 1e-6


def test_smoothness_is_that_of_the_contexts_that_acted(batch: MetaBatch) -> None:
    term = smooth_term(VICTIM, SmoothConfig(query_weight=1e-12, support_weight=1.0, radius=0.3))
    support, query, adapted = jax.tree.map(lambda x: x[0], (batch.support, batch.query, batch.adapted_params))
    shifts = term.prepare(jax.random.key(0), META, adapted, support, query)
    before = shifts["support"]
    assert shifts["query"].context == () and before.context.shape == (EPISODES * 5, 3)
    size = term.loss(term.predict(META, adapted, shifts))
    acting = POLICY.acting(META, before.context)
    here, there = (POLICY.apply(acting, x) for x in (before.obs, before.obs + before.shift))
    np.testing.assert_allclose(size, gaussian.kl(here, there).mean(), rtol=1e-4)
    own = gaussian.kl(POLICY.apply(META, before.obs), POLICY.apply(META, before.obs + before.shift)).mean()
    assert abs(size - own) > 1e-4 * abs(own)


@pytest.mark.parametrize("others", [-2.0, 1.0])
@pytest.mark.parametrize("like", [1.0, -1.0])
def test_misstep_drives_an_episode_away_from_what_its_context_stands_for(like: float, others: float) -> None:
    """Of the two sides of the context around which it was drawn, wherever the two policies adapt to."""
    own, other, unadapted = (META | {"context": jnp.array([x, 0.0, 0.0])} for x in (2.0, others, 0.0))
    policies = jax.tree.map(lambda *x: jnp.stack(x), own, other)
    known = MisstepParams(jnp.array([[0.0, 0.0], [9.0, 9.0]]), policies, jnp.array([1, 0]), unadapted)
    acting = META | {"context": jnp.array([like, 0.3, -0.2])}
    victim = VICTIM._replace(task_features=lambda task: task)
    config = MisstepConfig(against=1.0, spread=0.0, steps=20, step_share=0.2)
    attack = make_misstep(config, victim).attack
    obs, budget = jnp.array([0.1, -0.3]), Budget(jnp.float32(0.3), Units())
    seen, _ = attack.perturb(
        known, jnp.float32(1.0), jax.random.key(0), obs, Scene(acting, jnp.zeros(2), False), budget
    )
    wanted = POLICY.apply(own, obs).mean - POLICY.apply(other, obs).mean

    def along(x: jax.Array) -> jax.Array:
        return jnp.vdot(POLICY.apply(acting, x).mean, wanted)

    ring = jnp.linspace(0, 2 * jnp.pi, 200)
    around = obs + 0.3 * jnp.stack([jnp.cos(ring), jnp.sin(ring)], axis=-1)
    np.testing.assert_allclose(like * along(seen), jnp.min(like * jax.vmap(along)(around)), atol=2e-3)
    assert like * (along(seen) - along(obs)) < -1e-3


def test_fits_turn_around_what_the_drawn_contexts_did(batch: MetaBatch) -> None:
    """At no shift the loss on support data is the size of the actions that the drawn contexts take."""
    config = CounterActionConfig(through="both", num_samples=30, num_steps=1)
    trainer = make_counter_action(config, VICTIM)
    state = trainer.init(jax.random.key(0), Units(jnp.zeros(2), jnp.ones(2)))
    nothing = Budget(jnp.float32(0.0), Units(jnp.zeros(2), jnp.ones(2)))
    _, metrics = jax.jit(trainer.update)(state, jax.random.key(1), META, batch, nothing)

    def size(params: Params, obs: jax.Array) -> jax.Array:
        limit = VICTIM.action_limit
        return jnp.sum(jnp.square(jnp.clip(POLICY.apply(params, obs).mean, -limit, limit)), axis=-1).mean()

    def of_task(one: MetaBatch) -> jax.Array:
        total = size(one.adapted_params, one.query.trajectory.obs)
        for s in range(2):
            params, taken = jax.tree.map(lambda x, s=s: x[s], (one.support_params, one.support.trajectory))
            total += size(POLICY.acting(params, taken.context), taken.obs)
        return total

    expected = np.mean([of_task(jax.tree.map(lambda x, n=n: x[n], batch)) for n in range(TASKS)])
    np.testing.assert_allclose(metrics["adversary/agreement"], expected, rtol=1e-4)


def test_support_actions_are_as_likely_as_they_were_where_nothing_was_moved(batch: MetaBatch) -> None:
    """To `pipeline`, which would take back every step if it read another context than the one that acted."""
    nothing = Budget(jnp.float32(0.0), Units(jnp.zeros(2), jnp.ones(2)))
    for side in ("both", "pipeline"):
        trainer = make_pipeline(PipelineConfig(hidden_sizes=(4,), num_steps=1, side=side), VICTIM)
        state = trainer.init(jax.random.key(0), nothing.units)
        _, metrics = jax.jit(trainer.update)(state, jax.random.key(1), META, batch, nothing)
        assert abs(metrics["adversary/kl"]) < 1e-5 and metrics["adversary/steps_kept"] == 1


def test_learners_that_would_not_learn_from_contexts_refuse_such_a_policy() -> None:
    with pytest.raises(ConfigError, match="adapts: 'head' is not accepted; accepted: context"):
        make_maml_trpo(POLICY, MAMLTRPOConfig(adapts="head"))
    with pytest.raises(ConfigError, match=r"policy: .* explores by its context"):
        make_promp(POLICY)


def test_a_saved_policy_still_explores_and_adapts_by_it(batch: MetaBatch, tmp_path: Path) -> None:
    config = Config(
        env=NavigationConfig(horizon=5),
        methods=("maml",),
        seeds=(0,),
        policy=SETTINGS,
        learners=LearnerConfigs(maml_trpo=MAMLTRPOConfig(inner_lr=LR, adapts="context")),
    )
    saved, inputs = jax.tree.map(lambda x: x[None], (META, Units(jnp.zeros(2), jnp.ones(2))))
    save_policies(tmp_path / POLICIES, config, {"maml": saved}, inputs, (0,))
    loaded = load_policy(tmp_path, "maml", seed=0)
    assert loaded.policy.explore is not None and loaded.policy.explore.std == STD
    support = jax.tree.map(lambda x: x[0], batch.support)
    adapted = loaded.learner.adapt(loaded.params, support)["context"]
    np.testing.assert_array_equal(adapted, LEARNER.adapt(META, support)["context"])
    assert np.any(adapted != META["context"])


def test_without_a_spread_nothing_is_drawn() -> None:
    policy = make_policy(2, 2, PolicyConfig(hidden_sizes=(3,), context_size=2))
    assert policy.explore is None and policy.acting(META, ()) is META
