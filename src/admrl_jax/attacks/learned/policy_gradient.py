"""Attackers that are stochastic policies themselves, trained by the policy gradient with a value baseline.

The attacker's choice at a step is a Gaussian vector; a subclass of the idea says how a choice becomes a
perturbation. The victim is part of its environment (Zhang et al. 2021, "SA-RL" and "ATLA").
"""

import functools
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
from admrl_jax.core.networks import Network, make_network
from admrl_jax.core.returns import discounted_returns, gae
from admrl_jax.core.settings import FRACTION, NOT_NEGATIVE, POSITIVE, REPEATS, SIZES, STEP_SIZE, UNIT
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params, all_finite, where_tree

NO_NOISE = -20.0
"""Logarithm of a standard deviation that moves nothing."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """Network and effort of an attacker that is a policy."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of actor and critic."""
    knows_task: bool = True
    """The actor also reads the task and whether the policy has adapted; the critic always does."""
    init_std: Annotated[float, POSITIVE] = 0.5
    """Standard deviation of its first choices."""
    learning_rate: Annotated[float, STEP_SIZE] = 3e-3
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


class Game(NamedTuple):
    """Who plays against whom; constants of the functions below.

    Attributes:
        config: settings.
        victim: the policy's functions.
        actor: network of the mean choice.
        critic: network of the victim's value.
        size: length of a choice.
        optimizer: of both.
    """

    config: PolicyGradientConfig
    victim: Victim
    actor: Network
    critic: Network
    size: int
    optimizer: optax.GradientTransformation

    def reads(self, params: ActorParams, obs: jax.Array, scene: Scene) -> jax.Array:
        """What the actor reads `[..., I]`."""
        reader = Generator(self.actor, self.victim, knows_task=self.config.knows_task)
        return reader.features(params.inputs, obs, scene, Budget(0.0))

    def choose(self, params: ActorParams, features: jax.Array) -> Gaussian:
        """The distribution of a choice."""
        return Gaussian(self.actor.apply(params.network, features), params.log_std)


def make_policy_gradient(
    name: str,
    config: PolicyGradientConfig,
    victim: Victim,
    *,
    size: int,
    realise: Realise,
    threat: ThreatModel,
    first_size: float = 1.0,
) -> AttackTrainer:
    """PPO on the attacker's choices, minimising the victim's return.

    Args:
        name: of the trainer.
        config: its settings.
        victim: what it is built against.
        size: length of a choice.
        realise: see `Realise`.
        threat: of the attack.
        first_size: multiplies the usual size of its first mean choices.
    """
    scene_size = 1 + victim.task_size
    inputs_size = victim.obs_size + config.knows_task * scene_size
    game = Game(
        config,
        victim,
        make_network(inputs_size, size, hidden_sizes=config.hidden_sizes, output_scale=first_size),
        make_network(victim.obs_size + scene_size + 1, 1, hidden_sizes=config.hidden_sizes),
        size,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate)),
    )

    def perturb(
        params: ActorParams, memory: Noted, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Noted]:
        key_choice, key_realise = jax.random.split(key)
        dist = game.choose(params, game.reads(params, obs, scene))
        noise = jax.random.normal(key_choice, (size,), obs.dtype)
        choice = gaussian.from_noise(dist, noise)
        noted = Noted(choice, gaussian.log_prob_of_noise(dist, noise))
        return realise(choice, obs, scene, budget, key_realise), noted

    def reset(key: jax.Array) -> Noted:
        return Noted(jnp.zeros((size,)), jnp.zeros(()))

    return AttackTrainer(
        name=f"{name} {config} {victim.name}",
        attack=Attack(functools.partial(fresh, game), reset, perturb, threat, record=lambda memory: memory),
        init=functools.partial(start, game),
        params=lambda state: state.actor,
        update=functools.partial(update, game),
        settled=settled,
    )


def fresh(game: Game, key: jax.Array, inputs: Units = Units()) -> ActorParams:
    """An untrained attacker."""
    log_std = jnp.full((game.size,), jnp.log(game.config.init_std))
    return ActorParams(game.actor.init(key), log_std, inputs)


def start(game: Game, key: jax.Array, inputs: Units, start_from: ActorParams | None = None) -> ActorState:
    """A fresh state, see `InitFn`."""
    key_actor, key_critic = jax.random.split(key)
    params = fresh(game, key_actor, inputs)
    if start_from is not None:
        # It may come without the noise that it needs to learn, see `settled`.
        params = start_from._replace(log_std=params.log_std)
    critic_params = game.critic.init(key_critic)
    trained = (params.network, params.log_std, critic_params)
    return ActorState(params, critic_params, game.optimizer.init(trained))


def settled(params: ActorParams) -> ActorParams:
    """The attacker without the noise of its choices, with which it only learns."""
    return params._replace(log_std=jnp.full_like(params.log_std, NO_NOISE))


