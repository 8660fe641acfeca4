"""Training against a population of generators that are fitted to the policy as it trains.

One attacker that learns in step with the policy is soon left behind, or the two chase each other in circles.
Here are several. Each is fitted through the policy's own adaptation, so a few Adam steps per outer step keep
it strong, and the policy meets all of them in every meta-batch, with clean tasks beside them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, Memory, Scene, Victim
from admrl_jax.attacks.learned.counter_action import CounterActionConfig, make_counter_action
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.noise import l2_noise
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.settings import POSITIVE, SHARE, STEPS_OR_ZERO, UNIT, whole_from
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params, where_tree
from admrl_jax.defences.base import Defence, DefenceSpec, ramp
from admrl_jax.sampling import Exposure


@dataclass(frozen=True, kw_only=True)
class PopulationConfig:
    """The generators, and how much of training they attack."""

    radius: Annotated[float, POSITIVE] = 0.2
    """L2 bound of a perturbation."""
    all_radii: bool = False
    """Attacked tasks meet radii that are spread evenly up to `radius`, instead of that one."""
    ramp_steps: Annotated[int, STEPS_OR_ZERO] = 0
    """Steps over which the radius grows to its full size; 0 starts with all of it."""
    task_share: Annotated[float, SHARE] = 0.7
    """Share of a meta-batch's tasks that are attacked; the others are clean."""
    noise_share: Annotated[float, UNIT] = 0.0
    """Share of the attacked tasks that meet noise of the same L2 size instead of a generator."""
    num_generators: Annotated[int, whole_from(1, 100)] = 4
    """The attacked tasks are dealt out among them."""
    renew_every: Annotated[int, STEPS_OR_ZERO] = 0
    """Every so many steps the oldest generator starts afresh; 0 keeps them all."""
    warmup_steps: Annotated[int, STEPS_OR_ZERO] = 10
    """Updates of the generators on the frozen policy, before the policy trains against them."""
    fit: CounterActionConfig = field(
        default_factory=lambda: CounterActionConfig(
            through="adaptation",
            under_attack=True,
            target="other_task",
            knows_task=True,
            learning_rate=1e-2,
            num_steps=10,
            num_samples=400,
        )
    )
    """How each is fitted, after every outer step, to the meta-batch of all."""


class MixedParams(NamedTuple):
    """What one task meets.

    Attributes:
        generator: of the attack that is trained.
        is_noise: `[]` whether it meets noise instead.
    """

    generator: Params
    is_noise: jax.Array


def mix_with_noise(attack: Attack) -> Attack:
    """An attack, or noise of the same L2 size where `MixedParams` say so."""
    noise = l2_noise()

    def perturb(
        params: MixedParams, memory: Memory, key: jax.Array, obs: jax.Array, scene: Scene, budget: Budget
    ) -> tuple[jax.Array, Memory]:
        seen, memory = attack.perturb(params.generator, memory, key, obs, scene, budget)
        noisy, _ = noise.perturb((), (), key, obs, scene, budget)
        return jnp.where(params.is_noise, noisy, seen), memory

    return attack._replace(
        init=lambda key: MixedParams(attack.init(key), jnp.zeros((), bool)), perturb=perturb
    )


class PopulationState(NamedTuple):
    """What the defence carries.

    Attributes:
        members: the trainers' states, leading axis the generators.
        inputs: units of clean observations.
        updates: `[]` so far, those of the warm-up included.
    """

    members: Any
    inputs: Units
    updates: jax.Array


STRIDES = (7, 11, 13, 17, 19)
"""No number of tasks is a multiple of all."""


def stride(count: jax.Array) -> jax.Array:
    """A step `[]` that visits all of `count` `[]` places in turn, in no simple order."""
    steps = jnp.asarray(STRIDES)
    return steps[jnp.argmax(jnp.gcd(steps, count) == 1)]


def train_against_population(trainer: AttackTrainer, config: PopulationConfig) -> Defence:
    """Training against several attackers of one kind, each task of a batch under one of them.

    Args:
        trainer: of the attack.
        config: how many there are, and what they may do.
    """
    count, attack = config.num_generators, mix_with_noise(trainer.attack)

    def init(key: jax.Array, inputs: Units) -> PopulationState:
        members = jax.vmap(lambda key: trainer.init(key, inputs))(jax.random.split(key, count))
        return PopulationState(members, inputs, jnp.zeros((), jnp.int32))

    def expose(
        state: PopulationState, step: jax.Array, units: Units, num_tasks: int, axis: TaskAxis = TaskAxis()
    ) -> Exposure:
        place = axis.share(jnp.arange(num_tasks))
        num_attacked = jnp.maximum(1, jnp.round(config.task_share * num_tasks)).astype(int)
        full = config.radius * ramp(step, config.ramp_steps)
        # Radii and generators are dealt out in other orders at every step, and these shift against each other
        # once a round, so that each generator meets all radii.
        dealt = (place * stride(num_attacked) + step) % num_attacked
        level = (dealt + 1) / num_attacked if config.all_radii else 1.0
        budget = Budget(jnp.where(place < num_attacked, full * level, 0.0), units)
        mine = (place + step + step // num_attacked) % count
        generators = jax.tree.map(lambda x: x[mine], jax.vmap(trainer.params)(state.members))
        # Those next to the clean ones: generators keep the order in which they are dealt out.
        is_noise = place >= jnp.round(num_attacked * (1 - config.noise_share))
        return Exposure(attack, MixedParams(generators, is_noise), budget, budget, per_task=True)

    def update(
        state: PopulationState,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        units: Units,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[PopulationState, Metrics]:
        budget = Budget(config.radius, units)

        def learn(one: tuple[jax.Array, jax.Array, Any]) -> tuple[Any, Metrics]:
            number, key, member = one
            if config.renew_every:
                key, key_fresh = jax.random.split(key)
                turn = state.updates // config.renew_every % count
                is_due = (state.updates % config.renew_every == 0) & (state.updates > 0) & (turn == number)
                fresh = trainer.init(key_fresh, state.inputs)
                member = where_tree(is_due, fresh, member)
            return trainer.update(member, key, meta_params, batch, budget, axis)

        keys = jax.random.split(key, count)
        members, metrics = jax.lax.map(learn, (jnp.arange(count), keys, state.members))
        metrics = {name: jnp.mean(value) for name, value in metrics.items()}
        return PopulationState(members, state.inputs, state.updates + 1), metrics

    return Defence(
        name=f"population {config} {trainer.name}",
        init=init,
        expose=expose,
        update=update,
        warmup_steps=config.warmup_steps,
        check_batch=trainer.check_batch,
    )


def population_defence(config: PopulationConfig, victim: Victim) -> Defence:
    """Training against generators that are fitted through the policy."""
    return train_against_population(make_counter_action(config.fit, victim), config)


SPEC = DefenceSpec("population", "population of fits", PopulationConfig, population_defence)
