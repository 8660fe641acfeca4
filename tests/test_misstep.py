"""The attack on the step of adaptation, where its best perturbation is known in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.attacks.base import Scene, Victim
from admrl_jax.attacks.learned.misstep import MisstepConfig, MisstepParams, make_misstep
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy
from admrl_jax.core.types import Experience, MetaBatch, Trajectory

RADIUS = 0.5
OBS = jnp.array([1.0, -2.0])
ACTING, OWN, OTHER = jnp.array([0.5, 1.0]), jnp.array([1.0, 3.0]), jnp.array([-1.0, 2.0])
POLICY = Policy(
    lambda key: jax.random.normal(key, (2,)), lambda params, obs: Gaussian(params * obs, jnp.zeros(2))
)
VICTIM = Victim(POLICY, 2, 2, task_size=1, task_features=lambda task: jnp.atleast_1d(task))
KNOWN = MisstepParams(jnp.array([[0.0], [10.0]]), jnp.stack([OTHER, OWN]), jnp.array([1, 0]), ACTING)


def seen(memory: float, *, is_query: bool = False, task: float = 9.0, **settings: Any) -> np.ndarray:
    """What a policy `mean = params * obs` is shown, in radii from the truth."""
    trainer = make_misstep(MisstepConfig(**({"steps": 20, "step_share": 0.3} | settings)), VICTIM)
    scene = Scene(ACTING, jnp.float32(task), is_query)
    budget = Budget(jnp.float32(RADIUS), Units())
    found, after = trainer.attack.perturb(KNOWN, jnp.float32(memory), jax.random.key(1), OBS, scene, budget)
    assert after == memory
    return np.asarray(found - OBS) / RADIUS


def unit(x: jax.Array) -> np.ndarray:
    return np.asarray(x / jnp.linalg.norm(x))


WANTED = unit((OWN - OTHER) * OBS)


def test_on_query_data_the_action_is_driven_to_the_other_policys() -> None:
    np.testing.assert_allclose(seen(1.0, is_query=True), -unit(ACTING * WANTED), atol=0.02)
    # Near the other task the policies change places.
    np.testing.assert_allclose(seen(1.0, is_query=True, task=1.0), unit(ACTING * WANTED), atol=0.02)


def test_on_support_data_the_step_is_turned_around() -> None:
    against = seen(1.0, against=1.0, spread=0.0)
    np.testing.assert_allclose(against, -unit((OWN - ACTING) * WANTED), atol=0.02)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_on_support_data_episodes_are_driven_apart(sign: float) -> None:
    np.testing.assert_allclose(seen(sign, against=0.0, spread=1.0), sign * unit(ACTING * WANTED), atol=0.02)
    both = unit(2.0 * sign * ACTING * WANTED - (OWN - ACTING) * WANTED)
    np.testing.assert_allclose(seen(sign, against=1.0, spread=2.0), both, atol=0.02)


def test_a_longer_step_goes_further() -> None:
    few = [seen(1.0, against=1.0, spread=0.0, steps=1, step_share=share) for share in (0.01, 0.3)]
    goal = -unit((OWN - ACTING) * WANTED)
    assert few[0] @ goal < few[1] @ goal - 0.01


def test_half_of_the_episodes_go_each_way() -> None:
    reset = make_misstep(MisstepConfig(), VICTIM).attack.reset
    signs = np.asarray(jax.vmap(reset)(jax.random.split(jax.random.key(0), 400)))
    assert set(signs) == {-1.0, 1.0} and abs(signs.mean()) < 0.15


def test_it_remembers_the_policies_of_a_batch_and_who_acts_least_alike() -> None:
    policies = jnp.array([[1.0, 1.0], [-0.5, 0.5], [-1.0, -2.0]])
    before = jnp.full((3, 2), 0.25)
    obs = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    zeros = jnp.zeros((3, 4, 5))
    query = Experience(Trajectory(obs, obs, obs, zeros, zeros, jnp.ones((3, 4, 5)), zeros), zeros)
    support = jax.tree.map(lambda x: x[:, None], query)
    tasks, radius = jnp.array([3.0, 4.0, 5.0]), jnp.full(3, RADIUS)
    batch = MetaBatch(
        support=support,
        query=query,
        support_params=before[:, None],
        adapted_params=policies,
        tasks=tasks,
        support_radius=radius,
        query_radius=radius,
    )
    trainer = make_misstep(MisstepConfig(num_policies=4), VICTIM)
    state = trainer.init(jax.random.key(0), Units())
    found, metrics = trainer.update(state, jax.random.key(1), ACTING, batch, Budget(jnp.float32(RADIUS)))
    # Fewer tasks than it remembers: the first once more.
    np.testing.assert_array_equal(found.features[:, 0], [3, 4, 5, 3])
    np.testing.assert_array_equal(found.policies, policies[jnp.array([0, 1, 2, 0])])
    np.testing.assert_array_equal(found.other, [2, 2, 0, 2])
    np.testing.assert_array_equal(found.unadapted, before[0])
    assert metrics["adversary/unlike"] > 0
