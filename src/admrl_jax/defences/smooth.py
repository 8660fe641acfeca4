"""A smoothness regulariser: actions should change little within a ball around what is observed."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.threat import project_l2
from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.linalg import safe_norm
from admrl_jax.core.settings import NOT_NEGATIVE, POSITIVE, REPEATS, is_on, whole_from
from admrl_jax.core.types import Experience, Params, flatten_steps
from admrl_jax.defences.base import Defence, DefenceSpec
from admrl_jax.defences.fixed import no_defence
from admrl_jax.learners.base import LossTerm


@dataclass(frozen=True, kw_only=True)
class SmoothConfig:
    """Weights, and how shifted observations are found."""

    query_weight: Annotated[float, NOT_NEGATIVE] = 0.1
    """Weight of KL(adapted policy at x, at x + d) on query data; 0 leaves it out."""
    support_weight: Annotated[float, NOT_NEGATIVE] = 0.1
    """Weight of KL(initial policy at x, at x + d) on support data, with the contexts that acted; 0 leaves it
    out."""
    radius: Annotated[float, POSITIVE] = 0.2
    """L2 bound of d, in raw observation units, over what an attack can move."""
    ascent_steps: Annotated[int, REPEATS] = 1
    """Gradient steps that look for the worst d."""
    num_episodes: Annotated[int, whole_from(0, 10_000)] = 0
    """Episodes of each task whose observations are shifted; 0 takes all. A quarter of them makes the
    regulariser a quarter as dear."""
    holds_std: bool = True
    """The standard deviation counts as a constant. If it does not, it also widens: that lowers the
    divergence, and hides what is left of it in noise."""
    is_bounded: bool = False
    """The trust region bounds, by these weights, what changes at shifted observations too. Steps are then
    more even, but no longer free where the policy's own actions stay as they are."""


class Shifted(NamedTuple):
    """Observations and the shifts at which a policy changes most, with weights that sum to one."""

    obs: jax.Array
    shift: jax.Array
    weight: jax.Array
    context: Any = ()
    """With which the policy acted there; `()` for its own."""


class Change(NamedTuple):
    """What a policy does at observations and at shifted ones, with weights that sum to one."""

    here: Gaussian
    there: Gaussian
    weight: jax.Array

    def size(self, *, holds_std: bool) -> jax.Array:
        """Mean divergence `[]` between the two; both have one standard deviation, perhaps a constant."""
        log_std = self.here.log_std
        log_std = jax.lax.stop_gradient(log_std) if holds_std else log_std
        here, there = (each._replace(log_std=log_std) for each in (self.here, self.there))
        return jnp.sum(self.weight * gaussian.kl(here, there))


def worst_shift(
    victim: Victim, params: Params, key: jax.Array, obs: jax.Array, config: SmoothConfig
) -> jax.Array:
    """Shifts `[M, O]` that raise the KL divergence at `obs` `[M, O]`: gradient steps, random start."""
    policy, can_move = victim.policy, jnp.asarray(victim.attackable or 1.0, obs.dtype)
    here = policy.apply(params, obs)

    def divergence(shift: jax.Array) -> jax.Array:
        return jnp.sum(gaussian.kl(here, policy.apply(params, obs + shift)))

    def to_length(x: jax.Array) -> jax.Array:
        x = x * can_move
        length = safe_norm(x)[..., None]
        return config.radius * x / jnp.where(length > 0, length, 1.0)

    def ascend(_: int, shift: jax.Array) -> jax.Array:
        return project_l2(shift + to_length(jax.grad(divergence)(shift)), config.radius)

    start = to_length(jax.random.normal(key, obs.shape, obs.dtype))
    return jax.lax.fori_loop(0, config.ascent_steps, ascend, start)


def smooth_term(victim: Victim, config: SmoothConfig) -> LossTerm:
    """`kappa_q E max_d KL(pi'(x) || pi'(x + d)) + kappa_s E max_d KL(pi(x) || pi(x + d))`.

    pi' is the adapted policy on query data, pi the initial one on support data (Zhang et al. 2020,
    "SA-MDP", carried over to meta-learning).
    """
    policy = victim.policy
    weights = {"support": config.support_weight, "query": config.query_weight}
    weights = {side: weight for side, weight in weights.items() if is_on(weight)}

    def shift(params: Params, key: jax.Array, experience: Experience, *, is_query: bool) -> Shifted:
        some = jax.tree.map(lambda x: x[: config.num_episodes or None], experience)
        taken = flatten_steps(some).trajectory
        weight = taken.mask / jnp.maximum(jnp.sum(taken.mask), 1.0)
        context = () if is_query else taken.context
        worst = worst_shift(victim, policy.acting(params, context), key, taken.obs, config)
        return Shifted(taken.obs, worst, weight, context)

    def prepare(
        key: jax.Array, initial: Params, adapted: Params, support: Experience, query: Experience
    ) -> dict[str, Shifted]:
        key_support, key_query = jax.random.split(key)
        first = jax.tree.map(lambda x: x[0], support)
        looked_at = {"support": (initial, key_support, first), "query": (adapted, key_query, query)}
        return {side: shift(*looked_at[side], is_query=side == "query") for side in weights}

    def change(params: Params, at: Shifted) -> Change:
        return Change(policy.apply(params, at.obs), policy.apply(params, at.obs + at.shift), at.weight)

    def predict(initial: Params, adapted: Params, data: dict[str, Shifted]) -> dict[str, Change]:
        params = {"support": initial, "query": adapted}
        return {side: change(policy.acting(params[side], at.context), at) for side, at in data.items()}

    def weighed(sizes: dict[str, jax.Array]) -> jax.Array:
        return sum((weights[side] * size for side, size in sizes.items()), jnp.zeros(()))

    def loss(changes: dict[str, Change]) -> jax.Array:
        return weighed({side: each.size(holds_std=config.holds_std) for side, each in changes.items()})

    def kl(old: dict[str, Change], new: dict[str, Change]) -> jax.Array:
        def moved(before: Change, after: Change) -> jax.Array:
            return jnp.sum(before.weight * gaussian.kl(before.there, after.there))

        return weighed({side: moved(old[side], new[side]) for side in weights})

    term = LossTerm(f"smooth {config}", prepare, predict, loss)
    return term._replace(kl=kl) if config.is_bounded else term


def smooth_defence(config: SmoothConfig, victim: Victim) -> Defence:
    """Clean training with the regulariser."""
    has_term = is_on(config.support_weight) or is_on(config.query_weight)
    term = smooth_term(victim, config) if has_term else None
    return no_defence()._replace(name=f"smooth {config}", loss_term=term)


SPEC = DefenceSpec("smooth", "smoothness regulariser", SmoothConfig, smooth_defence)
