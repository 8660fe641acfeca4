"""adGAN: the three losses of the generator, the discriminator's loss, and their joint update.

Paper, Eq. 9 to 12. The generator is extra input layers of the victim, so with the adapted
parameters fixed the gradient of the return with respect to the generator is exactly the score
function on query data. Its actions' randomness is the victim's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from admrl_jax import gaussian, mapped_axis
from admrl_jax.attacks import Attack, Budget, generator_attack, safe_norm
from admrl_jax.attacks.generator import add_projected, perturb_with, raw_perturbation
from admrl_jax.blocks import map_blocks, sum_blocks
from admrl_jax.config import AdversaryConfig
from admrl_jax.maml import query_weights
from admrl_jax.networks import Network, Policy, make_discriminator, make_generator
from admrl_jax.rollout import episode_returns
from admrl_jax.types import Experience, Metrics, Params


class AdGAN(NamedTuple):
    """The adversary's networks, their optimisers, and the generator as an attack."""

    generator: Network
    discriminator: Network
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    attack: Attack


class LossWeights(NamedTuple):
    """Weights of the generator's losses (alpha and beta in Eq. 12), arrays `[]`."""

    gan: jax.Array
    hinge: jax.Array


class AdversaryState(struct.PyTreeNode):
    """Everything of adGAN that training carries.

    Attributes:
        weights: of the losses.
        generator_params: the generator that attacks.
        discriminator_params: its critic.
        generator_opt_state: Adam's.
        discriminator_opt_state: Adam's.
        strongest_params: of all generators so far, the one whose query batch returned least. Against a frozen
            victim that is the attacker's choice; training wanders off and back.
        strongest_return: `[]` mean return of that batch.
    """

    weights: LossWeights
    generator_params: Params
    discriminator_params: Params
    generator_opt_state: optax.OptState
    discriminator_opt_state: optax.OptState
    strongest_params: Params
    strongest_return: jax.Array


def make_adgan(obs_size: int, config: AdversaryConfig) -> AdGAN:
    """Builds generator, discriminator and two Adam optimisers."""
    generator = make_generator(obs_size, hidden_sizes=config.hidden_sizes)
    return AdGAN(
        generator=generator,
        discriminator=make_discriminator(obs_size, hidden_sizes=config.hidden_sizes),
        generator_optimizer=optax.adam(config.generator_lr),
        discriminator_optimizer=optax.adam(config.discriminator_lr),
        attack=generator_attack(generator),
    )


def init_adversary(key: jax.Array, adgan: AdGAN, config: AdversaryConfig) -> AdversaryState:
    """Fresh networks and optimiser states, with the loss weights of `config`."""
    key_generator, key_discriminator = jax.random.split(key)
    generator_params = adgan.generator.init(key_generator)
    discriminator_params = adgan.discriminator.init(key_discriminator)
    return AdversaryState(
        weights=LossWeights(jnp.float32(config.gan_weight), jnp.float32(config.hinge_weight)),
        generator_params=generator_params,
        discriminator_params=discriminator_params,
        generator_opt_state=adgan.generator_optimizer.init(generator_params),
        discriminator_opt_state=adgan.discriminator_optimizer.init(discriminator_params),
        strongest_params=generator_params,
        strongest_return=jnp.full((), jnp.inf, float),
    )


class AttackedSteps(NamedTuple):
    """Query samples of all tasks, `M` per task, that the adversarial loss reads.

    Attributes:
        action: `[N, M, A]` actions taken under the perturbed observations.
        log_prob: `[N, M]` their log density when they were taken.
        advantage: `[N, M]`.
        weight: `[N, M]`, zero on masked steps; what is summed over them is a mean if they sum to one.
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
    `sum(log_prob * advantage)` over an episode's steps, the score function. The clipped ratio keeps
    further steps on the same data honest (as in PPO, with the sign turned).

    Args:
        perturbed: `[N, M, O]` observations as the attack makes them, its projection included; differentiated.
        steps: query samples, fields `[N, M, ...]`.
        adapted_params: the victims, leading axis `N`; constants here.
        policy: victim's policy.
        clip_ratio: largest relative change of a probability that still earns.
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
        weight: `[...]`, in all one.
        budget: `c` is its radius.
    """
    return jnp.sum(jnp.maximum(size - budget.radius, 0.0) * weight)


def generator_gan_loss(score_perturbed: jax.Array, weight: jax.Array, kind: str) -> jax.Array:
    """What the generator gains `[]` when perturbed observations pass for clean ones (Eq. 9).

    Args:
        score_perturbed: `[...]` discriminator scores of perturbed observations.
        weight: `[...]`, in all one.
        kind: `lsgan`, `bce` (non-saturating) or `bce_paper` (the saturating form as printed).
    """
    losses = {
        "lsgan": lambda s: jnp.square(s - 1),
        "bce": lambda s: jax.nn.softplus(-s),
        "bce_paper": lambda s: -jax.nn.softplus(s),
    }
    return jnp.sum(losses[kind](score_perturbed) * weight)


