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
        log_prob: `[..., H]` log density of `action` under the policy that took it, at `perturbed_obs`.
        reward: `[..., H]` rewards, zero where `mask` is zero.
        mask: `[..., H]` 1 for steps taken before the episode ended, else 0.
        diverged: `[..., H]` 1 at the step, if any, whose perturbed observation, action, state or reward
            was not finite, else 0; that step is masked and ends the episode.
        attack_record: `[..., H, ...]` what the attack notes for its own training; `()` for most.
        context: `[..., H, C]` with which the policy acted, of a policy that explores by it; else `()`.
    """

    obs: jax.Array
    perturbed_obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    reward: jax.Array
    mask: jax.Array
    diverged: jax.Array
    attack_record: Any = ()
    context: Any = ()


class Experience(NamedTuple):
    """Trajectories with the advantages of their actions.

    Attributes:
        trajectory: fields `[..., K, H, ...]`.
        advantage: `[..., K, H]`, normalised per task, over valid steps or over episodes; see `score_tasks`.
    """

    trajectory: Trajectory
    advantage: jax.Array


class MetaBatch(NamedTuple):
    """One meta-batch of `N` tasks, each before and after adaptation.

    Attributes:
        support: fields `[N, num_adapt_steps, K, H, ...]`.
        query: fields `[N, K, H, ...]`.
        adapted_params: policy parameters that collected `query`, leading axis `N`.
        support_params: those that collected `support`, leading axes `[N, num_adapt_steps]`.
        tasks: leading axis `N`.
        support_radius: `[N]` of the attack's budget on support data.
        query_radius: `[N]` of its budget on query data.
    """

    support: Experience
    query: Experience
    adapted_params: Params
    support_params: Params = ()
    tasks: Task = ()
    support_radius: jax.Array | float = 0.0
    query_radius: jax.Array | float = 0.0


def flatten_steps(experience: Experience) -> Experience:
    """Merges the axes `[K, H]` of one task into one axis of samples."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), experience)


def all_finite(tree: Any) -> jax.Array:
    """Whether every entry of every leaf is finite, `[]`."""
    finite = [jax.numpy.all(jax.numpy.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jax.numpy.all(jax.numpy.stack(finite))


def where_tree(condition: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `condition` `[]` is true, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jax.numpy.where(condition, a, b), new, old)
