"""adGAN's update: what it moves and what it leaves alone, units of inputs, blocks of tasks, its start."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_no_leaf_is_zero,
    assert_trees_close,
    assert_trees_equal,
    random_experience,
    random_like,
    tiny_policy,
)

from admrl_jax.attacks.base import Scene, Victim
from admrl_jax.attacks.generator import GeneratorParams
from admrl_jax.attacks.learned.adgan import NoGANConfig, make_adgan_trainer
from admrl_jax.attacks.learned.adgan.config import GAN_LOSSES, AdGANConfig
from admrl_jax.attacks.learned.adgan.losses import AttackedSteps, adversarial_loss
from admrl_jax.attacks.learned.adgan.state import AdGANState, LossWeights, init_adgan, make_adgan
from admrl_jax.attacks.learned.adgan.steps import (
    Minibatch,
    discriminator_objective,
    flatten_samples,
    generator_objective,
    join,
    per_task_mean,
    split_randomly,
)
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core import gaussian
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Params

CONFIG = AdGANConfig(hidden_sizes=(4,), num_epochs=1, num_minibatches=2)
POLICY = tiny_policy()
VICTIM = Victim(POLICY, 2, 2)
ADGAN = make_adgan(VICTIM, CONFIG)
BUDGET = Budget(jnp.float32(0.3), Units(jnp.zeros(2), jnp.ones(2)))
SCENE = Scene(())
RAW = Units(jnp.zeros(2), jnp.ones(2))


@functools.cache
def updater(config: AdGANConfig, block: int = 0):
    """One compiled update, as a trainer does it."""
    update = make_adgan_trainer(config, VICTIM).update
    return jax.jit(lambda state, key, batch: update(state, key, (), batch, BUDGET, TaskAxis(block)))


def victims() -> Params:
    """Adapted policies of three tasks."""
    base = random_like(POLICY.init, 3)
    return jax.vmap(lambda shift: jax.tree.map(lambda x: x + 0.1 * shift, base))(jnp.arange(3.0))


def log_prob_under(victims: Params, perturbed: jax.Array, action: jax.Array) -> jax.Array:
    """Log density `[N, ...]` of actions under every task's victim."""

    def one(params: Params, obs: jax.Array, action: jax.Array) -> jax.Array:
        return gaussian.log_prob(POLICY.apply(params, obs), action)

    return jax.jit(jax.vmap(one))(victims, perturbed, action)


def collected(query: Experience) -> Experience:
    """With the log densities of the victims that took its actions."""
    taken = query.trajectory
    log_prob = log_prob_under(victims(), taken.perturbed_obs, taken.action)
    return query._replace(trajectory=taken._replace(log_prob=log_prob))


def meta_batch() -> MetaBatch:
    """Random support and query of three tasks, and the victims."""
    query = collected(random_experience(5, (3, 2, 4)))
    radius = jnp.full((3,), BUDGET.radius)
    support = random_experience(4, (3, 1, 2, 4))
    return MetaBatch(support, query, victims(), support_radius=radius, query_radius=radius)


@pytest.fixture(scope="module")
def state() -> AdGANState:
    """A fresh adversary."""
    return init_adgan(ADGAN, jax.random.key(0), RAW)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_update_changes_everything_and_repeats_itself(kind: str, state: AdGANState) -> None:
    update = updater(dataclasses.replace(CONFIG, gan_loss=kind))
    new, metrics = update(state, jax.random.key(1), meta_batch())
    again, _ = update(state, jax.random.key(1), meta_batch())
    other, _ = update(state, jax.random.key(2), meta_batch())
    assert_trees_equal(new, again)
    for name in ("generator", "discriminator"):
        moved = jax.tree.map(lambda a, b: a - b, getattr(new, name), getattr(state, name))
        assert_no_leaf_is_zero(moved)
    # The key shuffles the minibatches.
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), new.generator, other.generator)
    assert any(jax.tree.leaves(differs))
    assert all(np.isfinite(value) for value in metrics.values())
    assert set(metrics) == {
        f"adversary/{name}"
        for name in (
            *("adversarial_loss", "gan_loss", "hinge_loss", "discriminator_loss", "clean_accuracy"),
            *("perturbed_accuracy", "raw_size", "at_bound", "generator_gradient_norm", "skipped"),
        )
    }
    # Units and weights of the losses are no parameters.
    assert_trees_equal((new.inputs, new.weights), (state.inputs, state.weights))


