"""adGAN: loss terms by hand, the generator's gradient against a closed form, and the joint update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_no_leaf_is_zero,
    assert_trees_equal,
    random_experience,
    random_like,
    tiny_policy,
)

from admrl_jax import adgan, gaussian
from admrl_jax.adgan import AdGAN, AttackedSteps
from admrl_jax.attacks import Budget, safe_norm
from admrl_jax.config import AdversaryConfig
from admrl_jax.gaussian import Gaussian
from admrl_jax.networks import Network, Policy

CONFIG = AdversaryConfig(hidden_sizes=(4,), num_epochs=1, num_minibatches=2)
ADGAN = adgan.make_adgan(2, CONFIG)
POLICY = tiny_policy()
BUDGET = Budget(jnp.float32(0.3), jnp.zeros(2), jnp.ones(2))

CONSTANT = Network(lambda key: jnp.zeros(1), lambda params, x: jnp.broadcast_to(params, x.shape))
"""A generator that perturbs every observation by its parameters."""
LINEAR_POLICY = Policy(lambda key: {}, lambda p, obs: Gaussian(p["weight"] * obs, p["log_std"]))


def bandit_gradient(
    num_samples: int, *, w: float, x: float, shift: float, sigma: float, target: float
) -> tuple[jax.Array, float, float]:
    """Score-function estimate, its standard error, and the true gradient of the return in a one-step task.

    Action a ~ N(w (x + shift), sigma^2) and reward -(a - target)^2, so
    E[reward] = -(w (x + shift) - target)^2 - sigma^2 and dE/dshift = -2 w (w (x + shift) - target).
    """
    rng = np.random.default_rng(0)
    mean = w * (x + shift)
    action = (mean + sigma * rng.normal(size=num_samples)).astype(np.float32)
    reward = -((action - target) ** 2)
    advantage = reward - reward.mean()
    params = {"weight": jnp.full((1, 1), w), "log_std": jnp.full((1, 1), np.log(sigma))}
    obs = jnp.full((1, num_samples, 1), x)
    steps = AttackedSteps(
        action=jnp.asarray(action)[None, :, None],
        log_prob=gaussian.log_prob(
            Gaussian(jnp.full((1, num_samples, 1), mean), params["log_std"]), action[None, :, None]
        ),
        advantage=jnp.asarray(advantage)[None],
        weight=jnp.full((1, num_samples), 1 / num_samples),
    )

    def loss(shift: jax.Array) -> jax.Array:
        perturbed = adgan.perturb_with(CONSTANT, shift, obs, Budget(1.0))
        return adgan.adversarial_loss(
            perturbed, steps, params, policy=LINEAR_POLICY, clip_ratio=0.2, horizon=1
        )

    gradient = jax.grad(loss)(jnp.full(1, shift))
    scores = (action - mean) / sigma**2 * w * advantage
    return gradient[0], scores.std() / num_samples**0.5, -2 * w * (mean - target)


@pytest.mark.parametrize("target", [-1.0, 2.0])
def test_generator_gradient_is_that_of_the_return(target: float) -> None:
    # Minimising the loss minimises the victim's return, so its gradient is the return's, sign included.
    estimate, error, truth = bandit_gradient(200_000, w=1.5, x=0.4, shift=0.2, sigma=0.5, target=target)
    # 200 000 samples put the standard error at 1 % of the gradient or less; 4 of them are allowed.
    assert error < 0.01 * abs(truth)
    assert abs(estimate - truth) < 4 * error


def test_adversarial_loss_golden() -> None:
    # One task, policy N(obs, 1), no perturbation. log_prob is given 0 / -log 2 / +log 2 off, so the ratios
    # are 1, 2 and 1/2. A ratio beyond 1 +- 0.2 that favours the attacker earns no more than the clip:
    #   ratio 1,   advantage  1: max(1, 1)      =  1
    #   ratio 2,   advantage -1: max(-2, -1.2)  = -1.2   (clipped: the likelier bad action earns no more)
    #   ratio 1/2, advantage  1: max(0.5, 0.8)  =  0.8   (clipped)
    #   ratio 2,   advantage  1: max(2, 1.2)    =  2     (unclipped: a loss is never hidden)
    obs = jnp.zeros((1, 4, 1))
    params = {"weight": jnp.ones((1, 1)), "log_std": jnp.zeros((1, 1))}
    log_prob = gaussian.log_prob(Gaussian(obs, jnp.zeros(1)), jnp.zeros((1, 4, 1)))
    steps = AttackedSteps(
        action=jnp.zeros((1, 4, 1)),
        log_prob=log_prob - jnp.log(jnp.array([[1.0, 2.0, 0.5, 2.0]])),
        advantage=jnp.array([[1.0, -1.0, 1.0, 1.0]]),
        weight=jnp.full((1, 4), 1 / 4),
    )
    loss = functools.partial(adgan.adversarial_loss, policy=LINEAR_POLICY, clip_ratio=0.2, horizon=1)
    np.testing.assert_allclose(loss(obs, steps, params), (1 - 1.2 + 0.8 + 2) / 4, rtol=1e-6)
    # Weights pick samples out.
    half = steps._replace(weight=jnp.array([[0.0, 0.75, 0.25, 0.0]]))
    np.testing.assert_allclose(loss(obs, half, params), (-1.2 * 3 + 0.8) / 4, rtol=1e-6)
    # The return is a sum over an episode's steps.
    episode = functools.partial(loss, horizon=2)(obs, steps, params)
    np.testing.assert_allclose(episode, 2 * (1 - 1.2 + 0.8 + 2) / 4, rtol=1e-6)


def test_hinge_loss_golden() -> None:
    # radius 0.5: raw perturbations are half of G(x) = (3, 4) resp. (0.3, 0.4) -> norms 2.5 and 0.25;
    # max(0, norm - 0.5) = 2 and 0; the third sample has weight 0. Mean 1. Scale and centre do not matter.
    identity, budget = Network(lambda key: (), lambda params, x: x), Budget(0.5)
    obs = jnp.array([[3.0, 4.0], [0.3, 0.4], [90.0, 0.0]])
    size = safe_norm(adgan.raw_perturbation(identity, (), obs, budget))
    loss = adgan.hinge_loss(size, jnp.array([0.5, 0.5, 0.0]), budget)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [
        # Scores of perturbed observations 0 and 2, of clean ones 1 and -1.
        # Least squares: generator ((0-1)^2 + (2-1)^2) / 2 = 1;
        # discriminator mean of ((1-1)^2 + 0^2) / 2 = 0 and ((-1-1)^2 + 2^2) / 2 = 4, so 2.
        ("lsgan", 1.0, 2.0),
        # softplus of -2, -1, 0, 1, 2: 0.1269280, 0.3132617, 0.6931472, 1.3132617, 2.1269280.
        # Generator, non-saturating: (softplus(-0) + softplus(-2)) / 2 = 0.4100376;
        # discriminator: (0.3132617 + 0.6931472 + 1.3132617 + 2.1269280) / 2 = 2.2232993.
        ("bce", 0.4100376, 2.2232993),
        # As printed: generator log(1 - D) = -softplus: -(0.6931472 + 2.1269280) / 2 = -1.4100376.
        ("bce_paper", -1.4100376, 2.2232993),
    ],
)
def test_gan_losses_golden(kind: str, generator: float, discriminator: float) -> None:
    fake, real, weight = jnp.array([0.0, 2.0]), jnp.array([1.0, -1.0]), jnp.full(2, 0.5)
    np.testing.assert_allclose(adgan.generator_gan_loss(fake, weight, kind), generator, rtol=1e-6)
    np.testing.assert_allclose(adgan.discriminator_loss(real, fake, weight, kind), discriminator, rtol=1e-6)
    # All three push the scores of perturbed observations up, and the discriminator the other way.
    up = jax.grad(lambda s: adgan.generator_gan_loss(s, weight, kind))(jnp.array([0.0, 0.5]))
    down = jax.grad(lambda s: adgan.discriminator_loss(real, s, weight, kind))(jnp.array([0.1, 0.5]))
    assert np.all(up < 0) and np.all(down > 0)


def attacked_steps(seed: int) -> tuple[jax.Array, AttackedSteps, dict]:
    """Random observations, query samples and victims of three tasks, none at a clip or a projection."""
    rng = np.random.default_rng(seed)
    victims = jax.vmap(lambda noise: jax.tree.map(lambda x: x + 0.1 * noise, random_like(POLICY.init, 3)))(
        jnp.arange(3.0)
    )
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    obs = draw(3, 8, 2)
    return obs, AttackedSteps(draw(3, 8, 2), draw(3, 8) - 2, draw(3, 8), jnp.full((3, 8), 1 / 24)), victims


def test_gradients_go_where_they_should() -> None:
    obs, steps, victims = attacked_steps(0)
    generator_params = random_like(ADGAN.generator.init, 1, size=1.0)
    discriminator_params = random_like(ADGAN.discriminator.init, 2)
    weight = jnp.full(obs.shape[:2], 1 / 24)

    def generator_total(params, victims):
        perturbed = adgan.perturb_with(ADGAN.generator, params, obs, BUDGET)
        adversarial = adgan.adversarial_loss(
            perturbed, steps, victims, policy=POLICY, clip_ratio=0.9, horizon=4
        )
        gan = adgan.generator_gan_loss(
            ADGAN.discriminator.apply(discriminator_params, perturbed), weight, "lsgan"
        )
        size = safe_norm(adgan.raw_perturbation(ADGAN.generator, params, obs, BUDGET))
        hinge = adgan.hinge_loss(size, weight, BUDGET)
        return adversarial + 0.8 * gan + 0.2 * hinge, (adversarial, gan, hinge)

    def discriminator_total(params):
        perturbed = adgan.perturb_with(ADGAN.generator, generator_params, obs, BUDGET)
        real, fake = (ADGAN.discriminator.apply(params, x) for x in (obs, perturbed))
        return adgan.discriminator_loss(real, fake, weight, "lsgan")

    @jax.jit
    def gradients():
        to_generator, to_victims = jax.grad(generator_total, argnums=(0, 1), has_aux=True)(
            generator_params, victims
        )[0]
        terms = jax.jacrev(lambda p: generator_total(p, victims)[1])(generator_params)
        return to_generator, to_victims, terms, jax.grad(discriminator_total)(discriminator_params)

    to_generator, to_victims, terms, to_discriminator = gradients()
    assert_no_leaf_is_zero(to_generator)
    for term in terms:
        assert_no_leaf_is_zero(term)
    assert_no_leaf_is_zero(to_discriminator)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), to_victims)


@functools.cache
def updater(config: AdversaryConfig, task_block: int = 0):
    """One compiled `update_adversary`."""
    networks: AdGAN = adgan.make_adgan(2, config)
    update = functools.partial(
        adgan.update_adversary,
        adgan=networks,
        policy=POLICY,
        budget=BUDGET,
        config=config,
        task_block=task_block,
    )
    return jax.jit(update)


def meta_batch() -> tuple:
    """Random support and query of three tasks, and the victims."""
    return random_experience(4, (3, 1, 2, 4)), random_experience(5, (3, 2, 4)), attacked_steps(0)[2]


@pytest.fixture(scope="module")
def state() -> adgan.AdversaryState:
    """A fresh adversary."""
    return adgan.init_adversary(jax.random.key(0), ADGAN, CONFIG)


@pytest.mark.parametrize("kind", ["lsgan", "bce", "bce_paper"])
def test_update_changes_everything_and_repeats_itself(kind: str, state: adgan.AdversaryState) -> None:
    update = updater(dataclasses.replace(CONFIG, gan_loss=kind))
    new, metrics = update(state, jax.random.key(1), *meta_batch())
    again, _ = update(state, jax.random.key(1), *meta_batch())
    other, _ = update(state, jax.random.key(2), *meta_batch())
    assert_trees_equal(new, again)
    for name in ("generator_params", "discriminator_params"):
        moved = jax.tree.map(lambda a, b: a - b, getattr(new, name), getattr(state, name))
        assert_no_leaf_is_zero(moved)
    # The key shuffles the minibatches.
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), new.generator_params, other.generator_params)
    assert any(jax.tree.leaves(differs))
    assert all(np.isfinite(value) for value in metrics.values())
    assert set(metrics) == {
        f"adversary/{name}"
        for name in (
            *("adversarial_loss", "gan_loss", "hinge_loss", "discriminator_loss", "clean_accuracy"),
            *("perturbed_accuracy", "raw_size", "at_bound", "generator_gradient_norm", "skipped"),
        )
    }


@pytest.mark.parametrize("task_block", [1, 2])
def test_tasks_in_blocks_change_no_update(task_block: int, state: adgan.AdversaryState) -> None:
    # Masked samples too, so that tasks weigh differently in a minibatch.
    support, query, victims = meta_batch()
    mask = query.trajectory.mask.at[0, 1, 1:].set(0.0)
    query = query._replace(trajectory=query.trajectory._replace(mask=mask))
    inputs = (state, jax.random.key(1), support, query, victims)
    together, blocked = (updater(CONFIG, block)(*inputs) for block in (3, task_block))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, blocked)


def test_gan_weight_zero_cuts_the_discriminator_off(state: adgan.AdversaryState) -> None:
    stranger = state.replace(discriminator_params=random_like(ADGAN.discriminator.init, 9))
    for gan_weight, cut_off in ((0.0, True), (CONFIG.gan_weight, False)):
        weights = state.weights._replace(gan=jnp.float32(gan_weight))
        a, b = (
            updater(CONFIG)(s.replace(weights=weights), jax.random.key(1), *meta_batch())[0].generator_params
            for s in (state, stranger)
        )
        same = jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.all(x == y)), a, b))
        assert all(same) == cut_off


def test_a_generator_step_lowers_the_surrogate_return(state: adgan.AdversaryState) -> None:
    # Only the adversarial loss, one minibatch: one Adam step along its gradient at ratio 1.
    config = dataclasses.replace(CONFIG, num_minibatches=1)
    state = state.replace(weights=adgan.LossWeights(jnp.float32(0), jnp.float32(0)))
    support, query, victims = meta_batch()
    # Query data collected by this generator: perturbed observations are its own.
    trajectory = query.trajectory
    perturbed = adgan.perturb_with(ADGAN.generator, state.generator_params, trajectory.obs, BUDGET)
    query = query._replace(trajectory=trajectory._replace(perturbed_obs=perturbed))
    new, _ = updater(config)(state, jax.random.key(0), support, query, victims)

    obs, action = (x.reshape(3, 8, 2) for x in (trajectory.obs, trajectory.action))

    @jax.jit
    def taken(victims, perturbed):
        dist = jax.vmap(POLICY.apply)(victims, perturbed.reshape(3, 8, 2))
        return gaussian.log_prob(dist._replace(log_std=dist.log_std[:, None]), action)

    log_prob = taken(victims, perturbed)
    steps = AttackedSteps(action, log_prob, query.advantage.reshape(3, 8), adgan.query_weights(query))

    @jax.jit
    def loss(generator_params):
        perturbed = adgan.perturb_with(ADGAN.generator, generator_params, obs, BUDGET)
        return adgan.adversarial_loss(perturbed, steps, victims, policy=POLICY, clip_ratio=0.2, horizon=4)

    before, after = loss(state.generator_params), loss(new.generator_params)
    assert after < before - 1e-6


def test_the_strongest_generator_is_kept(state: adgan.AdversaryState) -> None:
    support, query, victims = meta_batch()

    def update(state: adgan.AdversaryState, reward: float) -> adgan.AdversaryState:
        attacked = query.trajectory._replace(reward=jnp.full_like(query.trajectory.reward, reward))
        return updater(CONFIG)(
            state, jax.random.key(1), support, query._replace(trajectory=attacked), victims
        )[0]

    first = update(state, 1.0)
    second = update(first, 3.0)
    third = update(second, -1.0)
    horizon = query.trajectory.reward.shape[-1]
    # A batch is collected by the generator as it was before the update that reads it.
    for after, before, attacked_return in ((first, state, 1), (second, state, 1), (third, second, -1)):
        assert_trees_equal(after.strongest_params, before.generator_params)
        assert after.strongest_return == attacked_return * horizon
