"""Training an attacker against a frozen policy: it hurts, it keeps its strongest, and its grid of starts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, assert_trees_equal, random_experience, random_like
from homing import INPUTS, META_PARAMS, SETUP

from admrl_jax.attacking import AttackerState, attack_update_step, init_attacker, train_attacker
from admrl_jax.attacks.base import Attack, Scene, Victim
from admrl_jax.attacks.generator import GeneratorParams
from admrl_jax.attacks.learned.adgan import AdGANConfig
from admrl_jax.attacks.learned.black_box import BlackBoxConfig
from admrl_jax.attacks.learned.counter_action import CounterActionConfig
from admrl_jax.attacks.learned.critic import CriticConfig
from admrl_jax.attacks.learned.director import DirectorConfig
from admrl_jax.attacks.learned.pipeline import PipelineConfig
from admrl_jax.attacks.learned.policy_gradient import PolicyGradientConfig
from admrl_jax.attacks.learned.snoop import SnoopConfig
from admrl_jax.attacks.learned.trainer import AttackTrainer
from admrl_jax.attacks.registry import make_attack, make_attack_trainer
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core import gaussian
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.types import Experience, MetaBatch
from admrl_jax.evaluation import evaluate
from admrl_jax.sampling import SamplingConfig, expose

VICTIM = SETUP.victim
RADII = (0.2, 0.8)
CONFIGS: dict[str, Any] = {
    "pipeline": PipelineConfig(hidden_sizes=(8,), learning_rate=0.03, max_kl=1.0),
    "actor": PolicyGradientConfig(hidden_sizes=(8,), learning_rate=0.02, max_kl=1.0),
    "director": DirectorConfig(hidden_sizes=(8,), learning_rate=0.02, max_kl=1.0),
    "black_box": BlackBoxConfig(population=6),
    "critic": CriticConfig(hidden_sizes=(16,), num_steps=100),
    "snoop": SnoopConfig(hidden_sizes=(16,), num_steps=100),
    "adgan": AdGANConfig(
        hidden_sizes=(8,), num_epochs=2, num_minibatches=4, generator_lr=0.02, gan_weight=0.0
    ),
    "counter_action": CounterActionConfig(hidden_sizes=(8,), learning_rate=0.03, num_steps=10),
}


GROWTH = {"adgan": 1.25, "pipeline": 1.25, "actor": 1.1, "director": 0.9, "black_box": 0.9}
"""By how much the return falls in twelve updates. The director begins with the best direction there is, the
black box with what people would try, and each of its batches is another candidate's."""


@functools.cache
def trainer(name: str) -> AttackTrainer:
    return make_attack_trainer(name, VICTIM, CONFIGS[name])


def train(name: str, **settings: Any):
    """Attackers of the homing policy."""
    defaults = {"setup": SETUP, "radii": RADII, "steps": 1, "restarts": 2, "inputs": INPUTS}
    return train_attacker(trainer(name), META_PARAMS, jax.random.key(1), **(defaults | settings))


@functools.cache
def measure(attack: Attack) -> Callable[[Any, float], Any]:
    """What an attack's parameters leave at a radius on new tasks, compiled once."""
    setup = SETUP._replace(sampling=SamplingConfig(num_trajectories=40))

    def run(params: Any, radius: float) -> Any:
        exposure = expose(attack, params, Budget(radius), num_tasks=8)
        return evaluate(META_PARAMS, jax.random.key(9), jnp.zeros((8, 1)), exposure, setup=setup)

    return jax.jit(run)


def measured_return(attack: Attack, params: Any, radius: float) -> float:
    """Mean return after adaptation on new tasks."""
    result = measure(attack)(params, radius)
    assert result.budget_excess == 0
    return float(result.returns[:, -1].mean())


