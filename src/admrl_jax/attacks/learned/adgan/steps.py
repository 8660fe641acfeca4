"""adGAN's update: minibatches of a meta-batch, each one discriminator step, then one generator step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.base import Scene
from admrl_jax.attacks.generator import GeneratorParams, add_projected
from admrl_jax.attacks.learned.adgan.losses import (
    AttackedSteps,
    adversarial_loss,
    discriminator_loss,
    generator_gan_loss,
    hinge_loss,
    is_clean_threshold,
)
from admrl_jax.attacks.learned.adgan.state import AdGAN, AdGANState
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params, all_finite, where_tree

Loss = Callable[[Params, Any], tuple[jax.Array, Metrics]]


class Samples(NamedTuple):
    """Steps of all tasks, `M` per task, in no particular order.

    Attributes:
        steps: what the adversarial loss reads; None for support data, which it does not.
        obs: `[N, M, O]` true observations.
        mask: `[N, M]`.
        radius: `[N, M]` of the budget under which they were perturbed.
    """

    steps: AttackedSteps | None
    obs: jax.Array
    mask: jax.Array
    radius: jax.Array


class Minibatch(NamedTuple):
    """Samples of one discriminator step and one generator step, leading axis the tasks.

    Attributes:
        steps: query samples.
        victims: the tasks' adapted policies.
        clean: `[N, M + M', O]` true observations: those of `steps`, then those of support samples.
        weight: `[N, M + M']`, summing to one over all tasks.
        attacked: `[N, M + M']` the same of what was collected under attack: 0 where the radius is.
        radius: `[N, M + M']`.
    """

    steps: AttackedSteps
    victims: Params
    clean: jax.Array
    weight: jax.Array
    attacked: jax.Array
    radius: jax.Array

    def budget(self, units: Units) -> Budget:
        """Under which every sample was perturbed."""
        return Budget(self.radius, units)


def update_adgan(
    adgan: AdGAN,
    state: AdGANState,
    key: jax.Array,
    meta_params: Params,
    batch: MetaBatch,
    budget: Budget,
    axis: TaskAxis = TaskAxis(),
) -> tuple[AdGANState, Metrics]:
    """Passes of discriminator and generator over a meta-batch.

    The GAN and hinge losses read support and query data, the adversarial loss query data only
    (paper, section IV.C). A minibatch in which anything is not finite changes nothing, Adam's states
    included, and is counted.

    Args:
        adgan: networks, optimisers and settings.
        state: what training carries.
        key: shuffles the samples.
        meta_params: the victim's; only its adapted policies are read.
        batch: collected under this generator.
        budget: only its units are read; the batch says under which radii it was collected.
        axis: how tasks are computed.

    Returns:
        `(state, metrics)`, metrics averaged over minibatches; `adversary/skipped` is the share of
        minibatches that changed nothing.
    """
    support = flatten_samples(batch.support, batch.support_radius)
    query = flatten_samples(batch.query, batch.query_radius)
    horizon = batch.query.trajectory.reward.shape[-1]
    count = adgan.config.num_minibatches

    def step(state: AdGANState, shuffled: tuple[Samples, Samples]) -> tuple[AdGANState, Metrics]:
        minibatch = join(*shuffled, batch.adapted_params, axis)
        return train_on_minibatch(adgan, state, minibatch, budget.units, horizon, axis)

    def epoch(state: AdGANState, key: jax.Array) -> tuple[AdGANState, Metrics]:
        key_query, key_support = jax.random.split(key)
        from_query = split_randomly(key_query, query, count)
        from_support = split_randomly(key_support, support._replace(steps=None), count)
        return jax.lax.scan(step, state, (from_query, from_support))

    state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, adgan.config.num_epochs))
    return state, jax.tree.map(jnp.mean, metrics)


def flatten_samples(experience: Experience, radius: jax.Array | float) -> Samples:
    """Steps of a batch with fields `[N, ..., H, *]`, all axes between task and feature merged.

    Args:
        experience: support or query data.
        radius: `[N]` under which it was collected.
    """
    num_tasks = experience.advantage.shape[0]
    taken = experience.trajectory

    def merge(x: jax.Array, *feature: int) -> jax.Array:
        return x.reshape(num_tasks, -1, *feature)

    steps = AttackedSteps(
        action=merge(taken.action, taken.action.shape[-1]),
        log_prob=merge(taken.log_prob),
        advantage=merge(experience.advantage),
        weight=per_task_mean(merge(taken.mask)),
    )
    mask = merge(taken.mask)
    per_sample = jnp.broadcast_to(jnp.reshape(jnp.asarray(radius), (-1, 1)), mask.shape)
    return Samples(steps, merge(taken.obs, taken.obs.shape[-1]), mask, per_sample)


def per_task_mean(mask: jax.Array) -> jax.Array:
    """Weights `[N, M]` that sum to one over each task's valid steps."""
    return mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)


def split_randomly(key: jax.Array, samples: Samples, count: int) -> Samples:
    """Shuffles samples in one order for all tasks and splits them: leaves `[count, N, M / count, ...]`."""
    order = jax.random.permutation(key, samples.mask.shape[1]).reshape(count, -1)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf[:, order], 1, 0), samples)