@pytest.mark.parametrize("block", [1, 2])
def test_tasks_in_blocks_change_no_update(block: int, state: AdGANState) -> None:
    # Masked samples too, so that tasks weigh differently in a minibatch.
    batch = meta_batch()
    taken = batch.query.trajectory
    taken = taken._replace(mask=taken.mask.at[0, 1, 1:].set(0.0))
    batch = batch._replace(query=batch.query._replace(trajectory=taken))
    together, blocked = (updater(CONFIG, n)(state, jax.random.key(1), batch) for n in (0, block))
    assert_trees_close(together, blocked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["support", "query"])
def test_what_nothing_may_perturb_is_never_called_perturbed(side: str, state: AdGANState) -> None:
    batch = meta_batch()
    clean_side = batch._replace(**{f"{side}_radius": jnp.zeros(3)})
    horizon, key = 4, jax.random.key(1)
    query, support = (
        flatten_samples(getattr(clean_side, name), getattr(clean_side, f"{name}_radius"))
        for name in ("query", "support")
    )
    halves = [split_randomly(key, samples, 2) for samples in (query, support._replace(steps=None))]
    first = join(*(jax.tree.map(lambda x: x[0], half) for half in halves), victims(), TaskAxis())
    assert np.all(np.asarray(first.attacked)[np.asarray(first.radius) == 0] == 0)
    np.testing.assert_allclose([first.attacked.sum(), first.weight.sum()], 1.0, rtol=1e-5)
    elsewhere = jnp.where((first.radius == 0)[..., None], 5 * first.clean, first.clean)

    def terms(batch: Minibatch) -> list[jax.Array]:
        left = generator_objective(ADGAN, state, state.discriminator, RAW, horizon, state.generator, batch)[1]
        return [left[f"adversary/{name}"] for name in ("gan_loss", "hinge_loss", "raw_size", "at_bound")]

    np.testing.assert_allclose(terms(first), terms(first._replace(clean=elsewhere)), rtol=1e-5)
    assert terms(first)[-1] <= 1


def test_gan_weight_zero_cuts_the_discriminator_off(state: AdGANState) -> None:
    stranger = state.replace(discriminator=random_like(ADGAN.discriminator.init, 9))
    for gan_weight, cut_off in ((0.0, True), (CONFIG.gan_weight, False)):
        weights = state.weights._replace(gan=jnp.float32(gan_weight))
        a, b = (
            updater(CONFIG)(s.replace(weights=weights), jax.random.key(1), meta_batch())[0].generator
            for s in (state, stranger)
        )
        same = jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.all(x == y)), a, b))
        assert all(same) == cut_off


def test_loss_weights_are_numbers_of_the_state_not_of_the_program() -> None:
    # Attackers with and without the GAN loss share their compiled programs, which are found by name.
    with_gan, without = (make_adgan_trainer(c, VICTIM) for c in (AdGANConfig(), NoGANConfig()))
    assert with_gan.name == without.name
    assert with_gan.name != make_adgan_trainer(AdGANConfig(num_epochs=3), VICTIM).name
    assert [float(t.init(jax.random.key(0), RAW).weights.gan) for t in (with_gan, without)] == [
        pytest.approx(0.8),
        0.0,
    ]


