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
from admrl_jax.core.networks import Network, make_network
from admrl_jax.core.returns import discounted_returns
from admrl_jax.core.settings import COUNT, REPEATS, SIZES, STEP_SIZE, UNIT
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params, Trajectory

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


class Critic(NamedTuple):
    """`Q(x, a)` of a victim; it reads the task.

    Attributes:
        reader: makes features of observations and tasks.
        network: of features and a squashed action.
        action_limit: of the environment; inf where there is none.
    """

    reader: Generator
    network: Network
    action_limit: float

    def value(self, params: GeneratorParams, obs: jax.Array, action: jax.Array, scene: Scene) -> jax.Array:
        """`[...]`, in standard deviations of the discounted return, at `obs` `[..., O]`."""
        features = self.reader.features(params.inputs, obs, scene, Budget(0.0))
        squashed = jnp.clip(action, -self.action_limit, self.action_limit)
        squashed = squashed / jnp.where(self.action_limit < 1e6, self.action_limit, 1.0)
        return self.network.apply(params.network, jnp.concatenate([features, squashed], axis=-1))[..., 0]

    def error(self, params: GeneratorParams, obs, action, target, mask, task) -> jax.Array:
        """Mean squared error `[]` on valid steps of one task: `[B, O]`, `[B, A]`, `[B]`, `[B]`."""
        found = self.value(params, obs, action, Scene((), task))
        return jnp.sum(jnp.square(found - target) * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def standardised_returns(taken: Trajectory, discount: float, axis: TaskAxis) -> jax.Array:
    """Discounted returns `[N, K, H]` of valid steps, in standard deviations from their mean; else 0."""
    target = discounted_returns(taken.reward, taken.mask, discount)
    valid = jnp.maximum(axis.total(jnp.sum(taken.mask)), 1.0)
    mean = axis.total(jnp.sum(target * taken.mask)) / valid
    rest = (target - mean) * taken.mask
    return rest / (jnp.sqrt(axis.total(jnp.sum(jnp.square(rest))) / valid) + 1e-6)


def make_critic(config: CriticConfig, victim: Victim) -> AttackTrainer:
    """Lowers `Q(x, mu(x + d))` over `d`: the state that the critic reads is the true one.

    `Q` is regressed on discounted returns of query episodes, in standard deviations.
    """
    size = victim.obs_size + 1 + victim.task_size + victim.action_size
    network = make_network(size, 1, hidden_sizes=config.hidden_sizes)
    critic = Critic(Generator(make_network(1, 1), victim, knows_task=True), network, victim.action_limit)
    optimizer = optax.adam(config.learning_rate)

    def perturb(
        params: GeneratorParams, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> jax.Array:
        # It was fitted on query episodes only.
        known = scene._replace(is_query=True)

        def harm(x: jax.Array) -> jax.Array:
            return -critic.value(params, obs, victim.policy.apply(scene.policy_params, x).mean, known)

        return ascend(harm, key, obs, budget, steps=config.steps)

    def init(key: jax.Array, inputs: Units, start_from: GeneratorParams | None = None) -> CriticState:
        params = GeneratorParams(network.init(key), inputs) if start_from is None else start_from
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
        target = standardised_returns(taken, config.discount, axis)
        merged = jax.tree.map(
            lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), (taken.obs, taken.action, target, taken.mask)
        )

        def value_and_grad(weights: Params, key: jax.Array) -> tuple[jax.Array, Params]:
            chosen = jax.random.randint(key, (config.num_samples,), 0, taken.mask[0].size)

            def loss(weights: Params, data: tuple) -> jax.Array:
                params = state.params._replace(network=weights)
                return jnp.sum(jax.vmap(lambda *task: critic.error(params, *task))(*data))

            data = (*jax.tree.map(lambda x: x[:, chosen], merged), batch.tasks)
            differentiate = jax.value_and_grad(loss)
            found = axis.total(axis.sum_blocks(lambda block: differentiate(weights, block), data))
            return jax.tree.map(lambda x: x / (taken.mask.shape[0] * axis.num_devices), found)

        keys = jax.random.split(key, config.num_steps)
        weights, opt_state, errors, skipped = fit(
            value_and_grad, optimizer, state.params.network, state.opt_state, keys
        )
        metrics = {"adversary/critic_error": errors[-1], "adversary/skipped": jnp.mean(skipped)}
        return CriticState(state.params._replace(network=weights), opt_state), metrics

    return AttackTrainer(
        name=f"critic {config}",
        attack=memoryless(perturb, THREAT, lambda key: GeneratorParams(network.init(key), Units())),
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
