"""Attackers that are stochastic policies themselves, trained by the policy gradient with a value baseline.

The attacker's choice at a step is a Gaussian vector; a subclass of the idea says how a choice becomes a
perturbation. The victim is part of its environment (Zhang et al. 2021, "SA-RL" and "ATLA").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.base import Attack, Scene, Victim
from admrl_jax.attacks.generator import Generator
from admrl_jax.attacks.learned.outcomes import outcomes
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, ThreatModel, Units
from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import make_network
from admrl_jax.core.returns import discounted_returns, gae
from admrl_jax.core.settings import FRACTION, NOT_NEGATIVE, POSITIVE, REPEATS, SIZES, STEP_SIZE, UNIT
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params, all_finite, where_tree


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """Network and effort of an attacker that is a policy."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of actor and critic."""
    knows_task: bool = True
    """The actor also reads the task and whether the policy has adapted; the critic always does."""
    init_std: Annotated[float, POSITIVE] = 0.5
    """Standard deviation of its first choices."""
    learning_rate: Annotated[float, STEP_SIZE] = 1e-3
    """Step size of Adam, for both."""
    num_epochs: Annotated[int, REPEATS] = 10
    """Steps on a meta-batch, at most."""
    clip_ratio: Annotated[float, FRACTION] = 0.2
    """Clip of the probability ratio."""
    max_kl: Annotated[float, POSITIVE] = 0.03
    """Steps on a meta-batch end once the choices' distribution has moved this far."""
    discount: Annotated[float, UNIT] = 0.99
    """Of the victim's rewards."""
    gae_lambda: Annotated[float, UNIT] = 0.95
    """Trace parameter of the advantages."""
    support_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of choices in support episodes; they are judged by how the task came out after adaptation."""


class ActorParams(NamedTuple):
    """Parameters of the attacker.

    Attributes:
        network: of its mean choice.
        log_std: `[U]`.
        inputs: units in which it reads observations.
    """

    network: Params
    log_std: jax.Array
    inputs: Units


class Noted(NamedTuple):
    """What a trajectory keeps of a step.

    Attributes:
        choice: `[U]`.
        log_prob: `[]` of the choice.
    """

    choice: jax.Array
    log_prob: jax.Array


class ActorState(NamedTuple):
    """What training carries: actor, critic and Adam's state of both."""

    actor: ActorParams
    critic: Params
    opt_state: Any


class Steps(NamedTuple):
    """Steps of some episodes of one task, as the losses read them."""

    actor_inputs: jax.Array
    critic_inputs: jax.Array
    noted: Noted
    advantage: jax.Array
    target: jax.Array
    weight: jax.Array


Realise = Callable[[jax.Array, jax.Array, Scene, Budget, jax.Array], jax.Array]
"""`(choice [U], obs [O], scene, budget, key) -> perturbed_obs [O]`, within the budget."""


