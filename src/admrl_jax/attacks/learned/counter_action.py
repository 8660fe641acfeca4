"""A generator fitted through the policy: it turns actions against themselves, without rewards."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.base import AttackSpec, Scene, Victim
from admrl_jax.attacks.generator import Generator, GeneratorParams, generator_attack, make_generator
from admrl_jax.attacks.learned.fit import fit
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core.settings import COUNT, POSITIVE, REPEATS, SIZES, STEP_SIZE, ConfigError, one_of
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params

THREAT = make_threat(label="counter-action", norm="l2", strength="L2 radius", knowledge="policy and task")

FITS = ("query", "both", "adaptation")
"""Where the fit looks; see `CounterActionConfig.through`."""
SEEN_STEPS = 20
"""Of an episode, on which policies of other tasks are compared."""
TARGETS = ("opposite", "other_task")
"""Where adapted policies are sent."""


@dataclass(frozen=True, kw_only=True)
class CounterActionConfig:
    """Network and effort of the fit."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of the generator."""
    learning_rate: Annotated[float, STEP_SIZE] = 3e-3
    """Step size of Adam."""
    num_steps: Annotated[int, REPEATS] = 25
    """Adam steps per meta-batch."""
    num_samples: Annotated[int, COUNT] = 256
    """States of each task that a step looks at; all if there are fewer."""
    through: Annotated[str, one_of(*FITS)] = "query"
    """query: states of query episodes under the adapted policy. both: also states of support episodes, under
    the policy before it adapts. adaptation: also how the policy adapts to perturbed support data."""
    under_attack: bool = False
    """Episodes are collected under the attack as it is, and the action meant is that of the policy that
    the same support data would make if it were seen as it is. Else they are clean, and none are needed
    for an attack that is not there yet."""
    target: Annotated[str, one_of(*TARGETS)] = "opposite"
    """opposite: away from the action meant. other_task: also towards that of another task of the batch,
    whose adapted policy agrees least with it."""
    knows_task: bool = False
    """The generator also reads the task and whether the policy has adapted."""
    action_limit: Annotated[float, POSITIVE] = 1e6
    """Raw actions count up to this magnitude; the environment's own limit counts where it is smaller."""


class CounterActionState(NamedTuple):
    """What training carries: the generator and Adam's state."""

    params: GeneratorParams
    opt_state: optax.OptState


class Fit(NamedTuple):
    """What is fitted against whom; constants of the functions below.

    Attributes:
        config: settings.
        victim: the policy's functions.
        generator: what is fitted.
        limit: magnitude up to which raw actions count.
        optimizer: of its network.
    """

    config: CounterActionConfig
    victim: Victim
    generator: Generator
    limit: jax.Array
    optimizer: optax.GradientTransformation


def make_counter_action(config: CounterActionConfig, victim: Victim) -> AttackTrainer:
    """Minimises `clip(mu(x + G(x))) . clip(mu(x))` over episodes, under the policies that acted there.

    Through adaptation, `mu` on the left is that of the policy that the perturbed support data would make,
    its actions and advantages as they are.

    Raises:
        ConfigError: through adaptation, and the victim has none.
    """
    if victim.adapt_step is None:
        for name, refused in (("through", "adaptation"), ("under_attack", True)):
            if getattr(config, name) == refused:
                raise ConfigError(f"{name}: {refused!r} is not accepted for a victim that does not adapt")
    fitted = Fit(
        config,
        victim,
        make_generator(victim, config.hidden_sizes, knows_task=config.knows_task),
        jnp.minimum(config.action_limit, victim.action_limit),
        optax.adam(config.learning_rate),
    )
    return AttackTrainer(
        name=f"counter_action {config} {victim.name}",
        attack=generator_attack(fitted.generator, THREAT),
        init=functools.partial(start, fitted),
        params=lambda state: state.params,
        update=functools.partial(update, fitted),
        is_offline=not config.under_attack,
    )


def start(
    fitted: Fit, key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None
) -> CounterActionState:
    """A fresh state, see `InitFn`."""
    params = fitted.generator.start(key, inputs, start_from)
    return CounterActionState(params, fitted.optimizer.init(params.network))


def adapt(
    fitted: Fit, meta_params: Params, acting: Params, support: Sequence[tuple], see: Callable
) -> Params:
    """The policy that support data makes, seen in another way; its actions and advantages stay."""
    assert fitted.victim.adapt_step is not None
    for _, batch in support:
        seen = batch.trajectory._replace(perturbed_obs=see(batch.trajectory.obs))
        acting = fitted.victim.adapt_step(meta_params, acting, batch._replace(trajectory=seen))
    return acting


def meant_policy(fitted: Fit, meta_params: Params, batch: MetaBatch) -> Params:
    """Of one task: what its support data would make if it were seen as it is."""
    support = in_turn(batch.support_params, batch.support)
    return adapt(fitted, meta_params, support[0][0], support, lambda obs: obs)


