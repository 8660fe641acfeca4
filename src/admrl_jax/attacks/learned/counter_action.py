"""A generator fitted through the policy: it turns the mean action against itself, without rewards."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.base import AttackSpec, Victim
from admrl_jax.attacks.generator import GeneratorParams, generator_attack, perturb_with
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core.networks import make_network
from admrl_jax.core.settings import POSITIVE, REPEATS, SIZES, STEP_SIZE
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params, all_finite, where_tree

THREAT = make_threat(label="counter-action", norm="l2", strength="L2 radius", knowledge="policy")


@dataclass(frozen=True, kw_only=True)
class CounterActionConfig:
    """Network and effort of the fit."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of the generator."""
    learning_rate: Annotated[float, STEP_SIZE] = 3e-3
    """Step size of Adam."""
    num_steps: Annotated[int, REPEATS] = 25
    """Adam steps per meta-batch."""
    action_limit: Annotated[float, POSITIVE] = 10.0
    """Raw action at which motors saturate: `action_scale` times the largest control."""


class CounterActionState(NamedTuple):
    """What training carries: the generator and Adam's state."""

    params: GeneratorParams
    opt_state: optax.OptState


def make_counter_action(config: CounterActionConfig, victim: Victim) -> AttackTrainer:
    """Minimises `clip(mu(x + G(x))) . clip(mu(x))` over query states, under each task's adapted policy."""
    generator = make_network(victim.obs_size, victim.obs_size, hidden_sizes=config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)

    def init(key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None) -> CounterActionState:
        params = GeneratorParams(generator.init(key), inputs) if start_from is None else start_from
        return CounterActionState(params, optimizer.init(params.network))

    def update(
        state: CounterActionState,
        key: jax.Array,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[CounterActionState, Metrics]:
        taken = batch.query.trajectory
        num_tasks = taken.reward.shape[0] * axis.num_devices

        def mean_action(victim_params: Params, obs: jax.Array) -> jax.Array:
            mean = victim.policy.apply(victim_params, obs).mean
            return jnp.clip(mean, -config.action_limit, config.action_limit)

        def loss(network: Params, block: tuple) -> jax.Array:
            def one_task(victim_params: Params, obs: jax.Array, mask: jax.Array) -> jax.Array:
                moved = perturb_with(generator, state.params._replace(network=network), obs, budget)
                product = jnp.sum(mean_action(victim_params, moved) * mean_action(victim_params, obs), -1)
                return jnp.sum(product * mask) / jnp.maximum(jnp.sum(mask), 1.0)

            return jnp.sum(jax.vmap(one_task)(*block)) / num_tasks

        def step(carry: tuple, _: None):
            network, opt_state = carry
            value_and_grad = jax.value_and_grad(loss)
            data = (batch.adapted_params, taken.obs, taken.mask)
            value, gradient = axis.total(axis.sum_blocks(lambda block: value_and_grad(network, block), data))
            updates, opt_state = optimizer.update(gradient, opt_state, network)
            new = (optax.apply_updates(network, updates), opt_state)
            finite = all_finite((gradient, new))
            return where_tree(finite, new, carry), (value, 1.0 - finite.astype(value.dtype))

        start = (state.params.network, state.opt_state)
        (network, opt_state), (losses, skipped) = jax.lax.scan(step, start, length=config.num_steps)
        metrics = {"adversary/agreement": losses[-1], "adversary/skipped": jnp.mean(skipped)}
        return CounterActionState(state.params._replace(network=network), opt_state), metrics

    return AttackTrainer(
        name=f"counter_action {config}",
        attack=generator_attack(generator, THREAT),
        init=init,
        params=lambda state: state.params,
        update=update,
    )


SPEC = AttackSpec(
    "counter_action",
    THREAT,
    "#999933",
    CounterActionConfig,
    lambda config, victim: make_counter_action(config, victim).attack,
    make_counter_action,
)
