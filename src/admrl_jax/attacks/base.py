"""The attack interface, and what a registry of attacks knows about each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from admrl_jax.attacks.threat import Budget, ThreatModel
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Experience, Params, Task

Memory = Any
"""What an attack carries from step to step of an episode: a pytree of arrays, `()` for most."""


class Scene(NamedTuple):
    """What there is to know about the episode that an attack acts in; its threat model says what it reads.

    Attributes:
        policy_params: of the acting policy, adapted where `is_query`.
        task: of the environment.
        is_query: `[]` whether the policy has adapted: False in support episodes.
    """

    policy_params: Params
    task: Task = ()
    is_query: jax.Array | bool = True


class Perturb(Protocol):
    """Moves one observation."""

    def __call__(
        self,
        params: Params,
        memory: Memory,
        key: jax.Array,
        obs: jax.Array,
        scene: Scene,
        budget: Budget,
    ) -> tuple[jax.Array, Memory]:
        """`(perturbed_obs [O], memory)` from the true observation `[O]`."""
        ...


class Attack(NamedTuple):
    """An attack on observations, written for one episode.

    Attributes:
        init: `(key) -> Params`; `()` for attacks without parameters.
        reset: `(key) -> Memory` at the start of an episode.
        perturb: see `Perturb`.
        threat: its norm, what its strength means, what it knows.
        record: `(memory) -> pytree`, what of the memory after a step a trajectory keeps for the attack's own
            training; nothing by default.
    """

    init: Callable[[jax.Array], Params]
    reset: Callable[[jax.Array], Memory]
    perturb: Perturb
    threat: ThreatModel
    record: Callable[[Memory], Any] = lambda memory: ()


def memoryless(
    perturb: Callable[[Params, jax.Array, jax.Array, Scene, Budget], jax.Array],
    threat: ThreatModel,
    init: Callable[[jax.Array], Params] = lambda key: (),
) -> Attack:
    """An attack that carries nothing from step to step.

    Args:
        perturb: `(params, key, obs [O], scene, budget) -> perturbed_obs [O]`.
        threat: its threat model.
        init: `(key) -> Params`; none by default.
    """

    def with_memory(
        params: Params,
        memory: Memory,
        key: jax.Array,
        obs: jax.Array,
        scene: Scene,
        budget: Budget,
    ) -> tuple[jax.Array, Memory]:
        return perturb(params, key, obs, scene, budget), memory

    return Attack(init, lambda key: (), with_memory, threat)


class Victim(NamedTuple):
    """What an attack is built against: functions and sizes; parameters come with every call.

    Attributes:
        policy: Gaussian policy.
        obs_size: length of an observation.
        action_size: length of an action.
        task_size: numbers in a task's description.
        task_features: `(task) -> [task_size]`, the task as attacks read it.
        action_limit: magnitude of a raw action beyond which the environment clips it.
        adapt_step: `(meta_params, policy_params, experience) -> policy_params` of its learner; None where it
            does not adapt.
        name: of the learner, which tells compiled programs apart.
        attackable: `[obs_size]` 0 for what no attack can move, else 1; empty where all can be moved.
    """

    policy: Policy
    obs_size: int
    action_size: int
    task_size: int = 0
    task_features: Callable[[Task], jax.Array] = lambda task: jnp.zeros((0,))
    action_limit: float = math.inf
    adapt_step: Callable[[Params, Params, Experience], Params] | None = None
    name: str = ""
    attackable: tuple[float, ...] = ()


@dataclass(frozen=True)
class NoSettings:
    """Settings of a part that has none."""


class AttackSpec(NamedTuple):
    """What the registry knows about an attack.

    Attributes:
        name: by which it is found.
        threat: its threat model; its label is the attack's.
        colour: in figures.
        config: dataclass of its settings.
        make: `(config, victim) -> Attack`.
        make_trainer: `(config, victim) -> AttackTrainer` of an attack that learns; None for the others.
    """

    name: str
    threat: ThreatModel
    colour: str
    config: type
    make: Callable[[Any, Victim], Attack]
    make_trainer: Callable[[Any, Victim], Any] | None = None
