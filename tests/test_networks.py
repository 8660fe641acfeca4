"""Networks: the policy's activation with its slopes, and the two floors of its standard deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from admrl_jax.core import networks
from admrl_jax.core.networks import Policy, PolicyConfig, make_policy
from admrl_jax.core.settings import ConfigError, check_fields

INIT_STD, MIN_STD = 0.8, 0.05


def with_floor(std_floor: str) -> Policy:
    """A policy of two actions with a high floor."""
    config = PolicyConfig(hidden_sizes=(3,), init_std=INIT_STD, min_std=MIN_STD, std_floor=std_floor)
    return make_policy(2, 2, config)


def std(policy: Policy, raw: jax.Array) -> jax.Array:
    """Standard deviation `[2]` of the policy whose stored parameter is `raw` `[2]`."""
    params = policy.init(jax.random.key(0)) | {"log_std": raw}
    return jnp.exp(policy.apply(params, jnp.ones(2)).log_std)


def test_tanh_and_its_first_three_derivatives() -> None:
    x = jnp.array([-30.0, -2.0, -0.5, 0.0, 1e-4, 0.7, 3.0, 30.0])
    ours, true = networks.ACTIVATIONS["tanh"], jnp.tanh
    for _ in range(4):
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(true)(x), rtol=1e-5, atol=1e-6)
        ours, true = jax.grad(ours), jax.grad(true)


@pytest.mark.parametrize("std_floor", networks.STD_FLOORS)
@pytest.mark.parametrize("min_std", [1e-6, MIN_STD])
def test_an_untrained_policy_has_the_std_it_says(std_floor: str, min_std: float) -> None:
    config = PolicyConfig(hidden_sizes=(3,), init_std=INIT_STD, min_std=min_std, std_floor=std_floor)
    policy = make_policy(2, 2, config)
    dist = policy.apply(policy.init(jax.random.key(0)), jnp.ones(2))
    np.testing.assert_allclose(jnp.exp(dist.log_std), INIT_STD, rtol=1e-5)


@pytest.mark.parametrize("std_floor", networks.STD_FLOORS)
def test_the_std_never_falls_below_its_floor(std_floor: str) -> None:
    raw = jnp.array([-100.0, -5.0])
    assert np.all(std(with_floor(std_floor), raw) >= MIN_STD * (1 - 1e-6))


def test_the_smooth_floor_can_be_left_again() -> None:
    # Far below the point where the hard floor cuts off, at std = min_std, the gradient still says "up".
    policy = with_floor("smooth")
    for raw in (jnp.log(jnp.full(2, MIN_STD)), jnp.full(2, -12.0)):
        gradient = jax.grad(lambda raw: jnp.sum(std(policy, raw)))(raw)
        assert np.all(gradient > 0) and np.all(np.isfinite(gradient))
    # log min_std + softplus(x): nearly the identity far above the floor.
    high = jnp.array([20.0, 30.0])
    np.testing.assert_allclose(jnp.log(std(policy, high)), high + np.log(MIN_STD), rtol=1e-6)


def test_below_the_hard_floor_the_gradient_is_dead() -> None:
    policy = with_floor("hard")
    below, above = np.log(MIN_STD) - 0.1, np.log(MIN_STD) + 0.1
    gradient = jax.grad(lambda raw: jnp.sum(std(policy, raw)))(jnp.array([below, above]))
    np.testing.assert_allclose(gradient, [0, np.exp(above)], rtol=1e-5)
    np.testing.assert_allclose(std(policy, jnp.array([below, above])), [MIN_STD, np.exp(above)], rtol=1e-5)


def test_a_smooth_floor_at_the_first_std_is_refused() -> None:
    # It could only be neared, never started at.
    same = PolicyConfig(init_std=0.5, min_std=0.5)
    with pytest.raises(ConfigError, match=r"policy\.min_std: 0\.5 is not accepted; accepted: a number below"):
        check_fields(same, "policy.")
    check_fields(PolicyConfig(init_std=0.5, min_std=0.5, std_floor="hard"), "policy.")


def test_a_context_starts_at_nothing_and_moves_the_actions() -> None:
    policy = make_policy(2, 2, PolicyConfig(hidden_sizes=(3,), context_size=4))
    params, obs = policy.init(jax.random.key(0)), jnp.ones((5, 2))
    layers = params["mean"]["params"]
    hidden = jnp.tanh(obs @ layers["Dense_0"]["kernel"][:2])
    np.testing.assert_allclose(
        policy.apply(params, obs).mean, hidden @ layers["Dense_1"]["kernel"], rtol=1e-5
    )
    moved = policy.apply(params | {"context": jnp.ones(4)}, obs).mean
    assert float(jnp.min(jnp.abs(moved - policy.apply(params, obs).mean))) > 1e-3
    is_context = policy.part(params, "context")
    assert is_context["context"] == 1 and sum(jax.tree.leaves(is_context)) == 1
