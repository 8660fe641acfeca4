"""The losses of adGAN's generator and discriminator (paper, Eq. 9 to 12).

The generator is extra input layers of the victim, so with the adapted parameters fixed the gradient of the
return with respect to the generator is exactly the score function on query data. Its actions' randomness
is the victim's own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.threat import Budget
from admrl_jax.core import gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params


class AttackedSteps(NamedTuple):
    """Query samples of all tasks, `M` per task, that the adversarial loss reads.

    Attributes:
        action: `[N, M, A]` actions taken under the perturbed observations.
        log_prob: `[N, M]` their log density when they were taken.
        advantage: `[N, M]`.
        weight: `[N, M]`, zero on masked steps; weighted sums are means where the weights sum to one.
    """

    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    weight: jax.Array


def adversarial_loss(
    perturbed: jax.Array,
    steps: AttackedSteps,
    adapted_params: Params,
    *,
    policy: Policy,
    clip_ratio: float,
    horizon: int,
) -> jax.Array:
    """Surrogate return of the victim's episodes `[]`, which the generator minimises (Eq. 10).

    With the generator that collected the data the ratio is 1 and the gradient is that of
    `sum(log_prob * advantage)` over an episode's steps, the score function. The clipped ratio limits
    further steps on the same data (as in PPO, with the sign turned).

    Args:
        perturbed: `[N, M, O]` observations as the attack makes them, its projection included; differentiated.
        steps: query samples, fields `[N, M, ...]`.
        adapted_params: the victims, leading axis `N`; constants here.
        policy: victim's policy.
        clip_ratio: relative change of a probability beyond which nothing more is gained.
        horizon: steps of an episode: the return is a sum over them, not a mean.
    """
    dist = jax.vmap(policy.apply)(jax.lax.stop_gradient(adapted_params), perturbed)
    dist = dist._replace(log_std=dist.log_std[:, None])
    ratio = jnp.exp(gaussian.log_prob(dist, steps.action) - steps.log_prob)
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    surrogate = jnp.maximum(ratio * steps.advantage, clipped * steps.advantage)
    return horizon * jnp.sum(surrogate * steps.weight)


def hinge_loss(size: jax.Array, weight: jax.Array, budget: Budget) -> jax.Array:
    """Mean of `max(0, ||G(x)||_2 - c)` `[]`, before projection (Eq. 11).

    Args:
        size: `[...]` lengths of the raw perturbations.
        weight: `[...]`, summing to one.
        budget: `c` is its radius, `[]` or `[...]`.
    """
    return jnp.sum(jnp.maximum(size - budget.radius, 0.0) * weight)


def generator_gan_loss(score_perturbed: jax.Array, weight: jax.Array, kind: str) -> jax.Array:
    """What the generator gains `[]` when perturbed observations pass for clean ones (Eq. 9).

    Args:
        score_perturbed: `[...]` discriminator scores of perturbed observations.
        weight: `[...]`, summing to one.
        kind: `lsgan`, `bce` (non-saturating) or `bce_paper` (the saturating form as printed).
    """
    losses = {
        "lsgan": lambda s: jnp.square(s - 1),
        "bce": lambda s: jax.nn.softplus(-s),
        "bce_paper": lambda s: -jax.nn.softplus(s),
    }
    return jnp.sum(losses[kind](score_perturbed) * weight)


def is_clean_threshold(kind: str) -> float:
    """Scores above this pass for clean."""
    return 0.5 if kind == "lsgan" else 0.0


def discriminator_loss(
    score_clean: jax.Array, score_perturbed: jax.Array, weight: jax.Array, attacked: jax.Array, kind: str
) -> jax.Array:
    """The discriminator's loss `[]`: clean towards 1, perturbed towards 0 (Eq. 9, negated).

    Args:
        score_clean: `[...]` of all samples.
        score_perturbed: `[...]` likewise.
        weight: `[...]` of the clean ones, summing to one.
        attacked: `[...]` of the perturbed ones, likewise: 0 where nothing may be perturbed.
        kind: see `generator_gan_loss`.
    """
    if kind == "lsgan":
        real, fake = 0.5 * jnp.square(score_clean - 1), 0.5 * jnp.square(score_perturbed)
    else:
        real, fake = jax.nn.softplus(-score_clean), jax.nn.softplus(score_perturbed)
    return jnp.sum(real * weight + fake * attacked)
