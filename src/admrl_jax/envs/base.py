"""The environment interface: a family of tasks with the same observations and actions."""

from typing import Any, Protocol

import jax

from admrl_jax.types import Task, TimeStep


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