def join(query: Samples, support: Samples, victims: Params, axis: TaskAxis) -> Minibatch:
    """A minibatch of query and support samples."""
    assert query.steps is not None
    mask = jnp.concatenate([query.mask, support.mask], axis=1)
    radius = jnp.concatenate([query.radius, support.radius], axis=1)
    return Minibatch(
        steps=query.steps._replace(weight=scale_to_one(query.steps.weight, axis)),
        victims=victims,
        clean=jnp.concatenate([query.obs, support.obs], axis=1),
        weight=scale_to_one(mask, axis),
        attacked=scale_to_one(mask * (radius > 0), axis),
        radius=radius,
    )


def scale_to_one(weight: jax.Array, axis: TaskAxis) -> jax.Array:
    """Weights scaled such that those of all devices sum to one."""
    return weight / jnp.maximum(axis.total(jnp.sum(weight)), 1e-12)


def train_on_minibatch(
    adgan: AdGAN, state: AdGANState, minibatch: Minibatch, units: Units, horizon: int, axis: TaskAxis
) -> tuple[AdGANState, Metrics]:
    """One discriminator step, then one generator step against the new discriminator."""

    def summed(loss: Loss, params: Params) -> tuple[Params, Metrics]:
        """Gradient and metrics of a loss that is a sum over tasks: all tasks, all devices."""
        gradient = jax.grad(loss, has_aux=True)
        return axis.total(axis.sum_blocks(lambda block: gradient(params, block), minibatch))

    discriminate = functools.partial(discriminator_objective, adgan, state.attack_params, units)
    d_gradient, d_metrics = summed(discriminate, state.discriminator)
    discriminator, d_opt_state = apply_gradient(
        adgan.discriminator_optimizer, d_gradient, state.discriminator_opt_state, state.discriminator
    )
    generate = functools.partial(generator_objective, adgan, state, discriminator, units, horizon)
    g_gradient, g_metrics = summed(generate, state.generator)
    generator, g_opt_state = apply_gradient(
        adgan.generator_optimizer, g_gradient, state.generator_opt_state, state.generator
    )
    learned = (generator, discriminator, g_opt_state, d_opt_state)
    finite = all_finite((d_gradient, g_gradient, learned))
    new_state = state.replace(
        generator=generator,
        discriminator=discriminator,
        generator_opt_state=g_opt_state,
        discriminator_opt_state=d_opt_state,
    )
    metrics = {
        **d_metrics,
        **g_metrics,
        "adversary/generator_gradient_norm": optax.tree.norm(g_gradient),
        "adversary/skipped": 1.0 - finite.astype(jnp.float32),
    }
    return where_tree(finite, new_state, state), metrics


def apply_gradient(
    optimizer: optax.GradientTransformation, gradient: Params, opt_state: Any, params: Params
) -> tuple[Params, Any]:
    """One step of an optimiser: `(params, opt_state)`."""
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def discriminator_objective(
    adgan: AdGAN, attack: GeneratorParams, units: Units, params: Params, batch: Minibatch
) -> tuple[jax.Array, Metrics]:
    """The discriminator's loss on some tasks of a minibatch, with its metrics (Eq. 9, negated)."""
    kind, score = adgan.config.gan_loss, adgan.discriminator.apply
    perturbed = adgan.generator.perturb(attack, batch.clean, Scene(()), batch.budget(units))
    real = score(params, attack.inputs.apply(batch.clean))
    fake = score(params, attack.inputs.apply(perturbed))
    loss = discriminator_loss(real, fake, batch.weight, batch.attacked, kind)
    threshold = is_clean_threshold(kind)
    return loss, {
        "adversary/discriminator_loss": loss,
        "adversary/clean_accuracy": jnp.sum((real > threshold) * batch.weight),
        "adversary/perturbed_accuracy": jnp.sum((fake < threshold) * batch.attacked),
    }


def generator_objective(
    adgan: AdGAN,
    state: AdGANState,
    discriminator: Params,
    units: Units,
    horizon: int,
    params: Params,
    batch: Minibatch,
) -> tuple[jax.Array, Metrics]:
    """The generator's loss on some tasks of a minibatch, with its metrics (Eq. 12)."""
    attack = state.attack_params._replace(network=params)
    budget = batch.budget(units)
    raw = adgan.generator.raw(attack, batch.clean, Scene(()), budget)
    perturbed = add_projected(raw, batch.clean, budget)
    adversarial = adversarial_loss(
        perturbed[:, : batch.steps.action.shape[1]],
        batch.steps,
        batch.victims,
        policy=adgan.policy,
        clip_ratio=adgan.config.clip_ratio,
        horizon=horizon,
    )
    fake = adgan.discriminator.apply(discriminator, attack.inputs.apply(perturbed))
    gan = generator_gan_loss(fake, batch.attacked, adgan.config.gan_loss)
    size = safe_norm(raw)
    hinge = hinge_loss(size, batch.attacked, budget)
    return adversarial + state.weights.gan * gan + state.weights.hinge * hinge, {
        "adversary/adversarial_loss": adversarial,
        "adversary/gan_loss": gan,
        "adversary/hinge_loss": hinge,
        "adversary/raw_size": jnp.sum(size * batch.attacked),
        "adversary/at_bound": jnp.sum((size >= batch.radius) * batch.attacked),
    }