def test_a_generator_step_lowers_the_surrogate_return(state: AdGANState) -> None:
    # Only the adversarial loss, one minibatch: one Adam step along its gradient at ratio 1.
    config = dataclasses.replace(CONFIG, num_minibatches=1)
    state = state.replace(weights=LossWeights(jnp.float32(0), jnp.float32(0)))
    batch = meta_batch()
    # Query data collected by this generator: perturbed observations are its own.
    taken = batch.query.trajectory
    perturbed = ADGAN.generator.perturb(state.attack_params, taken.obs, SCENE, BUDGET)
    query = collected(batch.query._replace(trajectory=taken._replace(perturbed_obs=perturbed)))
    new, metrics = updater(config)(state, jax.random.key(0), batch._replace(query=query))

    steps = AttackedSteps(
        taken.action.reshape(3, 8, 2),
        query.trajectory.log_prob.reshape(3, 8),
        query.advantage.reshape(3, 8),
        per_task_mean(taken.mask.reshape(3, 8)) / 3,
    )

    @jax.jit
    def loss(params: GeneratorParams) -> jax.Array:
        perturbed = ADGAN.generator.perturb(params, taken.obs.reshape(3, 8, 2), SCENE, BUDGET)
        return adversarial_loss(
            perturbed, steps, batch.adapted_params, policy=POLICY, clip_ratio=0.2, horizon=4
        )

    before, after = loss(state.attack_params), loss(new.attack_params)
    assert after < before - 1e-6
    np.testing.assert_allclose(metrics["adversary/adversarial_loss"], before, rtol=1e-4, atol=1e-6)


def test_other_units_of_observations_and_inputs_leave_both_networks_outputs_unchanged(
    state: AdGANState,
) -> None:
    # Observations in metres or millimetres: the networks read standard deviations of clean rollouts.
    obs = jax.random.normal(jax.random.key(0), (3, 5, 2))
    inputs = Units(jnp.array([0.5, -1.0]), jnp.array([2.0, 0.25]))
    scale, offset = jnp.array([1024.0, 0.125]), jnp.array([64.0, -1.0])
    other = Units(scale * inputs.centre + offset, scale * inputs.scale)

    def outputs(obs: jax.Array, inputs: Units, units: Units) -> tuple:
        attack, budget = GeneratorParams(state.generator, inputs), Budget(0.3, units)
        weight = jnp.full(obs.shape[:2], 1 / 15)
        steps = AttackedSteps(*[jnp.zeros(0)] * 4)
        batch = Minibatch(steps, (), obs, weight, weight, jnp.full(obs.shape[:2], budget.radius))
        metrics = discriminator_objective(ADGAN, attack, units, state.discriminator, batch)[1]
        return ADGAN.generator.raw(attack, obs, SCENE, budget), metrics

    raw, metrics = jax.jit(outputs)(obs, inputs, Units(0.0, jnp.ones(2)))
    raw_other, metrics_other = jax.jit(outputs)(scale * obs + offset, other, Units(0.0, scale))
    np.testing.assert_allclose(raw, raw_other, atol=1e-5)
    assert_trees_close(metrics, metrics_other, rtol=1e-4)
    # The units do matter: without them it is another function.
    unlike = ADGAN.generator.raw(GeneratorParams(state.generator, Units()), obs, SCENE, BUDGET)
    assert np.abs(unlike - raw).max() > 0.01


def test_where_a_generator_starts() -> None:
    inputs, theirs = Units(jnp.ones(2), jnp.full(2, 3.0)), Units(jnp.zeros(2), jnp.full(2, 7.0))
    key = jax.random.key(4)
    fresh = init_adgan(ADGAN, key, inputs)
    assert_trees_equal(
        fresh.attack_params, GeneratorParams(ADGAN.generator.network.init(jax.random.split(key)[0]), inputs)
    )
    # Raw observations where it is not to standardise.
    raw = init_adgan(make_adgan(VICTIM, dataclasses.replace(CONFIG, standardise=False)), key, inputs)
    assert_trees_equal(raw.inputs, RAW)
    # From a given one, which keeps the units that it reads in.
    given = GeneratorParams(random_like(ADGAN.generator.network.init, 5), theirs)
    continued = init_adgan(ADGAN, key, inputs, given)
    assert_trees_equal(continued.attack_params, given)
    assert_trees_equal(continued.discriminator, fresh.discriminator)
    assert_trees_equal(continued.generator_opt_state, fresh.generator_opt_state)


def test_batches_that_do_not_split_into_minibatches_are_refused() -> None:
    trainer = make_adgan_trainer(dataclasses.replace(CONFIG, num_minibatches=8), VICTIM)
    trainer.check_batch(4, 10)
    with pytest.raises(
        ConfigError, match=r"num_minibatches: 8 is not accepted; accepted: a divisor of .* \(36\)"
    ):
        trainer.check_batch(4, 9)