@pytest.fixture(scope="module")
def noise_return() -> float:
    """What noise of the larger radius costs."""
    return measured_return(make_attack("l2_noise", VICTIM), (), RADII[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trained_attacker_hurts_more_than_noise_of_its_size(name: str, noise_return: float) -> None:
    heard = []
    params, history = train(name, steps=12, on_step=lambda step, metrics: heard.append((step, metrics)))
    assert history.returns.shape == (2, 2, 12)
    assert all(x.shape[:2] == (2, 2) for x in jax.tree.leaves(params))
    # The host hears of every step of every attacker.
    assert [step for step, _ in heard] == list(range(1, 13))
    np.testing.assert_array_equal(
        np.stack([metrics["train/post_return"] for _, metrics in heard], axis=-1), history.returns
    )
    assert set(history.metrics) == set(heard[0][1])
    assert np.all(history.metrics["adversary/skipped"] == 0)
    assert np.all(history.metrics["attack/budget_excess"] == 0)
    if trainer(name).is_offline:
        # Its batches are clean.
        np.testing.assert_array_equal(history.metrics["attack/size"], 0)
    else:
        # Each learns; what it costs grows with the radius.
        assert np.all(history.returns[1, :, -3:].mean(-1) < GROWTH[name] * history.returns[1, :, 0])
        assert np.all(history.returns[1].min(-1) < history.returns[0].min(-1))
    tried = [jax.tree.map(lambda x, i=i: x[1, i], params) for i in range(2)]
    attacked = [measured_return(trainer(name).attack, one, RADII[1]) for one in tried]
    assert min(attacked) < 1.6 * noise_return
    strongest = tried[int(np.argmin(attacked))]
    # A radius of 0 is no attack: here the way home and the actions' own noise are all that it costs.
    assert noise_return < measured_return(trainer(name).attack, strongest, 0.0)


def test_a_director_that_has_learned_nothing_drives_actions_back() -> None:
    policy_params, obs, radius = jnp.array([1.5, 1.0]), jnp.array([1.0, -2.0]), 0.3
    policy = Policy(lambda key: jnp.ones(2), lambda params, obs: Gaussian(params * obs, jnp.zeros(2)))
    victim = Victim(policy, 2, 2)
    director = make_attack_trainer("director", victim, DirectorConfig(steps=20))
    params = director.params(director.init(jax.random.key(0), Units()))
    silent = director.settled(params._replace(network=jax.tree.map(jnp.zeros_like, params.network)))
    scene, budget = Scene(policy_params, (), True), Budget(jnp.float32(radius), Units())

    def shift(params: Any, number: int) -> np.ndarray:
        found, _ = director.attack.perturb(
            params, director.attack.reset(jax.random.key(0)), jax.random.key(number), obs, scene, budget
        )
        return np.asarray(found - obs)

    # The action `params * obs` is turned around fastest along `-params * (params * obs)`.
    back = -np.asarray(policy_params**2 * obs)
    np.testing.assert_allclose(shift(silent, 1), radius * back / np.linalg.norm(back), atol=1e-3)
    np.testing.assert_allclose(shift(silent, 1), shift(silent, 2), atol=1e-3)
    # One that goes on from it has the noise back that it needs to learn.
    again = director.params(director.init(jax.random.key(0), Units(), silent))
    assert np.abs(shift(again, 1) - shift(again, 2)).max() > 0.01


def test_starts_and_what_they_have_in_common() -> None:
    # One update: the strongest is what collected the first batch, the start itself.
    fresh, history = train("adgan")
    again, _ = train("adgan")
    assert_trees_equal(fresh, again)
    pick = lambda tree, radius, number: jax.tree.map(lambda x: x[radius, number], tree)  # noqa: E731
    # Starts differ; those of different radii do not, as they write in shares of the radius.
    assert_trees_equal(pick(fresh, 0, 0), pick(fresh, 1, 0))
    assert_trees_equal(pick(fresh, 0, 1), pick(fresh, 1, 1))
    kernel = fresh.network["params"]["Dense_0"]["kernel"]
    assert np.all(np.any(kernel[:, 0] != kernel[:, 1], axis=(-1, -2)))
    np.testing.assert_array_equal(fresh.inputs.scale, np.full((2, 2, 2), np.float32(0.3)))
    # All meet the same tasks: attackers of one start have the same steps, only their radii differ.
    assert len(np.unique(history.returns)) == 4
    assert np.all(history.metrics["train/env_steps"] == history.metrics["train/env_steps"][0, 0])

    given = GeneratorParams(
        random_like(lambda key: trainer("adgan").init(key, INPUTS).generator, 5),
        Units(jnp.ones(2), jnp.full(2, 2.0)),
    )
    mixed, _ = train("adgan", start_from=jax.tree.map(lambda x: x[None], given))
    for radius in range(2):
        assert_trees_equal(pick(mixed, radius, 0), given)
        assert_trees_equal(pick(mixed, radius, 1), pick(fresh, radius, 1))


def test_no_update_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps: 0 is not accepted; accepted: 1 or more"):
        train("adgan", steps=0)


@pytest.mark.parametrize("side", ["neither", "support", "query"])
def test_a_pipeline_learns_from_the_side_that_it_attacks(side: str) -> None:
    made = trainer("pipeline")
    state = made.init(jax.random.key(0), INPUTS)
    radii = {name: jnp.full(3, 0.8 * (name == side)) for name in ("support", "query")}

    def collected(seed: int, name: str, lead: tuple[int, ...]) -> Experience:
        """Episodes as the homing policy takes them under the fresh attacker, if that side is attacked."""
        found = random_experience(seed, lead)
        taken, scene = found.trajectory, Scene((), jnp.zeros(1), name == "query")
        seen, _ = made.attack.perturb(
            made.params(state), (), jax.random.key(2), taken.obs, scene, Budget(radii[name][0])
        )
        log_prob = gaussian.log_prob(VICTIM.policy.apply(META_PARAMS, seen), taken.action)
        return found._replace(trajectory=taken._replace(log_prob=log_prob))

    victims = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *x.shape)), META_PARAMS)
    before = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, 1, *x.shape)), META_PARAMS)
    batch = MetaBatch(
        collected(4, "support", (3, 1, 2, 4)),
        collected(5, "query", (3, 2, 4)),
        victims,
        before,
        jnp.zeros((3, 1)),
    )
    batch = batch._replace(support_radius=radii["support"], query_radius=radii["query"])
    budget = Budget(jnp.float32(0.8), Units(jnp.zeros(2), jnp.ones(2)))
    new, _ = jax.jit(made.update)(state, jax.random.key(1), META_PARAMS, batch, budget)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.params.network, state.params.network)
    # Where nothing is attacked there is nothing to learn.
    assert (max(jax.tree.leaves(change)) > 1e-3) == (side != "neither")


