"""An attacker that only sees returns: cross-entropy search over an affine map of the observation."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from admrl_jax.attacks.base import Attack, AttackSpec, Scene, Victim
from admrl_jax.attacks.generator import add_projected
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core.settings import COUNT, POSITIVE
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import MetaBatch, Metrics, Params, where_tree

THREAT = make_threat(label="black box", norm="l2", strength="L2 radius", knowledge="none")


@dataclass(frozen=True, kw_only=True)
class BlackBoxConfig:
    """Effort of the search."""

    population: Annotated[int, COUNT] = 12
    """Candidates of a generation; each takes one update, as it is judged by one meta-batch."""
    num_elites: Annotated[int, COUNT] = 3
    """The best of a generation, to which the next one is fitted; all where there are fewer."""
    init_std: Annotated[float, POSITIVE] = 1.0
    """Standard deviation of the first generation's numbers."""
    min_std: Annotated[float, POSITIVE] = 0.1
    """Of later ones, at least."""


NOT_JUDGED = 1e30
"""Return of candidates that have none yet."""


class AffineParams(NamedTuple):
    """Parameters of the attack.

    Attributes:
        weights: `[2, 3, O]`: before and after adaptation, a gain on each number of the standardised
            observation, a bias, and the spread of a bias that is drawn anew for every episode.
        inputs: units in which observations are read.
    """

    weights: jax.Array
    inputs: Units


class SearchState(NamedTuple):
    """What the search carries.

    Attributes:
        mean: `[2, 3, O]` of the candidates.
        std: likewise.
        candidates: `[P, 2, 3, O]` of this generation.
        returns: `[P]` that they left.
        number: `[]` of the candidate under test.
        inputs: units in which observations are read.
    """

    mean: jax.Array
    std: jax.Array
    candidates: jax.Array
    returns: jax.Array
    number: jax.Array
    inputs: Units


def affine_attack(victim: Victim) -> Attack:
    """Adds `gain * x + bias + spread * z` in radii, `x` standardised, `z` normal per episode, projected."""

    def perturb(
        params: AffineParams,
        memory: jax.Array,
        key: jax.Array,
        obs: jax.Array,
        scene: Scene,
        budget: Budget,
    ) -> tuple[jax.Array, jax.Array]:
        gain, bias, spread = params.weights[jnp.asarray(scene.is_query, int)]
        raw = gain * params.inputs.apply(obs) + bias + spread * memory
        return add_projected(budget.radius * raw, obs, budget), memory

    def reset(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (victim.obs_size,))

    def init(key: jax.Array) -> AffineParams:
        return AffineParams(jax.random.normal(key, (2, 3, victim.obs_size)), Units())

    return Attack(init, reset, perturb, THREAT)


def first_guesses(obs_size: int) -> jax.Array:
    """Candidates `[4, 2, 3, O]` that people would try: shrink, stretch, and biases per episode."""
    ones, none = jnp.ones(obs_size), jnp.zeros(obs_size)
    shrink, stretch = jnp.stack([-ones, none, none]), jnp.stack([ones, none, none])
    per_episode, nothing = jnp.stack([none, none, 3 * ones]), jnp.zeros((3, obs_size))
    pairs = ((shrink, shrink), (stretch, stretch), (per_episode, per_episode), (per_episode, nothing))
    return jnp.stack([jnp.stack(pair) for pair in pairs])


def make_black_box(config: BlackBoxConfig, victim: Victim) -> AttackTrainer:
    """Cross-entropy method (de Boer et al. 2005): a generation is drawn around the best of the last."""
    shape, population = (2, 3, victim.obs_size), config.population
    num_elites = min(config.num_elites, population)

    def draw(key: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
        return mean + std * jax.random.normal(key, (population, *shape))

    def init(key: jax.Array, inputs: Units, start_from: AffineParams | None = None) -> SearchState:
        mean, std = jnp.zeros(shape), jnp.full(shape, config.init_std)
        if start_from is not None:
            mean, inputs = start_from
        first = first_guesses(victim.obs_size) if start_from is None else mean[None]
        candidates = jnp.concatenate([first, draw(key, mean, std)])[:population]
        return SearchState(
            mean, std, candidates, jnp.full((population,), NOT_JUDGED), jnp.zeros((), int), inputs
        )

    def params(state: SearchState) -> AffineParams:
        return AffineParams(state.candidates[state.number], state.inputs)

    def update(
        state: SearchState,
        key: jax.Array,
        meta_params: Params,
        batch: MetaBatch,
        budget: Budget,
        axis: TaskAxis = TaskAxis(),
    ) -> tuple[SearchState, Metrics]:
        taken = batch.query.trajectory
        left = axis.mean(jnp.mean(jnp.sum(taken.reward, axis=-1)))
        # Episodes that broke off say nothing.
        left = jnp.where(axis.total(jnp.sum(taken.diverged)) > 0, NOT_JUDGED, left)
        state = state._replace(returns=state.returns.at[state.number].set(left), number=state.number + 1)
        rank = jnp.argsort(jnp.argsort(state.returns))
        share = (rank < num_elites) / num_elites
        mean = jnp.tensordot(share, state.candidates, 1)
        std = jnp.sqrt(jnp.tensordot(share, jnp.square(state.candidates - mean), 1))
        std = jnp.maximum(std, config.min_std)
        bred = SearchState(
            mean,
            std,
            draw(key, mean, std),
            jnp.full((population,), NOT_JUDGED),
            jnp.zeros((), int),
            state.inputs,
        )
        is_over = state.number == population
        metrics = {"adversary/search_std": jnp.mean(state.std), "adversary/skipped": jnp.zeros(())}
        return where_tree(is_over, bred, state), metrics

    return AttackTrainer(
        name=f"black_box {config}", attack=affine_attack(victim), init=init, params=params, update=update
    )


def _attack(config: Any, victim: Victim) -> Attack:
    return affine_attack(victim)


SPEC = AttackSpec("black_box", THREAT, "#7F7F7F", BlackBoxConfig, _attack, make_black_box)