def make_policy_gradient(
    name: str,
    config: PolicyGradientConfig,
    victim: Victim,
    *,
    size: int,
    realise: Realise,
    threat: ThreatModel,
) -> AttackTrainer:
    """PPO on the attacker's choices, minimising the victim's return.

    Args:
        name: of the trainer.
        config: its settings.
        victim: what it is built against.
        size: length of a choice.
        realise: see `Realise`.
        threat: of the attack.
    """
    reads = Generator(make_network(1, 1), victim, knows_task=config.knows_task)
    critic_reads = reads._replace(knows_task=True)
    scene_size = 1 + victim.task_size
    inputs_size = victim.obs_size + config.knows_task * scene_size
    actor = make_network(inputs_size, size, hidden_sizes=config.hidden_sizes)
    critic = make_network(victim.obs_size + scene_size + 1, 1, hidden_sizes=config.hidden_sizes)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))

    def fresh(key: jax.Array, inputs: Units = Units()) -> ActorParams:
        log_std = jnp.full((size,), jnp.log(config.init_std))
        return ActorParams(actor.init(key), log_std, inputs)

    def choose(params: ActorParams, features: jax.Array) -> Gaussian:
        return Gaussian(actor.apply(params.network, features), params.log_std)

    def perturb(
        params: ActorParams, memory: Noted, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Noted]:
        key_choice, key_realise = jax.random.split(key)
        dist = choose(params, reads.features(params.inputs, obs, scene, budget))
        noise = jax.random.normal(key_choice, (size,), obs.dtype)
        choice = gaussian.from_noise(dist, noise)
        noted = Noted(choice, gaussian.log_prob_of_noise(dist, noise))
        return realise(choice, obs, scene, budget, key_realise), noted

    def reset(key: jax.Array) -> Noted:
        return Noted(jnp.zeros((size,)), jnp.zeros(()))

    def init(key: jax.Array, inputs: Units, start_from: ActorParams | None = None) -> ActorState:
        key_actor, key_critic = jax.random.split(key)
        params = fresh(key_actor, inputs) if start_from is None else start_from
        critic_params = critic.init(key_critic)
        trained = (params.network, params.log_std, critic_params)
        return ActorState(params, critic_params, optimizer.init(trained))

    def read(
        state: ActorState, experience: Experience, task: Any, is_query: bool, outcome: jax.Array
    ) -> Steps:
        """Steps of one batch `[K, H]` of one task."""
        taken = experience.trajectory
        scene, nothing = Scene((), task, is_query), Budget(0.0)
        time = jnp.broadcast_to(jnp.arange(taken.mask.shape[-1]) / taken.mask.shape[-1], taken.mask.shape)
        seen = critic_reads.features(state.actor.inputs, taken.obs, scene, nothing)
        seen = jnp.concatenate([seen, time[..., None]], axis=-1)
        if is_query:
            value = critic.apply(state.critic, seen)[..., 0]
            advantage = gae(taken.reward, value, taken.mask, config.discount, config.gae_lambda)
            target = discounted_returns(taken.reward, taken.mask, config.discount)
        else:
            advantage, target = jnp.broadcast_to(outcome, taken.mask.shape), jnp.zeros_like(taken.mask)
        features = reads.features(state.actor.inputs, taken.obs, scene, nothing)
        return Steps(features, seen, taken.attack_record, advantage, target, taken.mask)

    def normalised(steps: Steps, axis: TaskAxis) -> Steps:
        """Advantages of all tasks with mean 0 and deviation 1."""
        count = jnp.maximum(axis.total(jnp.sum(steps.weight)), 1.0)
        mean = axis.total(jnp.sum(steps.advantage * steps.weight)) / count
        rest = steps.advantage - mean
        spread = jnp.sqrt(axis.total(jnp.sum(jnp.square(rest) * steps.weight)) / count)
        return steps._replace(advantage=rest / (spread + 1e-6), weight=steps.weight / count)

    def loss(trained: tuple, inputs: Units, scale: jax.Array, data: tuple[Steps, Steps]) -> tuple:
        """Summed over the tasks that it is given: `(loss, kl)`."""
        network, log_std, critic_params = trained
        total, kl = jnp.zeros(()), jnp.zeros(())
        for steps, weight, is_query in ((data[0], 1.0, True), (data[1], config.support_weight, False)):
            dist = choose(ActorParams(network, log_std, inputs), steps.actor_inputs)
            log_ratio = jnp.clip(gaussian.log_prob(dist, steps.noted.choice) - steps.noted.log_prob, -10, 10)
            ratio = jnp.exp(log_ratio)
            clipped = jnp.clip(ratio, 1 - config.clip_ratio, 1 + config.clip_ratio)
            worst = jnp.maximum(ratio * steps.advantage, clipped * steps.advantage)
            total += weight * jnp.sum(worst * steps.weight)
            kl += 0.5 * jnp.sum((ratio - 1 - log_ratio) * steps.weight)
            if is_query:
                value = critic.apply(critic_params, steps.critic_inputs)[..., 0]
                total += jnp.sum(jnp.square((value - steps.target) / scale) * steps.weight)
        return total, kl

    def update(
        state: ActorState,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[ActorState, Metrics]:
        outcome = outcomes(batch, victim, axis)

        def query(experience: Experience, task: Any) -> Steps:
            return read(state, experience, task, True, jnp.zeros(()))

        def support(experience: Experience, task: Any, outcome: jax.Array) -> Steps:
            return jax.vmap(lambda one: read(state, one, task, False, outcome))(experience)

        data = (
            normalised(jax.vmap(query)(batch.query, batch.tasks), axis),
            normalised(jax.vmap(support)(batch.support, batch.tasks, outcome), axis),
        )
        targets = data[0].target
        scale = 1e-3 + jnp.sqrt(axis.total(jnp.sum(jnp.square(targets) * data[0].weight)))

        def step(carry: tuple, _: None):
            trained, opt_state, going = carry
            differentiate = jax.value_and_grad(loss, has_aux=True)
            (value, kl), gradient = axis.total(
                axis.sum_blocks(lambda block: differentiate(trained, state.actor.inputs, scale, block), data)
            )
            updates, new_opt_state = optimizer.update(gradient, opt_state, trained)
            new = (optax.apply_updates(trained, updates), new_opt_state)
            going = going & (kl <= config.max_kl)
            finite = all_finite((gradient, new))
            kept = where_tree(finite & going, new, (trained, opt_state))
            return (*kept, going), (value, kl, 1.0 - finite.astype(value.dtype))

        start = ((state.actor.network, state.actor.log_std, state.critic), state.opt_state, jnp.array(True))
        (trained, opt_state, _), found = jax.lax.scan(step, start, length=config.num_epochs)
        values, kls, skipped = found
        new = ActorState(ActorParams(*trained[:2], state.actor.inputs), trained[2], opt_state)
        return new, {
            "adversary/surrogate": values[-1],
            "adversary/kl": kls[-1],
            "adversary/choice_std": jnp.mean(jnp.exp(new.actor.log_std)),
            "adversary/skipped": jnp.mean(skipped),
        }

    return AttackTrainer(
        name=f"{name} {config} {victim.name}",
        attack=Attack(fresh, reset, perturb, threat, record=lambda memory: memory),
        init=init,
        params=lambda state: state.actor,
        update=update,
    )
