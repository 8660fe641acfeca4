"""A critic of the victim, fitted on its own rollouts, and the perturbation after which it expects least."""

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
from admrl_jax.core.returns import discounted_returns
from admrl_jax.core.settings import COUNT, REPEATS, SIZES, STEP_SIZE, UNIT
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params

THREAT = make_threat(label="critic", norm="l2", strength="L2 radius", knowledge="policy and task")


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The critic and its fit, and the ascent on it."""

    hidden_sizes: Annotated[tuple[int, ...], SIZES] = (64, 64)
    """Layers of the critic."""
    learning_rate: Annotated[float, STEP_SIZE] = 3e-3
    """Step size of Adam."""
    num_steps: Annotated[int, REPEATS] = 300
    """Adam steps per meta-batch."""
    num_samples: Annotated[int, COUNT] = 256
    """Steps of each task that an Adam step looks at."""
    discount: Annotated[float, UNIT] = 0.95
    """Of the rewards that the critic foretells."""
    steps: Annotated[int, REPEATS] = 3
    """Gradient steps per observation."""


class CriticState(NamedTuple):
    """What training carries."""

    params: GeneratorParams
    opt_state: Any


def make_critic(config: CriticConfig, victim: Victim) -> AttackTrainer:
    """Lowers `Q(x, mu(x + d))` over `d`: the state that the critic reads is the true one.

    `Q` is regressed on discounted returns of query episodes, in standard deviations. It reads the task.
    """
    reads = Generator(make_network(1, 1), victim, knows_task=True)
    size = victim.obs_size + 1 + victim.task_size + victim.action_size
    critic = make_network(size, 1, hidden_sizes=config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    limit = victim.action_limit

    def value(params: GeneratorParams, obs: jax.Array, action: jax.Array, scene: Scene) -> jax.Array:
        features = reads.features(params.inputs, obs, scene, Budget(0.0))
        return critic.apply(params.network, jnp.concatenate([features, squash(action)], axis=-1))[..., 0]

    def squash(action: jax.Array) -> jax.Array:
        return jnp.clip(action, -limit, limit) / jnp.where(limit < 1e6, limit, 1.0)

    def perturb(
        params: GeneratorParams, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> jax.Array:
        def harm(x: jax.Array) -> jax.Array:
            return -value(params, obs, victim.policy.apply(scene.policy_params, x).mean, scene)

        return ascend(harm, key, obs, budget, steps=config.steps)

    def init(key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None) -> CriticState:
        params = GeneratorParams(critic.init(key), inputs) if start_from is None else start_from
        return CriticState(params, optimizer.init(params.network))

    def update(
        state: CriticState,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[CriticState, Metrics]:
        taken = batch.query.trajectory
        count = taken.mask[0].size
        target = discounted_returns(taken.reward, taken.mask, config.discount)
        valid = jnp.maximum(axis.total(jnp.sum(taken.mask)), 1.0)
        mean = axis.total(jnp.sum(target * taken.mask)) / valid
        rest = (target - mean) * taken.mask
        spread = jnp.sqrt(axis.total(jnp.sum(jnp.square(rest))) / valid) + 1e-6
        merged = jax.tree.map(
            lambda x: x.reshape(x.shape[0], count, *x.shape[3:]),
            (taken.obs, taken.action, rest / spread, taken.mask),
        )

        def value_and_grad(network: Params, key: jax.Array) -> tuple[jax.Array, Params]:
            chosen = jax.random.randint(key, (config.num_samples,), 0, count)

            def loss(network: Params, data: tuple) -> jax.Array:
                def one(obs, action, target, mask, task) -> jax.Array:
                    found = value(state.params._replace(network=network), obs, action, Scene((), task))
                    return jnp.sum(jnp.square(found - target) * mask) / jnp.maximum(jnp.sum(mask), 1.0)

                return jnp.sum(jax.vmap(one)(*data))

            data = (*jax.tree.map(lambda x: x[:, chosen], merged), batch.tasks)
            differentiate = jax.value_and_grad(loss)
            found = axis.total(axis.sum_blocks(lambda block: differentiate(network, block), data))
            error, gradient = jax.tree.map(lambda x: x / (taken.mask.shape[0] * axis.num_devices), found)
            return error, gradient

        keys = jax.random.split(key, config.num_steps)
        network, opt_state, errors, skipped = fit(
            value_and_grad, optimizer, state.params.network, state.opt_state, keys
        )
        metrics = {"adversary/critic_error": errors[-1], "adversary/skipped": jnp.mean(skipped)}
        return CriticState(state.params._replace(network=network), opt_state), metrics

    return AttackTrainer(
        name=f"critic {config}",
        attack=memoryless(perturb, THREAT, lambda key: GeneratorParams(critic.init(key), Units())),
        init=init,
        params=lambda state: state.params,
        update=update,
        is_offline=True,
    )


SPEC = AttackSpec(
    "critic",
    THREAT,
    "#FF9896",
    CriticConfig,
    lambda config, victim: make_critic(config, victim).attack,
    make_critic,
)