def agreement(
    fitted: Fit,
    acting: Params,
    meant: Params,
    batch: Experience,
    perturb: Callable,
    instead: Params | None = None,
) -> jax.Array:
    """Mean product `[]` of the actions that `acting` takes under attack and that `meant` takes without.

    Less that with the actions of `instead`, if given.
    """

    def action(params: Params, obs: jax.Array) -> jax.Array:
        return jnp.clip(fitted.victim.policy.apply(params, obs).mean, -fitted.limit, fitted.limit)

    obs, mask = batch.trajectory.obs, batch.trajectory.mask
    wanted = action(meant, obs) if instead is None else action(meant, obs) - action(instead, obs)
    product = jnp.sum(action(acting, perturb(obs)) * wanted, axis=-1)
    return jnp.sum(product * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def least_alike(fitted: Fit, everyone: Params, meant: Params, query: Experience) -> Params:
    """Of one task: the policy of all tasks, leading axis `N`, that agrees least with its own on its query."""
    seen = jax.tree.map(lambda x: x[:, :: max(1, x.shape[1] // SEEN_STEPS)], query)

    def score(other: Params) -> jax.Array:
        return agreement(fitted, other, meant, seen, lambda obs: obs)

    scores = jax.vmap(score)(everyone)
    return jax.tree.map(lambda x: x[jnp.argmin(scores)], everyone)


def fit_loss(
    network: Params,
    fitted: Fit,
    params: GeneratorParams,
    meta_params: Params,
    budget: Budget,
    task: "OneTask",
) -> jax.Array:
    """The agreement `[]` that a network leaves on one task.

    Args:
        network: of the generator.
        fitted: constants.
        params: of the generator; its network is not used.
        meta_params: of the victim.
        budget: of the attack.
        task: steps of it.
    """
    params = params._replace(network=network)

    def moving(is_query: bool) -> Callable:
        scene = Scene((), task.task, is_query)
        return lambda obs: fitted.generator.perturb(params, obs, scene, budget)

    support = in_turn(task.policies, task.support)
    acting, total = task.adapted, jnp.zeros(())
    if fitted.config.through == "adaptation":
        acting = adapt(fitted, meta_params, support[0][0], support, moving(False))
    if fitted.config.through != "query":
        for params_then, batch in support:
            policy = fitted.victim.policy.acting(params_then, batch.trajectory.context)
            total += agreement(fitted, policy, policy, batch, moving(False))
    return total + agreement(fitted, acting, task.meant, task.query, moving(True), task.instead)


def update(
    fitted: Fit,
    state: CounterActionState,
    key: jax.Array,
    meta_params: Params,
    batch: MetaBatch,
    budget: Budget,
    axis: TaskAxis = TaskAxis(),
) -> tuple[CounterActionState, Metrics]:
    """Adam steps on a meta-batch, see `UpdateFn`."""
    config, meant, instead = fitted.config, batch.adapted_params, None
    num_tasks = batch.query.advantage.shape[0] * axis.num_devices
    if config.under_attack:
        meant = axis.map(lambda one: meant_policy(fitted, meta_params, one), batch)
    if config.target == "other_task":
        if num_tasks < 2:
            raise ConfigError("target: 'other_task' is not accepted with one task; accepted: 2 or more")
        everyone = axis.every(meant)
        instead = axis.map(lambda one: least_alike(fitted, everyone, *one), (meant, batch.query))

    def value_and_grad(network: Params, key: jax.Array) -> tuple[jax.Array, Params]:
        def of_task(drawn: tuple) -> tuple[jax.Array, Params]:
            task = draw(drawn, config.num_samples)
            return jax.value_and_grad(fit_loss)(network, fitted, state.params, meta_params, budget, task)

        drawn = (axis.split_key(key, num_tasks), batch, meant, instead)
        summed = axis.total(axis.sum_tasks(of_task, drawn))
        return jax.tree.map(lambda x: x / num_tasks, summed)

    keys = jax.random.split(key, config.num_steps)
    network, opt_state, losses, skipped = fit(
        value_and_grad, fitted.optimizer, state.params.network, state.opt_state, keys
    )
    metrics = {"adversary/agreement": losses[-1], "adversary/skipped": jnp.mean(skipped)}
    return CounterActionState(state.params._replace(network=network), opt_state), metrics


def in_turn(policies: Params, support: Experience) -> list[tuple[Params, Experience]]:
    """The steps of adaptation of one task, leading axis `S`, each with the policy that collected it."""
    steps = range(support.advantage.shape[0])
    return [jax.tree.map(lambda x, s=s: x[s], (policies, support)) for s in steps]


class OneTask(NamedTuple):
    """Some steps of one task.

    Attributes:
        adapted: policy that collected the query data.
        meant: policy whose actions the attack is to prevent.
        instead: policy of another task; None if it does not matter.
        query: fields `[1, M, ...]`.
        policies: that collected the support data, leading axis `S`.
        support: fields `[S, 1, M, ...]`.
        task: the task.
    """

    adapted: Params
    meant: Params
    instead: Params | None
    query: Experience
    policies: Params
    support: Experience
    task: Any


def draw(drawn: tuple[jax.Array, MetaBatch, Params, Params | None], num_samples: int) -> OneTask:
    """Random steps of one task.

    Args:
        drawn: a key, its entry of a meta-batch, the policy that is meant, the one to act as instead.
        num_samples: steps of every experience.
    """
    key, batch, meant, instead = drawn
    key_query, key_support = jax.random.split(key)

    def some(key: jax.Array, experience: Experience) -> Experience:
        count = experience.advantage.size
        # With replacement: permutations would take a third of the time of a step.
        every = jnp.arange(count)
        chosen = jax.random.randint(key, (num_samples,), 0, count) if num_samples < count else every
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:])[chosen][None], experience)

    keys = jax.random.split(key_support, batch.support.advantage.shape[0])
    support = jax.vmap(some)(keys, batch.support)
    query = some(key_query, batch.query)
    return OneTask(batch.adapted_params, meant, instead, query, batch.support_params, support, batch.tasks)


SPEC = AttackSpec(
    "counter_action",
    THREAT,
    "#999933",
    CounterActionConfig,
    lambda config, victim: make_counter_action(config, victim).attack,
    make_counter_action,
)