def test_a_critic_reads_support_as_it_was_fitted() -> None:
    attack, params = trainer("critic").attack, trainer("critic").init(jax.random.key(0), INPUTS).params
    obs, key = random_experience(5, (2, 4)).trajectory.obs[0, 0], jax.random.key(2)
    scene = Scene(SETUP.learner.policy_params(META_PARAMS), jnp.zeros(1), False)
    seen = [
        attack.perturb(params, (), key, obs, scene._replace(is_query=is_query), Budget(0.5))[0]
        for is_query in (False, True)
    ]
    np.testing.assert_array_equal(*seen)
    assert np.all(seen[0] != obs)


def test_an_attacker_among_others_is_the_one_alone() -> None:
    together, history = train("counter_action", steps=3)
    alone, alone_history = train("counter_action", steps=3, radii=RADII[1:], restarts=1)
    np.testing.assert_allclose(history.returns[1, 0], alone_history.returns[0, 0], rtol=1e-4)
    pick = functools.partial(jax.tree.map, lambda x: x[0, 0])
    mine = jax.tree.map(lambda x: x[1, 0], together)
    assert_trees_close(mine, pick(alone), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def update():
    """One compiled update on a batch in which every step pays the same."""
    step = jax.jit(functools.partial(attack_update_step, trainer=trainer("adgan")))
    query = random_experience(5, (3, 2, 4))
    support = random_experience(4, (3, 1, 2, 4))
    victims = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *x.shape)), META_PARAMS)

    def run(state: AttackerState, reward: float, diverged: float = 0.0) -> AttackerState:
        taken = query.trajectory._replace(reward=jnp.full_like(query.trajectory.reward, reward))
        taken = taken._replace(diverged=taken.diverged.at[1, 0, 2].set(diverged))
        batch = MetaBatch(support, query._replace(trajectory=taken), victims)
        batch = batch._replace(support_radius=jnp.full(3, 0.3), query_radius=jnp.full(3, 0.3))
        return step(state, META_PARAMS, batch)[0]

    return run


@pytest.fixture
def fresh() -> AttackerState:
    """An attacker at its start."""
    made = trainer("adgan")
    budget = Budget(jnp.float32(0.3), Units(jnp.zeros(2), jnp.ones(2)))
    trainer_state = made.init(jax.random.key(0), INPUTS)
    return init_attacker(jax.random.key(3), trainer_state, trainer=made, budget=budget)


def test_the_strongest_attack_is_kept(update, fresh: AttackerState) -> None:
    params = trainer("adgan").params
    first = update(fresh, 1.0)
    second = update(first, 3.0)
    third = update(second, -1.0)
    # A batch is collected by the attack as it was before the update that reads it. Four steps an episode.
    for after, before, attacked_return in ((first, fresh, 4), (second, fresh, 4), (third, second, -4)):
        assert_trees_equal(after.strongest, params(before.trainer))
        assert after.strongest_return == attacked_return
    assert third.step == 3
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params(third.trainer), params(fresh.trainer))
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_an_attack_is_not_judged_by_episodes_that_were_cut_short(update, fresh: AttackerState) -> None:
    first = update(fresh, 1.0)
    broken = update(first, -50.0, diverged=1.0)
    assert broken.strongest_return == 4
    assert_trees_equal(broken.strongest, first.strongest)
    # It learns from the rest of the batch all the same.
    assert broken.step == 2
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), broken.trainer.generator, first.trainer.generator)
    assert max(jax.tree.leaves(moved)) > 1e-3
