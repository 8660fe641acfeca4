"""adGAN's losses by hand, and the generator's gradient against a closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_no_leaf_is_zero, random_like, tiny_policy

from admrl_jax.attacks.base import Scene, Victim
from admrl_jax.attacks.generator import Generator, GeneratorParams
from admrl_jax.attacks.learned.adgan import losses
from admrl_jax.attacks.learned.adgan.config import AdGANConfig
from admrl_jax.attacks.learned.adgan.losses import AttackedSteps
from admrl_jax.attacks.learned.adgan.state import make_adgan
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.networks import Network, Policy

POLICY = tiny_policy()
VICTIM = Victim(POLICY, 2, 2)
ADGAN = make_adgan(VICTIM, AdGANConfig(hidden_sizes=(4,)))
SCENE = Scene(())
BUDGET = Budget(jnp.float32(0.3), Units(jnp.zeros(2), jnp.ones(2)))

CONSTANT = Generator(
    Network(lambda key: jnp.zeros(1), lambda params, x: jnp.broadcast_to(params, x.shape)), VICTIM
)
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
        perturbed = CONSTANT.perturb(GeneratorParams(shift, Units()), obs, SCENE, Budget(1.0))
        return losses.adversarial_loss(
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
    loss = functools.partial(losses.adversarial_loss, policy=LINEAR_POLICY, clip_ratio=0.2, horizon=1)
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
    identity = Generator(Network(lambda key: (), lambda params, x: x), VICTIM)
    budget = Budget(0.5)
    obs = jnp.array([[3.0, 4.0], [0.3, 0.4], [90.0, 0.0]])
    size = safe_norm(identity.raw(GeneratorParams((), Units()), obs, SCENE, budget))
    loss = losses.hinge_loss(size, jnp.array([0.5, 0.5, 0.0]), budget)
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
    np.testing.assert_allclose(losses.generator_gan_loss(fake, weight, kind), generator, rtol=1e-6)
    np.testing.assert_allclose(
        losses.discriminator_loss(real, fake, weight, weight, kind), discriminator, rtol=1e-6
    )
    # All three push the scores of perturbed observations up, and the discriminator the other way.
    up = jax.grad(lambda s: losses.generator_gan_loss(s, weight, kind))(jnp.array([0.0, 0.5]))
    down = jax.grad(lambda s: losses.discriminator_loss(real, s, weight, weight, kind))(jnp.array([0.1, 0.5]))
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
    generator_params = random_like(ADGAN.generator.network.init, 1, size=1.0)
    discriminator_params = random_like(ADGAN.discriminator.init, 2)
    weight = jnp.full(obs.shape[:2], 1 / 24)

    def generator_total(network, victims):
        params = GeneratorParams(network, Units())
        perturbed = ADGAN.generator.perturb(params, obs, SCENE, BUDGET)
        adversarial = losses.adversarial_loss(
            perturbed, steps, victims, policy=POLICY, clip_ratio=0.9, horizon=4
        )
        gan = losses.generator_gan_loss(
            ADGAN.discriminator.apply(discriminator_params, perturbed), weight, "lsgan"
        )
        size = safe_norm(ADGAN.generator.raw(params, obs, SCENE, BUDGET))
        hinge = losses.hinge_loss(size, weight, BUDGET)
        return adversarial + 0.8 * gan + 0.2 * hinge, (adversarial, gan, hinge)

    def discriminator_total(params):
        attack = GeneratorParams(generator_params, Units())
        perturbed = ADGAN.generator.perturb(attack, obs, SCENE, BUDGET)
        real, fake = (ADGAN.discriminator.apply(params, x) for x in (obs, perturbed))
        return losses.discriminator_loss(real, fake, weight, weight, "lsgan")

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