def discriminator_loss(
    score_clean: jax.Array, score_perturbed: jax.Array, weight: jax.Array, kind: str
) -> jax.Array:
    """The discriminator's loss `[]`: clean towards 1, perturbed towards 0 (Eq. 9, negated)."""
    if kind == "lsgan":
        loss = 0.5 * (jnp.square(score_clean - 1) + jnp.square(score_perturbed))
    else:
        loss = jax.nn.softplus(-score_clean) + jax.nn.softplus(score_perturbed)
    return jnp.sum(loss * weight)


class _Minibatch(NamedTuple):
    """Samples of one discriminator step and one generator step, leading axis the tasks.

    Attributes:
        steps: query samples.
        victims: the tasks' adapted policies.
        clean: `[N, M + M', O]` true observations: those of `steps`, then those of support samples.
        weight: `[N, M + M']`, over all tasks one.
    """

    steps: AttackedSteps
    victims: Params
    clean: jax.Array
    weight: jax.Array


def update_adversary(
    state: AdversaryState,
    key: jax.Array,
    support: Experience,
    query: Experience,
    adapted_params: Params,
    *,
    adgan: AdGAN,
    policy: Policy,
    budget: Budget,
    config: AdversaryConfig,
    task_block: int = 0,
    axis_name: str | None = None,
) -> tuple[AdversaryState, Metrics]:
    """One pass (or `config.num_epochs`) of discriminator and generator over a meta-batch.

    The GAN and hinge losses read support and query data, the adversarial loss query data only
    (paper, section IV.C). Each minibatch gives one discriminator step, then one generator step. One
    in which anything is not finite changes nothing, Adam's states included, and is counted.

    Args:
        state: networks and optimisers.
        key: shuffles the samples.
        support: fields `[N, S, K, H, ...]`.
        query: fields `[N, K, H, ...]`.
        adapted_params: leading axis `N`, the policies that collected `query`.
        adgan: networks and optimisers.
        policy: victim's policy.
        budget: the budget the data was collected under.
        config: loss kind, clip, passes and minibatches; the loss weights stand in `state`.
        task_block: tasks of a minibatch computed together, see `blocks.at_once`.
        axis_name: mapped axis over which tasks are spread.

    Returns:
        `(state, metrics)`, metrics averaged over minibatches; `adversary/skipped` is the share of
        minibatches that changed nothing.
    """
    num_tasks = query.advantage.shape[0]

    def samples(x: jax.Array, feature_axes: int) -> jax.Array:
        return x.reshape(num_tasks, -1, *x.shape[x.ndim - feature_axes :])

    taken = query.trajectory
    action = samples(taken.action, 1)

    def log_prob(task: tuple[Params, jax.Array, jax.Array]) -> jax.Array:
        victim, perturbed_obs, action = task
        return gaussian.log_prob(policy.apply(victim, perturbed_obs), action)

    query_steps = AttackedSteps(
        action=action,
        log_prob=map_blocks(log_prob, (adapted_params, samples(taken.perturbed_obs, 1), action), task_block),
        advantage=samples(query.advantage, 0),
        weight=query_weights(query, axis_name),
    )
    support_obs, query_obs = samples(support.trajectory.obs, 1), samples(taken.obs, 1)
    support_mask, query_mask = samples(support.trajectory.mask, 0), samples(taken.mask, 0)

    def minibatches(key: jax.Array, x):
        """Shuffles samples and splits them: leaves `[B, N, M / B, ...]`."""
        size = jax.tree.leaves(x)[0].shape[1]
        order = jax.random.permutation(key, size).reshape(config.num_minibatches, -1)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf[:, order], 1, 0), x)

    def step(state: AdversaryState, shuffled):
        (steps, query_obs, query_mask), (support_obs, support_mask) = shuffled
        batch = _Minibatch(
            steps=steps._replace(weight=_in_all_one(steps.weight, axis_name)),
            victims=adapted_params,
            clean=jnp.concatenate([query_obs, support_obs], axis=1),
            weight=_in_all_one(jnp.concatenate([query_mask, support_mask], axis=1), axis_name),
        )
        score = adgan.discriminator.apply
        threshold = 0.5 if config.gan_loss == "lsgan" else 0.0

        def summed(loss: Callable[[Params, _Minibatch], tuple[jax.Array, Metrics]], params: Params):
            """Gradient and metrics of a loss that is a sum over tasks: all tasks, all devices."""
            gradient = jax.grad(loss, has_aux=True)
            parts = sum_blocks(lambda block: gradient(params, block), batch, task_block)
            return mapped_axis.total(parts, axis_name)

        def discriminate(params: Params, batch: _Minibatch) -> tuple[jax.Array, Metrics]:
            perturbed = perturb_with(adgan.generator, state.generator_params, batch.clean, budget)
            real = score(params, budget.to_units(batch.clean))
            fake = score(params, budget.to_units(perturbed))
            loss = discriminator_loss(real, fake, batch.weight, config.gan_loss)
            return loss, {
                "adversary/discriminator_loss": loss,
                "adversary/clean_accuracy": jnp.sum((real > threshold) * batch.weight),
                "adversary/perturbed_accuracy": jnp.sum((fake < threshold) * batch.weight),
            }

        d_gradient, d_metrics = summed(discriminate, state.discriminator_params)
        d_updates, d_opt_state = adgan.discriminator_optimizer.update(
            d_gradient, state.discriminator_opt_state, state.discriminator_params
        )
        discriminator_params = optax.apply_updates(state.discriminator_params, d_updates)

        def generate(params: Params, batch: _Minibatch) -> tuple[jax.Array, Metrics]:
            raw = raw_perturbation(adgan.generator, params, batch.clean, budget)
            perturbed = add_projected(raw, batch.clean, budget)
            adversarial = adversarial_loss(
                perturbed[:, : query_obs.shape[1]],
                batch.steps,
                batch.victims,
                policy=policy,
                clip_ratio=config.clip_ratio,
                horizon=taken.reward.shape[-1],
            )
            fake = score(discriminator_params, budget.to_units(perturbed))
            gan = generator_gan_loss(fake, batch.weight, config.gan_loss)
            size = safe_norm(raw)
            hinge = hinge_loss(size, batch.weight, budget)
            return adversarial + state.weights.gan * gan + state.weights.hinge * hinge, {
                "adversary/adversarial_loss": adversarial,
                "adversary/gan_loss": gan,
                "adversary/hinge_loss": hinge,
                "adversary/raw_size": jnp.sum(size * batch.weight),
                "adversary/at_bound": jnp.sum((size >= budget.radius) * batch.weight),
            }

        g_gradient, g_metrics = summed(generate, state.generator_params)
        g_updates, g_opt_state = adgan.generator_optimizer.update(
            g_gradient, state.generator_opt_state, state.generator_params
        )
        generator_params = optax.apply_updates(state.generator_params, g_updates)
        new_state = state.replace(
            generator_params=generator_params,
            discriminator_params=discriminator_params,
            generator_opt_state=g_opt_state,
            discriminator_opt_state=d_opt_state,
        )
        learned = generator_params, discriminator_params, g_opt_state, d_opt_state
        finite = _is_finite((d_gradient, g_gradient, learned))
        metrics = {
            **d_metrics,
            **g_metrics,
            "adversary/generator_gradient_norm": optax.tree.norm(g_gradient),
            "adversary/skipped": 1.0 - finite.astype(jnp.float32),
        }
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state), metrics

    def epoch(state: AdversaryState, key: jax.Array):
        key_query, key_support = jax.random.split(key)
        from_query = minibatches(key_query, (query_steps, query_obs, query_mask))
        from_support = minibatches(key_support, (support_obs, support_mask))
        return jax.lax.scan(step, state, (from_query, from_support))

    attacked_return = mapped_axis.mean(jnp.mean(episode_returns(taken)), axis_name)
    # An episode that a broken number cut short has no return to judge an attack by.
    cut_short = mapped_axis.total(jnp.sum(taken.diverged), axis_name) > 0
    state = _keep_strongest(state, jnp.where(cut_short, jnp.inf, attacked_return))
    state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, config.num_epochs))
    return state, jax.tree.map(jnp.mean, metrics)


def _keep_strongest(state: AdversaryState, attacked_return: jax.Array) -> AdversaryState:
    """Notes the generator that collected a batch if no earlier one lowered the return further."""
    is_stronger = attacked_return < state.strongest_return
    return state.replace(
        strongest_params=jax.tree.map(
            lambda new, old: jnp.where(is_stronger, new, old),
            state.generator_params,
            state.strongest_params,
        ),
        strongest_return=jnp.where(is_stronger, attacked_return, state.strongest_return),
    )


def _is_finite(tree: Any) -> jax.Array:
    """Whether every entry of every leaf is finite, `[]`."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _in_all_one(weight: jax.Array, axis_name: str | None) -> jax.Array:
    """Weights scaled such that those of all devices sum to one."""
    return weight / jnp.maximum(mapped_axis.total(jnp.sum(weight), axis_name), 1e-12)
