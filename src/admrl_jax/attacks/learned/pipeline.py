"""A generator trained on the return after adaptation, with a gradient through the adaptation itself."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.base import AttackSpec, Scene, Victim
from admrl_jax.attacks.generator import Generator, GeneratorParams, generator_attack, make_generator
from admrl_jax.attacks.learned.outcomes import outcomes
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core import gaussian
from admrl_jax.core.settings import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    REPEATS,
    SIZES,
    STEP_SIZE,
    ConfigError,
    one_of,
)
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params, all_finite, where_tree

THREAT = make_threat(label="through adaptation", norm="l2", strength="L2 radius", knowledge="pipeline")

SIDES = ("query", "both", "pipeline")
"""What the gradient knows; see `PipelineConfig.side`."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Network, effort and size of its steps."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of the generator."""
    knows_task: bool = True
    """The generator also reads the task and whether the policy has adapted."""
    side: Annotated[str, one_of(*SIDES)] = "pipeline"
    """query: the gradient of the query return with respect to the query's perturbations. both: also the score
    of the support actions. pipeline: also the way of the support's perturbations through the adaptation."""
    learning_rate: Annotated[float, STEP_SIZE] = 1e-3
    """Step size of Adam."""
    num_steps: Annotated[int, REPEATS] = 10
    """Adam steps per meta-batch, those that are taken back included."""
    clip_ratio: Annotated[float, FRACTION] = 0.2
    """Clip of the probability ratios."""
    max_kl: Annotated[float, POSITIVE] = 0.03
    """How far a meta-batch may move the actions' distributions. A step beyond is taken back and the next is
    half as long: a good generator is not thrown away by one batch."""
    gradient_clip: Annotated[float, POSITIVE] = 1.0
    """Largest norm of a gradient."""
    support_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the score of the support actions."""


class PipelineState(NamedTuple):
    """What training carries.

    Attributes:
        params: the generator.
        opt_state: its optimiser's.
        scale: `[]` of its steps, which the trust region sets.
    """

    params: GeneratorParams
    opt_state: Any
    scale: jax.Array


class Pipeline(NamedTuple):
    """What is trained against whom; constants of the functions below.

    Attributes:
        config: settings.
        victim: the policy's functions.
        generator: what is trained.
        optimizer: of its network.
    """

    config: PipelineConfig
    victim: Victim
    generator: Generator
    optimizer: optax.GradientTransformation


def make_pipeline(config: PipelineConfig, victim: Victim) -> AttackTrainer:
    """Minimises the query return over the generator's parameters.

    With `theta'` the policy that perturbed support data makes, the gradient of the query return has three
    parts: the score of the query actions at their perturbed observations; the same through `theta'`, which
    the support's perturbations move while its actions and advantages stay; and the score of the support
    actions, which the perturbations made more or less likely, weighed by the return after adaptation. All
    are ratios of densities, clipped as in PPO.

    Raises:
        ConfigError: the gradient is to go through an adaptation that the victim does not have.
    """
    if config.side == "pipeline" and victim.adapt_step is None:
        raise ConfigError("side: 'pipeline' is not accepted for a victim that does not adapt")
    optimizer = optax.chain(optax.clip_by_global_norm(config.gradient_clip), optax.adam(config.learning_rate))
    pipeline = Pipeline(config, victim, _generator(config, victim), optimizer)
    return AttackTrainer(
        name=f"pipeline {config} {victim.name}",
        attack=generator_attack(pipeline.generator, THREAT),
        init=functools.partial(start, pipeline),
        params=lambda state: state.params,
        update=functools.partial(update, pipeline),
    )


def _generator(config: PipelineConfig, victim: Victim) -> Generator:
    return make_generator(victim, config.hidden_sizes, knows_task=config.knows_task)


def start(
    pipeline: Pipeline, key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None
) -> PipelineState:
    """A fresh state, see `InitFn`."""
    params = pipeline.generator.start(key, inputs, start_from)
    return PipelineState(params, pipeline.optimizer.init(params.network), jnp.ones(()))


def ratio_at(
    pipeline: Pipeline, params: Params, batch: Experience, obs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Ratios of the taken actions' densities at other observations, and the KL's estimate `[]`."""
    taken = batch.trajectory
    log_ratio = gaussian.log_prob(pipeline.victim.policy.apply(params, obs), taken.action) - taken.log_prob
    log_ratio = jnp.clip(log_ratio, -10.0, 10.0)
    ratio = jnp.exp(log_ratio)
    kl = jnp.sum((ratio - 1 - log_ratio) * taken.mask) / jnp.maximum(jnp.sum(taken.mask), 1.0)
    return ratio, kl


