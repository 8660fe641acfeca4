"""The interface of attacks that are trained against a policy, such as adGAN and offline fits."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params


class InitFn(Protocol):
    """Starts a trainer."""

    def __call__(self, key: jax.Array, inputs: Units, start_from: Params | None = None) -> Any:
        """A fresh state.

        Args:
            key: randomness of the start.
            inputs: units of clean observations, in which networks read them.
            start_from: parameters of the attack to go on from, instead of fresh ones.
        """
        ...


class UpdateFn(Protocol):
    """Learns from a meta-batch that the attack has collected."""

    def __call__(
        self,
        state: Any,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[Any, Metrics]:
        """`(state, metrics)`; metrics are named `adversary/...`.

        `adversary/skipped` is the share of updates that changed nothing because something was not finite.

        Args:
            state: the trainer's.
            key: randomness of the update.
            meta_params: the victim's.
            batch: support and query data under attack, the policies that collected them, tasks and radii.
            budget: that the attack shall have, its radius `[]`; the batch says under which it was collected.
            axis: how tasks are computed.
        """
        ...


def accept_any_batch(num_trajectories: int, horizon: int) -> None:
    """Nothing to check."""


class AttackTrainer(NamedTuple):
    """Trains an attack's parameters against a policy.

    Attributes:
        name: identifies it among compiled programs, settings included.
        attack: what is trained.
        init: see `InitFn`.
        params: `(state) -> Params`, those that attack now.
        update: see `UpdateFn`.
        check_batch: `(num_trajectories, horizon)` raises `ConfigError` where such batches cannot be learned
            from.
        settled: `(params) -> Params`, the attack without what it needs to learn only, such as noise.
        is_offline: it learns from clean episodes: its batches are collected without attack, so they cannot
            tell how strong it is.
        is_of_batch: what it learns comes from its batch alone, not from its start: starts need batches of
            their own to differ. For those that learn offline.
        is_for_all_radii: it learns one attack for all radii up to the budget's: the tasks of its batches are
            attacked at radii that are spread evenly.
    """

    name: str
    attack: Attack
    init: InitFn
    params: Callable[[Any], Params]
    update: UpdateFn
    check_batch: Callable[[int, int], None] = accept_any_batch
    settled: Callable[[Params], Params] = lambda params: params
    is_offline: bool = False
    is_of_batch: bool = False
    is_for_all_radii: bool = False
