"""A copy of the policy, made from its observations and actions alone, and the attack on the copy."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.ascent import ascend
from admrl_jax.attacks.base import AttackSpec, Scene, Victim, memoryless
from admrl_jax.attacks.generator import Generator, GeneratorParams
from admrl_jax.attacks.learned.fit import fit
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core.networks import make_network
from admrl_jax.core.settings import COUNT, REPEATS, SIZES, STEP_SIZE
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params

THREAT = make_threat(label="snooping", norm="l2", strength="L2 radius", knowledge="actions")


@dataclass(frozen=True, kw_only=True)
class SnoopConfig:
    """The copy and its fit, and the ascent on it."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of the copy."""
    learning_rate: Annotated[float, STEP_SIZE] = 3e-3
    """Step size of Adam."""
    num_steps: Annotated[int, REPEATS] = 300
    """Adam steps per meta-batch."""
    num_samples: Annotated[int, COUNT] = 256
    """Steps of each task that an Adam step looks at."""
    steps: Annotated[int, REPEATS] = 3
    """Gradient steps per observation."""


class SnoopState(NamedTuple):
    """What training carries."""

    params: GeneratorParams
    opt_state: Any


def make_snoop(config: SnoopConfig, victim: Victim) -> AttackTrainer:
    """Raises the change of the copy's action; it transfers where the copy is good (Inkawhich et al. 2020).

    The copy reads the task and whether the policy has adapted, as a spy could see.
    """
    reads = Generator(make_network(1, 1), victim, knows_task=True)
    size = victim.obs_size + 1 + victim.task_size
    copy = make_network(size, victim.action_size, hidden_sizes=config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)

    def act(params: GeneratorParams, obs: jax.Array, scene: Scene) -> jax.Array:
        return copy.apply(params.network, reads.features(params.inputs, obs, scene, Budget(0.0)))

    def perturb(
        params: GeneratorParams, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> jax.Array:
        meant = act(params, obs, scene)
        return ascend(lambda x: -jnp.vdot(meant, act(params, x, scene)), key, obs, budget, steps=config.steps)

    def init(key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None) -> SnoopState:
        params = GeneratorParams(copy.init(key), inputs) if start_from is None else start_from
        return SnoopState(params, optimizer.init(params.network))

    def update(
        state: SnoopState,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[SnoopState, Metrics]:
        num_tasks = batch.query.advantage.shape[0] * axis.num_devices
        limit = victim.action_limit

        def error(params: GeneratorParams, key: jax.Array, experience: Experience, scene: Scene) -> jax.Array:
            """On random steps of one task's batches."""
            taken = experience.trajectory
            obs, action, mask = (
                x.reshape(taken.mask.size, *x.shape[taken.mask.ndim :])
                for x in (taken.obs, taken.action, taken.mask)
            )
            chosen = jax.random.randint(key, (config.num_samples,), 0, taken.mask.size)
            action = jnp.clip(action[chosen], -limit, limit)
            squared = jnp.mean(jnp.square(act(params, obs[chosen], scene) - action), axis=-1)
            return jnp.sum(squared * mask[chosen]) / jnp.maximum(jnp.sum(mask[chosen]), 1.0)

        def value_and_grad(network: Params, key: jax.Array) -> tuple[jax.Array, Params]:
            def one_task(network: Params, key: jax.Array, one: MetaBatch) -> jax.Array:
                params = state.params._replace(network=network)
                key_query, key_support = jax.random.split(key)
                after = error(params, key_query, one.query, Scene((), one.tasks, True))
                return after + error(params, key_support, one.support, Scene((), one.tasks, False))

            def of_task(drawn: tuple) -> tuple[jax.Array, Params]:
                return jax.value_and_grad(one_task)(network, *drawn)

            drawn = (axis.split_key(key, num_tasks), batch)
            summed = axis.total(axis.sum_tasks(of_task, drawn))
            return jax.tree.map(lambda x: x / num_tasks, summed)

        keys = jax.random.split(key, config.num_steps)
        network, opt_state, errors, skipped = fit(
            value_and_grad, optimizer, state.params.network, state.opt_state, keys
        )
        metrics = {"adversary/copy_error": errors[-1], "adversary/skipped": jnp.mean(skipped)}
        return SnoopState(state.params._replace(network=network), opt_state), metrics

    return AttackTrainer(
        name=f"snoop {config}",
        attack=memoryless(perturb, THREAT, lambda key: GeneratorParams(copy.init(key), Units())),
        init=init,
        params=lambda state: state.params,
        update=update,
        is_offline=True,
    )


SPEC = AttackSpec(
    "snoop",
    THREAT,
    "#9467BD",
    SnoopConfig,
    lambda config, victim: make_snoop(config, victim).attack,
    make_snoop,
)
