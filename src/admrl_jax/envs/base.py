"""The environment interface: a family of tasks with the same observations and actions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from admrl_jax.attacks.threat import Units
from admrl_jax.core.settings import POSITIVE, STEPS
from admrl_jax.core.types import Task, TimeStep


class Env(Protocol):
    """A family of episodic tasks, written for one episode; `vmap` outside.

    There is no auto-reset and no time limit inside: `rollout` runs `horizon` steps and masks
    what follows a `terminated` step. Any hashable object with these members will do.
    """

    @property
    def obs_size(self) -> int:
        """Length of an observation."""
        ...

    @property
    def action_size(self) -> int:
        """Length of an action."""
        ...

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        ...

    def sample_task(self, key: jax.Array) -> Task:
        """Draws a task."""
        ...

    def reset(self, key: jax.Array, task: Task) -> tuple[Any, jax.Array]:
        """Starts an episode: `(state, obs [O])`."""
        ...

    def step(self, state: Any, action: jax.Array, task: Task) -> tuple[Any, TimeStep]:
        """Applies a raw action `[A]`; scaling and clipping are the environment's business."""
        ...


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Numbers of an environment; subclasses add their own."""

    name: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class BuiltInConfig(EnvConfig):
    """Numbers that every environment of this package has."""

    horizon: Annotated[int, STEPS] = 100
    """Steps per episode."""
    action_scale: Annotated[float, POSITIVE] = 10.0
    """Raw actions are divided by this before they are clipped. It sets how much a policy of unit
    standard deviation explores, so every report states it."""
    remembers_actions: bool = False
    """Observations also hold a clock and the sum of the actions executed so far. No attack can move these: an
    assumption, which every report states."""


def spread_evenly(count: int, dims: int = 1) -> jax.Array:
    """Points `[count, dims]` that fill the unit cube evenly, whatever their number.

    In one dimension the middles of equal parts, else Roberts' additive recurrence (2018), which generalises
    the golden ratio.
    """
    if dims == 1:
        return ((jnp.arange(count) + 0.5) / count)[:, None]
    ratio = 1.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (dims + 1))
    step = jnp.asarray([ratio**-power for power in range(1, dims + 1)])
    return (0.5 + jnp.arange(count)[:, None] * step) % 1.0


def spread_tasks(env: Env, key: jax.Array, count: int) -> Task:
    """Tasks `[count, ...]` to choose attackers on: spread evenly where the environment can, drawn where not.

    So that chance does not give one direction, or easy goals, more than its share.

    Args:
        env: a member `spread_tasks(count)` spreads them.
        key: of the draw.
        count: how many.
    """
    spread = getattr(env, "spread_tasks", None)
    return spread(count) if spread else jax.vmap(env.sample_task)(jax.random.split(key, count))


def raw_units(env: Env) -> Units:
    """Units of budgets that are measured in observations as they are.

    Args:
        env: a member `attackable` `[O]` is 0 for what no attack can move; without one all can be moved.
    """
    return attackable_only(env, Units(jnp.zeros(env.obs_size), jnp.ones(env.obs_size)))


def attackable_only(env: Env, units: Units) -> Units:
    """Units `[..., O]` in which what no attack can move has scale 0."""
    return units._replace(scale=units.scale * jnp.asarray(getattr(env, "attackable", 1.0), float))


class EnvSpec(NamedTuple):
    """What the registry knows about an environment.

    Attributes:
        label: name for people.
        config: dataclass of its numbers; its `name` is the environment's.
        make: `(config, simulator, num_threads) -> Env`; closed-form environments ignore the last two.
        simulators: engines it runs on; empty for those that need none.
        picture_tasks: `(config) -> tasks [G, ...]` whose paths in the plane make a picture; None where an
            observation is no position.
    """

    label: str
    config: type[EnvConfig]
    make: Callable[[Any, str, int], Env]
    simulators: tuple[str, ...] = ()
    picture_tasks: Callable[[Any], jax.Array] | None = None
