"""The attack interface, and what a registry of attacks knows about each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

from admrl_jax.attacks.threat import Budget, ThreatModel
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Params

Memory = Any
"""What an attack carries from step to step of an episode: a pytree of arrays, `()` for most."""


class Perturb(Protocol):
    """Moves one observation."""

    def __call__(
        self,
        params: Params,
        memory: Memory,
        key: jax.Array,
        obs: jax.Array,
        policy_params: Params,
        budget: Budget,
    ) -> tuple[jax.Array, Memory]:
        """`(perturbed_obs [O], memory)` from the true observation `[O]` and the acting policy."""
        ...


class Attack(NamedTuple):
    """An attack on observations, written for one episode.

    Attributes:
        init: `(key) -> Params`; `()` for attacks without parameters.
        reset: `(key) -> Memory` at the start of an episode.
        perturb: see `Perturb`.
        threat: its norm, what its strength means, what it knows.
    """

    init: Callable[[jax.Array], Params]
    reset: Callable[[jax.Array], Memory]
    perturb: Perturb
    threat: ThreatModel


def memoryless(
    perturb: Callable[[Params, jax.Array, jax.Array, Params, Budget], jax.Array],
    threat: ThreatModel,
    init: Callable[[jax.Array], Params] = lambda key: (),
) -> Attack:
    """An attack that carries nothing from step to step.

    Args:
        perturb: `(params, key, obs [O], policy_params, budget) -> perturbed_obs [O]`.
        threat: its threat model.
        init: `(key) -> Params`; none by default.
    """

    def with_memory(
        params: Params,
        memory: Memory,
        key: jax.Array,
        obs: jax.Array,
        policy_params: Params,
        budget: Budget,
    ) -> tuple[jax.Array, Memory]:
        return perturb(params, key, obs, policy_params, budget), memory

    return Attack(init, lambda key: (), with_memory, threat)


class Victim(NamedTuple):
    """What an attack is built against: the policy's functions and its sizes.

    Attributes:
        policy: Gaussian policy; its parameters come with every call.
        obs_size: length of an observation.
        action_size: length of an action.
    """

    policy: Policy
    obs_size: int
    action_size: int


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