def read_steps(
    game: Game, state: ActorState, experience: Experience, task: Any, is_query: bool, outcome: jax.Array
) -> Steps:
    """Steps of one batch `[K, H]` of one task.

    Args:
        game: constants.
        state: of the attacker, whose critic judges query steps.
        experience: the batch.
        task: the task.
        is_query: whether the victim had adapted.
        outcome: `[]` by which support steps are judged.
    """
    config, taken = game.config, experience.trajectory
    scene = Scene((), task, is_query)
    time = jnp.broadcast_to(jnp.arange(taken.mask.shape[-1]) / taken.mask.shape[-1], taken.mask.shape)
    reader = Generator(game.critic, game.victim, knows_task=True)
    seen = reader.features(state.actor.inputs, taken.obs, scene, Budget(0.0))
    seen = jnp.concatenate([seen, time[..., None]], axis=-1)
    if is_query:
        value = game.critic.apply(state.critic, seen)[..., 0]
        advantage = gae(taken.reward, value, taken.mask, config.discount, config.gae_lambda)
        target = discounted_returns(taken.reward, taken.mask, config.discount)
    else:
        advantage, target = jnp.broadcast_to(outcome, taken.mask.shape), jnp.zeros_like(taken.mask)
    features = game.reads(state.actor, taken.obs, scene)
    return Steps(features, seen, taken.attack_record, advantage, target, taken.mask)


def normalised(steps: Steps, axis: TaskAxis) -> Steps:
    """Advantages of all tasks with mean 0 and deviation 1, weights with sum 1."""
    count = jnp.maximum(axis.total(jnp.sum(steps.weight)), 1.0)
    mean = axis.total(jnp.sum(steps.advantage * steps.weight)) / count
    rest = steps.advantage - mean
    spread = jnp.sqrt(axis.total(jnp.sum(jnp.square(rest) * steps.weight)) / count)
    return steps._replace(advantage=rest / (spread + 1e-6), weight=steps.weight / count)


def ppo_loss(
    trained: tuple, game: Game, inputs: Units, scale: jax.Array, data: tuple[Steps, Steps]
) -> tuple[jax.Array, jax.Array]:
    """`(loss [], kl [])`, summed over the tasks that it is given.

    Args:
        trained: actor's network and log_std, critic's parameters.
        game: constants.
        inputs: units in which the actor reads.
        scale: `[]` of the critic's targets.
        data: query and support steps.
    """
    network, log_std, critic_params = trained
    config, total, kl = game.config, jnp.zeros(()), jnp.zeros(())
    for steps, weight in zip(data, (1.0, config.support_weight), strict=True):
        dist = game.choose(ActorParams(network, log_std, inputs), steps.actor_inputs)
        log_ratio = jnp.clip(gaussian.log_prob(dist, steps.noted.choice) - steps.noted.log_prob, -10, 10)
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - config.clip_ratio, 1 + config.clip_ratio)
        worst = jnp.maximum(ratio * steps.advantage, clipped * steps.advantage)
        total += weight * jnp.sum(worst * steps.weight)
        kl += 0.5 * jnp.sum((ratio - 1 - log_ratio) * steps.weight)
    query = data[0]
    value = game.critic.apply(critic_params, query.critic_inputs)[..., 0]
    return total + jnp.sum(jnp.square((value - query.target) / scale) * query.weight), kl


def update(
    game: Game,
    state: ActorState,
    key: jax.Array,
    meta_params: Params,
    batch: MetaBatch,
    budget: Budget,
    axis: TaskAxis = TaskAxis(),
) -> tuple[ActorState, Metrics]:
    """Clipped steps on a meta-batch, see `UpdateFn`."""
    outcome = outcomes(batch, game.victim, axis)

    def query(experience: Experience, task: Any) -> Steps:
        return read_steps(game, state, experience, task, True, jnp.zeros(()))

    def support(experience: Experience, task: Any, outcome: jax.Array) -> Steps:
        return jax.vmap(lambda one: read_steps(game, state, one, task, False, outcome))(experience)

    data = (
        normalised(jax.vmap(query)(batch.query, batch.tasks), axis),
        normalised(jax.vmap(support)(batch.support, batch.tasks, outcome), axis),
    )
    targets = data[0].target
    scale = 1e-3 + jnp.sqrt(axis.total(jnp.sum(jnp.square(targets) * data[0].weight)))
    differentiate = jax.value_and_grad(ppo_loss, has_aux=True)

    def step(carry: tuple, _: None):
        trained, opt_state, going = carry
        (value, kl), gradient = axis.total(
            axis.sum_blocks(
                lambda block: differentiate(trained, game, state.actor.inputs, scale, block), data
            )
        )
        updates, new_opt_state = game.optimizer.update(gradient, opt_state, trained)
        new = (optax.apply_updates(trained, updates), new_opt_state)
        going = going & (kl <= game.config.max_kl)
        finite = all_finite((gradient, new))
        kept = where_tree(finite & going, new, (trained, opt_state))
        return (*kept, going), (value, kl, 1.0 - finite.astype(value.dtype))

    first = ((state.actor.network, state.actor.log_std, state.critic), state.opt_state, jnp.array(True))
    (trained, opt_state, _), found = jax.lax.scan(step, first, length=game.config.num_epochs)
    values, kls, skipped = found
    new = ActorState(ActorParams(*trained[:2], state.actor.inputs), trained[2], opt_state)
    return new, {
        "adversary/surrogate": values[-1],
        "adversary/kl": kls[-1],
        "adversary/choice_std": jnp.mean(jnp.exp(new.actor.log_std)),
        "adversary/skipped": jnp.mean(skipped),
    }
