"""MAML with a trust-region outer step (Finn et al. 2017): the learner of the paper's four methods."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import PARTS, Policy
from admrl_jax.core.settings import INNER_STEP_SIZE, NOT_NEGATIVE, STEP_SIZE_OR_ZERO, one_of, refusal
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params, flatten_steps
from admrl_jax.learners.base import Learner, LearnerSpec, LearnerState, LossTerm
from admrl_jax.learners.maml import adapt_step, query_weights, surrogate_loss
from admrl_jax.learners.trpo import Objective, TRPOConfig, trpo_update


@dataclass(frozen=True, kw_only=True)
class MAMLTRPOConfig:
    """Adaptation and trust region. Defaults: MAML's and pytorch-maml-rl's settings."""

    inner_lr: Annotated[float, INNER_STEP_SIZE] = 0.1
    """Step size of adaptation (alpha in Eq. 4). A context takes larger ones than weights do: 10 to 30, or 4
    where the policy explores by it (`policy.context_std` 1)."""
    first_order: bool = False
    """Drop the derivative of the inner gradient."""
    max_length: Annotated[float, NOT_NEGATIVE] = 0.0
    """Longest step of adaptation, in the L2 norm of all parameters; 0 sets no limit."""
    adapts: Annotated[str, one_of(*PARTS)] = "all"
    """What adaptation moves. all: every parameter. head: the last layer and the standard deviation. context:
    the inputs of `policy.context_size`, which leaves whoever attacks the support data little to turn."""
    pretrain_max_kl: Annotated[float, STEP_SIZE_OR_ZERO] = 0.0
    """Bound on KL(old, new) in the clean pre-training; 0 is that of all other steps, `trpo.max_kl`."""
    trpo: TRPOConfig = field(default_factory=TRPOConfig)


def make_maml_trpo(policy: Policy, config: MAMLTRPOConfig | None = None) -> Learner:
    """The learner; its meta-parameters are the policy's.

    Raises:
        ConfigError: the policy explores by its context, and something else is to adapt.
    """
    config = config or MAMLTRPOConfig()
    if policy.explore and config.adapts != "context":
        raise refusal("adapts", config.adapts, "context where the policy explores by it")

    def adapt_one(meta_params: Params, params: Params, experience: Experience) -> Params:
        return adapt_step(
            params,
            experience,
            policy=policy,
            inner_lr=config.inner_lr,
            first_order=config.first_order,
            max_length=config.max_length,
            adapts=config.adapts,
        )

    def update(
        state: LearnerState,
        key: jax.Array,
        batch: MetaBatch,
        *,
        loss_term: LossTerm | None = None,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[LearnerState, Metrics]:
        data, objective = outer_objective(learner, policy, state, key, batch, loss_term, axis)
        params, info = trpo_update(state.meta_params, data, objective, config.trpo, axis)
        metrics = {f"train/{name}": jnp.asarray(value, float) for name, value in info._asdict().items()}
        metrics["train/std"] = mean_std(policy, learner.policy_params(params), batch)
        return state.replace(meta_params=params), metrics

    learner = Learner(
        name=f"maml_trpo {config}",
        init=lambda key: LearnerState(policy.init(key), ()),
        policy_params=lambda meta_params: meta_params,
        adapt_step=adapt_one,
        update=update,
    )
    return learner


def mean_std(policy: Policy, params: Params, batch: MetaBatch) -> jax.Array:
    """Standard deviation of a policy's actions `[]`, mean over their dimensions."""
    obs = batch.query.trajectory.obs
    return jnp.mean(jnp.exp(policy.apply(params, obs.reshape(-1, obs.shape[-1])[0]).log_std))


def outer_objective(
    learner: Learner,
    policy: Policy,
    state: LearnerState,
    key: jax.Array,
    batch: MetaBatch,
    loss_term: LossTerm | None,
    axis: TaskAxis,
) -> tuple[Any, Objective]:
    """The surrogate through the adaptation, with a loss term where there is one.

    Returns:
        `(data, objective)` for `trpo_update`.
    """
    weights = query_weights(batch.query, axis)
    surrogate = surrogate_loss(batch.query, weights)
    data = (batch.support, batch.query, weights)

    def predict(meta_params: Params, group: Any) -> Gaussian:
        return predict_query(learner, policy, meta_params, (group[0], group[1]))

    def kl(old: Gaussian, new: Gaussian, group: Any) -> jax.Array:
        return jnp.sum(group[2] * gaussian.kl(old, new))

    if loss_term is None:
        return data, Objective(predict, surrogate, kl)

    term = loss_term
    initial = learner.policy_params(state.meta_params)
    num_tasks = weights.shape[0] * axis.num_devices
    # One key per task of the whole batch, so that spreading it changes nothing.
    keys = axis.split_key(key, num_tasks)
    prepared = axis.map(
        lambda task: term.prepare(task[0], initial, *task[1:]),
        (keys, batch.adapted_params, batch.support, batch.query),
    )

    def predict_both(meta_params: Params, group: Any) -> tuple[Gaussian, Any]:
        adapted = learner.adapt(meta_params, group[0])
        extra = term.predict(learner.policy_params(meta_params), adapted, group[3])
        return _read(policy, adapted, group[1]), extra

    def loss(new: Any, old: Any) -> jax.Array:
        return surrogate(new[0], old[0]) + jnp.sum(jax.vmap(term.loss)(new[1])) / num_tasks

    def both_kl(old: Any, new: Any, group: Any) -> jax.Array:
        return kl(old[0], new[0], group) + term.kl(old[1], new[1]) / num_tasks

    return (*data, prepared), Objective(predict_both, loss, both_kl)


def predict_query(
    learner: Learner, policy: Policy, meta_params: Params, task: tuple[Experience, Experience]
) -> Gaussian:
    """Adapts to one task, then predicts the actions on its query data.

    Args:
        learner: adapts.
        policy: Gaussian policy.
        meta_params: of the learner.
        task: support, fields `[num_adapt_steps, K, H, ...]`, and query, fields `[K, H, ...]`.

    Returns:
        Mean `[K H, A]` and log_std `[1, A]`.
    """
    return _read(policy, learner.adapt(meta_params, task[0]), task[1])


def _read(policy: Policy, params: Params, query: Experience) -> Gaussian:
    dist = policy.apply(params, flatten_steps(query).trajectory.perturbed_obs)
    return Gaussian(dist.mean, dist.log_std[None])


def _in_pretraining(config: MAMLTRPOConfig) -> MAMLTRPOConfig:
    max_kl = config.pretrain_max_kl or config.trpo.max_kl
    return replace(config, trpo=replace(config.trpo, max_kl=max_kl))


SPEC = LearnerSpec(
    "maml_trpo",
    "MAML-TRPO",
    MAMLTRPOConfig,
    lambda config, policy: make_maml_trpo(policy, config),
    _in_pretraining,
)
