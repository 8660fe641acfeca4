"""The learner interface: how a policy adapts to a task, and how its meta-parameters move."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from admrl_jax.core.networks import Policy
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params


class LearnerState(struct.PyTreeNode):
    """What a learner carries.

    Attributes:
        meta_params: what meta-training moves.
        opt_state: of its optimiser; `()` where it has none.
    """

    meta_params: Params
    opt_state: Any


class LossTerm(NamedTuple):
    """A term of the outer loss, written for one task; its mean over tasks is added.

    What `prepare` returns is a constant; gradients flow through the two sets of policy parameters that
    `predict` reads, the adapted ones included.

    Attributes:
        name: identifies it among compiled programs: two terms of one name must be the same.
        prepare: `(key, initial_params, adapted_params, support, query) -> data`, with support fields
            `[S, K, H, ...]` and query fields `[K, H, ...]`.
        predict: `(initial_params, adapted_params, data) -> predictions`, any pytree.
        loss: `(predictions) -> []`.
        kl: `(old, new) -> []` of two predictions: what a trust region bounds beside the policy's own
            divergence. A term that is steep where the policy's own divergence is flat needs it, or steps are
            cut to nothing. By default nothing is bounded.
    """

    name: str
    prepare: Callable[[jax.Array, Params, Params, Experience, Experience], Any]
    predict: Callable[[Params, Params, Any], Any]
    loss: Callable[[Any], jax.Array]
    kl: Callable[[Any, Any], jax.Array] = lambda old, new: jnp.zeros(())


class UpdateFn(Protocol):
    """Moves the meta-parameters."""

    def __call__(
        self,
        state: LearnerState,
        key: jax.Array,
        batch: MetaBatch,
        *,
        loss_term: LossTerm | None = None,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[LearnerState, Metrics]:
        """One outer step on a meta-batch; metrics are named `train/...`.

        `train/skipped` is 1 where nothing was learned because something was not finite.
        """
        ...


class Learner(NamedTuple):
    """A meta-learner, as a few pure functions.

    Attributes:
        name: identifies it among compiled programs, settings included.
        init: `(key) -> LearnerState`.
        policy_params: `(meta_params) -> Params`, the policy before it adapts.
        adapt_step: `(meta_params, policy_params, experience) -> policy_params`, one step of adaptation to
            one task on a batch with fields `[K, H, ...]`.
        update: see `UpdateFn`.
    """

    name: str
    init: Callable[[jax.Array], LearnerState]
    policy_params: Callable[[Params], Params]
    adapt_step: Callable[[Params, Params, Experience], Params]
    update: UpdateFn

    def adapt(self, meta_params: Params, support: Experience) -> Params:
        """Adapts to one task; differentiable with respect to `meta_params`.

        Args:
            meta_params: of this learner.
            support: fields `[num_adapt_steps, K, H, ...]`; one step of adaptation on each batch.
        """
        params = self.policy_params(meta_params)
        for step in range(support.advantage.shape[0]):
            batch = jax.tree.map(lambda x, step=step: x[step], support)
            params = self.adapt_step(meta_params, params, batch)
        return params


class LearnerSpec(NamedTuple):
    """What the registry knows about a learner.

    Attributes:
        name: by which it is found.
        label: name for people.
        config: dataclass of its settings.
        make: `(config, policy) -> Learner`.
        in_pretraining: `(config) -> config` of the clean pre-training that methods share.
    """

    name: str
    label: str
    config: type
    make: Callable[[Any, Policy], Learner]
    in_pretraining: Callable[[Any], Any] = lambda config: config
