"""Turns the step of adaptation around: support data that teach a policy little, or the wrong thing.

To first order a step of adaptation moves the mean action by a sum over the support data. Each datum counts by
the product of two things: how the mean action at the observation that was seen depends on the parameters, and
how much better than expected the noise of the action turned out to be. The first is under the attack's hand.
The second drowns where episodes differ for another reason, such as that half of them were driven back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from admrl_jax.attacks.ascent import ascend
from admrl_jax.attacks.base import Attack, AttackSpec, Memory, Scene, Victim
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.settings import COUNT, NOT_NEGATIVE, REPEATS, SHARE
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params

THREAT = make_threat(label="misstep", norm="l2", strength="L2 radius", knowledge="pipeline")
SEEN = 50
"""States of each task on which policies are compared."""


@dataclass(frozen=True, kw_only=True)
class MisstepConfig:
    """What the attack does to support data, and its effort."""

    against: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of turning around what the step does to the action; of a policy that tries contexts, of
    driving an episode away from what its context stands for."""
    spread: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of driving episodes apart: half of them towards what the task asks for, half away from it."""
    num_policies: Annotated[int, COUNT] = 8
    """Tasks whose adapted policies it remembers; it takes that of the nearest."""
    steps: Annotated[int, REPEATS] = 5
    """Gradient steps per observation."""
    step_share: Annotated[float, SHARE] = 0.5
    """Length of a step as a share of the radius."""


class MisstepParams(NamedTuple):
    """What clean episodes told.

    Attributes:
        features: `[M, T]` tasks.
        policies: adapted to them, leading axis `M`.
        other: `[M]` for each the one among them that acts least like it.
        unadapted: the policy before it adapts, around whose context others are drawn.
    """

    features: jax.Array
    policies: Params
    other: jax.Array
    unadapted: Params


def make_misstep(config: MisstepConfig, victim: Victim) -> AttackTrainer:
    """Learns from clean episodes what adaptation should do, and works against it.

    What counts is the direction from what another task's policy does here to what this task's does. On
    support data the attack climbs `spread * sign * action - against * change`, both along that direction.
    The change of the action is its derivative along the step that clean data would bring; the sign is drawn
    once per episode. On query data it climbs minus the action along it.

    A policy that tries contexts learns from returns which of them to take. There the action itself stands in
    for its change, with the sign of the context that acts: whether it lies towards this task's or the
    other's. Both terms then go along one direction, and that of the larger weight decides.
    """
    count, limit = config.num_policies, victim.action_limit

    def mean(policy_params: Params, obs: jax.Array) -> jax.Array:
        return jnp.clip(victim.policy.apply(policy_params, obs).mean, -limit, limit)

    def perturb(
        params: MisstepParams, memory: Memory, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Memory]:
        apart = jnp.sum(jnp.square(params.features - victim.task_features(scene.task)), axis=-1)
        nearest, acting = jnp.argmin(apart), scene.policy_params
        own = jax.tree.map(lambda x: x[nearest], params.policies)
        other = jax.tree.map(lambda x: x[params.other[nearest]], params.policies)
        wanted = mean(own, obs) - mean(other, obs)
        wanted = wanted / jnp.maximum(safe_norm(wanted), 1e-6)
        step = jax.tree.map(jnp.subtract, own, acting)
        tried = jax.tree.map(jnp.subtract, acting, params.unadapted)
        side = jnp.sign(optax.tree.vdot(tried, jax.tree.map(jnp.subtract, own, other)))

        def harm(x: jax.Array) -> jax.Array:
            action, change = jax.jvp(lambda p: victim.policy.apply(p, x).mean, (acting,), (step,))
            action = jnp.vdot(jnp.clip(action, -limit, limit), wanted)
            change = side * action if victim.policy.explore else jnp.vdot(change, wanted)
            taught = config.spread * memory * action - config.against * change
            return jnp.where(scene.is_query, -action, taught)

        found = ascend(harm, key, obs, budget, steps=config.steps, step_share=config.step_share)
        return found, memory

    def reset(key: jax.Array) -> Memory:
        return jax.random.rademacher(key, (), dtype=jnp.float32)

    def untaught(key: jax.Array) -> MisstepParams:
        policies = jax.vmap(victim.policy.init)(jax.random.split(key, count))
        features = jnp.zeros((count, victim.task_size))
        other = jnp.arange(1, count + 1, dtype=jnp.int32) % count
        return MisstepParams(features, policies, other, victim.policy.init(key))

    def init(key: jax.Array, inputs: Units, start_from: MisstepParams | None = None) -> MisstepParams:
        return untaught(key) if start_from is None else start_from

    def update(
        state: MisstepParams,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[MisstepParams, Metrics]:
        found, unlike = remember(batch, victim, mean, count, axis)
        return found, {"adversary/unlike": unlike, "adversary/skipped": jnp.zeros(())}

    return AttackTrainer(
        name=f"misstep {config} {victim.name}",
        attack=Attack(untaught, reset, perturb, THREAT),
        init=init,
        params=lambda state: state,
        update=update,
        is_offline=True,
        is_of_batch=True,
    )


def remember(
    batch: MetaBatch,
    victim: Victim,
    mean: Callable[[Params, jax.Array], jax.Array],
    count: int,
    axis: TaskAxis,
) -> tuple[MisstepParams, jax.Array]:
    """What an attack keeps of a clean meta-batch, and how unlike the two most unlike policies act, `[]`.

    Args:
        batch: of this device's tasks.
        victim: the policy's functions.
        mean: `(policy_params, obs [..., O]) -> [..., A]`, the action that counts.
        count: tasks to remember.
        axis: how tasks are computed.
    """
    obs = batch.query.trajectory.obs
    obs = obs.reshape(obs.shape[0], -1, obs.shape[-1])
    seen = obs[:, :: max(1, obs.shape[1] // SEEN)]
    features = jax.vmap(victim.task_features)(batch.tasks)
    features, policies, seen = axis.every((features, batch.adapted_params, seen))
    # A batch may hold fewer tasks than are remembered.
    chosen = jnp.arange(count) % features.shape[0]
    features, policies = jax.tree.map(lambda x: x[chosen], (features, policies))
    seen = seen.reshape(-1, seen.shape[-1])
    actions = jax.lax.map(lambda policy: mean(policy, seen), policies)
    unlike = jax.lax.map(lambda mine: jnp.mean(jnp.square(mine - actions), axis=(1, 2)), actions)
    other = jnp.argmax(unlike, axis=1).astype(jnp.int32)
    unadapted = jax.tree.map(lambda x: x[0, 0], batch.support_params)
    return MisstepParams(features, policies, other, unadapted), jnp.max(unlike)


SPEC = AttackSpec(
    "misstep",
    THREAT,
    "#AA4499",
    MisstepConfig,
    lambda config, victim: make_misstep(config, victim).attack,
    make_misstep,
)
