"""ProMP: proximal meta-policy search, several Adam steps on a clipped surrogate (Rothfuss et al. 2019)."""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import FRACTION, NOT_NEGATIVE, REPEATS, STEP_SIZE, refusal
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience, MetaBatch, Metrics, Params, all_finite, flatten_steps, where_tree
from admrl_jax.learners.base import Learner, LearnerSpec, LearnerState, LossTerm
from admrl_jax.learners.maml import query_weights
from admrl_jax.learners.maml_trpo import mean_std, outer_objective


@dataclass(frozen=True, kw_only=True)
class ProMPConfig:
    """Defaults: the settings of ProMP's own code for its MuJoCo axis."""

    inner_lr: Annotated[float, STEP_SIZE] = 0.1
    """Step size of adaptation."""
    outer_lr: Annotated[float, STEP_SIZE] = 1e-3
    """Step size of Adam on the meta-parameters."""
    num_epochs: Annotated[int, REPEATS] = 5
    """Adam steps per meta-batch."""
    clip_ratio: Annotated[float, FRACTION] = 0.3
    """Clip of the probability ratio on query data."""
    kl_weight: Annotated[float, NOT_NEGATIVE] = 5e-4
    """Weight of the KL divergence between the policy that collected the support data and the present one."""


def likelihood_ratio_loss(params: Params, experience: Experience, *, policy: Policy) -> jax.Array:
    """Inner loss `[]` of one task: minus the mean of probability ratio x advantage.

    The ratio is to the policy that collected the data. There its gradient is that of MAML's inner loss; its
    second derivative, unlike MAML's, has the terms by which adaptation changes what is sampled (ProMP's
    low-variance curvature estimator).

    Args:
        params: policy parameters.
        experience: fields `[K, H, ...]`.
        policy: Gaussian policy.
    """
    data = flatten_steps(experience)
    taken = data.trajectory
    log_prob = gaussian.log_prob(policy.apply(params, taken.perturbed_obs), taken.action)
    ratio = jnp.exp(log_prob - taken.log_prob)
    return -jnp.sum(ratio * data.advantage * taken.mask) / jnp.maximum(jnp.sum(taken.mask), 1.0)


def clipped_loss(new: Gaussian, query: Experience, weights: jax.Array, clip_ratio: float) -> jax.Array:
    """PPO's clipped surrogate `[]` on query data (ProMP, Eq. 11).

    Args:
        new: predictions on query data, mean `[N, K H, A]`.
        query: fields `[N, K, H, ...]`.
        weights: `[N, K H]`.
        clip_ratio: relative change of a probability beyond which nothing more is gained.
    """
    action = query.trajectory.action
    action = action.reshape(action.shape[0], -1, action.shape[-1])
    ratio = jnp.exp(gaussian.log_prob(new, action) - query.trajectory.log_prob.reshape(weights.shape))
    advantage = query.advantage.reshape(weights.shape)
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    return -jnp.sum(jnp.minimum(ratio * advantage, clipped * advantage) * weights)


def make_promp(policy: Policy, config: ProMPConfig | None = None) -> Learner:
    """The learner; its meta-parameters are the policy's, its optimiser is Adam.

    Raises:
        ConfigError: the policy explores by its context, which the likelihood ratio does not know.
    """
    if policy.explore:
        raise refusal("policy", "one that explores by its context", "one that does not")
    config = config or ProMPConfig()
    optimizer = optax.adam(config.outer_lr)

    def init(key: jax.Array) -> LearnerState:
        params = policy.init(key)
        return LearnerState(params, optimizer.init(params))

    def adapt_step(meta_params: Params, params: Params, experience: Experience) -> Params:
        gradient = jax.grad(likelihood_ratio_loss)(params, experience, policy=policy)
        return jax.tree.map(lambda p, g: p - config.inner_lr * g, params, gradient)

    def support_kl(params: Params, old_params: Params, support: Experience) -> jax.Array:
        """KL(old, new) `[]` of the unadapted policy on the first support batch of one task."""
        first = flatten_steps(jax.tree.map(lambda x: x[0], support)).trajectory
        old, new = (policy.apply(p, first.perturbed_obs) for p in (old_params, params))
        return jnp.sum(gaussian.kl(old, new) * first.mask) / jnp.maximum(jnp.sum(first.mask), 1.0)

    def update(
        state: LearnerState,
        key: jax.Array,
        batch: MetaBatch,
        *,
        loss_term: LossTerm | None = None,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[LearnerState, Metrics]:
        old_params = state.meta_params
        weights = query_weights(batch.query, axis)
        data, objective = outer_objective(learner, policy, state, key, batch, loss_term, axis)
        num_tasks = weights.shape[0] * axis.num_devices

        def loss(params: Params) -> jax.Array:
            """This device's part of the loss."""
            predictions = axis.map(lambda group: objective.predict(params, group), data)
            new = predictions if loss_term is None else predictions[0]
            total = clipped_loss(new, batch.query, weights, config.clip_ratio)
            if loss_term is not None:
                total += jnp.sum(jax.vmap(loss_term.loss)(predictions[1])) / num_tasks
            kl = jax.vmap(functools.partial(support_kl, params, old_params))(batch.support)
            return total + config.kl_weight * jnp.sum(kl) / num_tasks

        def epoch(carry: tuple[Params, optax.OptState], _: None):
            params, opt_state = carry
            value, gradient = axis.total(jax.value_and_grad(loss)(params))
            updates, new_opt_state = optimizer.update(gradient, opt_state, params)
            new = (optax.apply_updates(params, updates), new_opt_state)
            finite = all_finite((value, gradient, new))
            norm = optax.tree.norm(gradient)
            return where_tree(finite, new, carry), (value, norm, 1.0 - finite.astype(value.dtype))

        start = (old_params, state.opt_state)
        (params, opt_state), (losses, norms, skipped) = jax.lax.scan(epoch, start, length=config.num_epochs)
        metrics = {
            "train/loss_before": losses[0],
            "train/loss_after": axis.total(loss(params)),
            "train/gradient_norm": norms[0],
            "train/skipped": jnp.mean(skipped),
            "train/std": mean_std(policy, params, batch),
        }
        return LearnerState(params, opt_state), metrics

    learner = Learner(f"promp {config}", init, lambda meta_params: meta_params, adapt_step, update)
    return learner


SPEC = LearnerSpec("promp", "ProMP", ProMPConfig, lambda config, policy: make_promp(policy, config))