def surrogate(clip_ratio: float, ratio: jax.Array, advantage: jax.Array, mask: jax.Array) -> jax.Array:
    """Clipped, for whoever minimises; a sum over the steps of an episode, a mean over episodes."""
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    loss = jnp.maximum(ratio * advantage, clipped * advantage)
    return jnp.sum(loss * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def one_task(
    network: Params,
    pipeline: Pipeline,
    params: GeneratorParams,
    meta_params: Params,
    budget: Budget,
    data: tuple[MetaBatch, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """`(loss [], kl [])` of a network on one task.

    Args:
        network: of the generator.
        pipeline: constants.
        params: of the generator; its network is not used.
        meta_params: of the victim.
        budget: of the attack; its radius is that of the data.
        data: the task's entry of a meta-batch, and how it came out.
    """
    config, victim = pipeline.config, pipeline.victim
    batch, outcome = data
    params = params._replace(network=network)

    def moved(experience: Experience, is_query: bool) -> jax.Array:
        scene = Scene((), batch.tasks, is_query)
        # As the data were collected: one of the two sides may not be attacked.
        there = budget._replace(radius=batch.query_radius if is_query else batch.support_radius)
        return pipeline.generator.perturb(params, experience.trajectory.obs, scene, there)

    steps = range(batch.support.advantage.shape[0])
    support = [jax.tree.map(lambda x, s=s: x[s], (batch.support_params, batch.support)) for s in steps]
    score, kl = jnp.zeros(()), jnp.zeros(())
    # The first batch is of the unadapted policy; later ones of policies that depend on it.
    acting = support[0][0] if config.side == "pipeline" else batch.adapted_params
    for policy_params, experience in support if config.side != "query" else ():
        obs = moved(experience, False)
        if config.side == "pipeline":
            assert victim.adapt_step is not None
            seen = experience.trajectory._replace(perturbed_obs=obs)
            acting = victim.adapt_step(meta_params, acting, experience._replace(trajectory=seen))
        policy_params = victim.policy.acting(policy_params, experience.trajectory.context)
        ratio, moved_kl = ratio_at(pipeline, policy_params, experience, obs)
        mask = experience.trajectory.mask
        score += surrogate(config.clip_ratio, ratio, outcome * jnp.ones_like(ratio), mask) / len(support)
        kl = jnp.maximum(kl, moved_kl)
    ratio, moved_kl = ratio_at(pipeline, acting, batch.query, moved(batch.query, True))
    value = surrogate(config.clip_ratio, ratio, batch.query.advantage, batch.query.trajectory.mask)
    return value + config.support_weight * score, jnp.maximum(kl, moved_kl)


def update(
    pipeline: Pipeline,
    state: PipelineState,
    key: jax.Array,
    meta_params: Params,
    batch: MetaBatch,
    budget: Budget,
    axis: TaskAxis = TaskAxis(),
) -> tuple[PipelineState, Metrics]:
    """Adam steps inside a trust region, see `UpdateFn`."""
    config = pipeline.config
    num_tasks = batch.query.advantage.shape[0] * axis.num_devices
    data = (batch, outcomes(batch, pipeline.victim, axis))

    def step(carry: tuple, is_last: jax.Array):
        here, kept, scale = carry

        def value_and_grad(one: tuple):
            loss = jax.value_and_grad(one_task, has_aux=True)
            return loss(here[0], pipeline, state.params, meta_params, budget, one)

        summed = axis.total(axis.sum_tasks(value_and_grad, data))
        (value, kl), gradient = jax.tree.map(lambda x: x / num_tasks, summed)
        updates, opt_state = pipeline.optimizer.update(gradient, here[1], here[0])
        updates = jax.tree.map(lambda x: scale * x, updates)
        ahead = (optax.apply_updates(here[0], updates), opt_state)
        finite, inside = all_finite((value, gradient, ahead)), kl <= config.max_kl
        kept = where_tree(inside & finite, here, kept)
        # Whatever lies beyond is taken back; the last is only looked at.
        here = where_tree(inside & finite & ~is_last, ahead, kept)
        scale = jnp.where(inside, jnp.minimum(1.2 * scale, 1.0), 0.5 * scale)
        return (here, kept, scale), (value, kl, 1.0 - finite.astype(value.dtype), inside)

    first = (state.params.network, state.opt_state)
    is_last = jnp.arange(config.num_steps + 1) == config.num_steps
    (_, kept, scale), found = jax.lax.scan(step, (first, first, state.scale), is_last)
    values, kls, skipped, inside = found
    metrics = {
        "adversary/surrogate": values[-1],
        "adversary/kl": kls[-1],
        "adversary/steps_kept": jnp.mean(inside, dtype=float),
        "adversary/skipped": jnp.mean(skipped),
    }
    return PipelineState(state.params._replace(network=kept[0]), kept[1], scale), metrics


SPEC = AttackSpec(
    "pipeline",
    THREAT,
    "#D62728",
    PipelineConfig,
    lambda config, victim: generator_attack(_generator(config, victim), THREAT),
    make_pipeline,
)
