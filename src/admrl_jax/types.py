"""Shared pytrees and aliases: what a step, an episode and a batch of experience look like."""

from typing import Any, NamedTuple

import jax

Params = Any
"""A pytree of arrays."""

Task = Any
"""What an environment's `sample_task` returns: an array or a pytree of arrays."""

Metrics = dict[str, jax.Array]


class TimeStep(NamedTuple):
    """What an environment returns for one control step.

    Attributes:
        obs: `[O]` true observation after the step.
        reward: `[]` reward of the step.
        terminated: `[]` bool, whether the episode ends early here.
    """

    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array


class Trajectory(NamedTuple):
    """One episode of `H` steps; batch axes lead.

    Attributes:
        obs: `[..., H, O]` true observations.
        perturbed_obs: `[..., H, O]` what the policy saw; equals `obs` without an attack.
        action: `[..., H, A]` raw, unclipped samples of the policy.
        reward: `[..., H]` rewards, zero where `mask` is zero.
        mask: `[..., H]` 1 for steps taken before the episode ended, else 0.
        diverged: `[..., H]` 1 at the step, if any, whose perturbed observation, action, state or reward
            was not finite, else 0; that step is masked and ends the episode.
    """

    obs: jax.Array
    perturbed_obs: jax.Array
    action: jax.Array
    reward: jax.Array
    mask: jax.Array
    diverged: jax.Array


class Experience(NamedTuple):
    """Trajectories with the advantages of their actions.

    Attributes:
        trajectory: fields `[..., K, H, ...]`.
        advantage: `[..., K, H]`, normalised per task over valid steps.
    """

    trajectory: Trajectory
    advantage: jax.Array
