"""Computed truths: no perturbation escapes the bounds, and no attack does more harm than the planned one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import random_like

from admrl_jax.attacks.base import Attack
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.noise import l2_noise, no_attack
from admrl_jax.attacks.pgd import pgd
from admrl_jax.attacks.threat import Budget, Units, make_threat
from admrl_jax.core.gaussian import Gaussian
from admrl_jax.core.networks import Policy, PolicyConfig, make_policy
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.sampling import collect, episode_returns
from admrl_jax.truth.choices import polar_points, tried_choices
from admrl_jax.truth.grid import PlanConfig, axis_nodes
from admrl_jax.truth.interpolation import chance_between, node_weights, tents
from admrl_jax.truth.intervals import affine_bounds, mean_bounds
from admrl_jax.truth.navigation import (
    plan_value,
    planned_attack,
    planned_returns,
    relaxed_values,
    solve,
)
from benchmarks import references

SCALE = jnp.array([0.5, 2.0, 0.0])
RADII = jnp.array([0.0, 0.01, 0.1, 0.5, 2.0])


def mlp(activation: str, size: float, hidden: tuple[int, ...] = (16, 12), context_size: int = 0):
    """A policy of three observations, five random parameters, and observations `[5, 10, 3]` for them."""
    config = PolicyConfig(hidden_sizes=hidden, activation=activation, context_size=context_size)
    policy = make_policy(3, 2, config)
    params = [random_like(policy.init, seed, size) for seed in range(5)]
    obs = 2 * jax.random.normal(jax.random.key(0), (5, 10, 3))
    return policy, jax.tree.map(lambda *x: jnp.stack(x), *params), obs


def in_ball(key: jax.Array, norm: str, shape: tuple[int, ...]) -> jax.Array:
    """Points of a norm's unit ball, half of them on its surface."""
    x, inward = jax.random.normal(key, (*shape, 3)), jax.random.uniform(jax.random.fold_in(key, 1), shape)
    length = {"l2": jnp.linalg.norm(x, axis=-1), "linf": jnp.max(jnp.abs(x), axis=-1)}[norm]
    return x / length[..., None] * jnp.where(inward < 0.5, 1.0, inward)[..., None]


@pytest.mark.parametrize(("activation", "context_size"), [("tanh", 0), ("relu", 2)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_perturbation_escapes(norm: str, activation: str, context_size: int) -> None:
    policy, params, obs = mlp(activation, 0.8, context_size=context_size)
    threat = make_threat(label="", norm=norm, strength="", knowledge="none")

    @jax.jit
    @jax.vmap
    def check(params, obs, key):
        def one(radius: jax.Array, obs: jax.Array, key: jax.Array):
            budget = Budget(radius, Units(jnp.zeros(3), SCALE))
            seen = obs + radius * in_ball(key, norm, (1000,)) * SCALE
            mean = policy.apply(params, seen).mean
            bounds = mean_bounds(params, obs, budget, norm=norm, activation=activation)
            outside = jnp.maximum(bounds.low - mean, mean - bounds.high)
            return jnp.max(outside), threat.measure(obs, seen, budget).excess

        each = jax.vmap(one, (0, None, 0))
        return jax.vmap(each, (None, 0, 0))(RADII, obs, jax.random.split(key, (10, 5)))

    # 5 policies, 10 observations, 5 radii, 1000 perturbations: a million over the four cases.
    outside, excess = check(params, obs, jax.random.split(jax.random.key(1), 5))
    assert np.all(np.asarray(excess) == 0)
    assert np.max(outside) <= 0


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(16,), (12, 8, 10)])
def test_no_mixture_of_corners_escapes(hidden: tuple[int, ...], activation: str) -> None:
    policy, params, obs = mlp(activation, 0.8, hidden)

    @jax.jit
    @jax.vmap
    def check(params, obs, key):
        def one(size: jax.Array, obs: jax.Array, key: jax.Array):
            key_corners, key_mix = jax.random.split(key)
            corners = size * jax.random.normal(key_corners, (4, 3))
            parts = jax.random.exponential(key_mix, (1000, 4)) ** 3
            mixed = parts / jnp.sum(parts, axis=-1, keepdims=True) @ corners
            bounds = affine_bounds(params, obs, corners, activation=activation)
            found = policy.apply(params, obs + mixed).mean - (bounds.centre + mixed @ bounds.slope)
            return jnp.max(jnp.abs(found) - bounds.error), jnp.max(bounds.error)

        each = jax.vmap(one, (0, None, 0))
        return jax.vmap(each, (None, 0, 0))(RADII, obs, jax.random.split(key, (10, 5)))

    outside, error = check(params, obs, jax.random.split(jax.random.key(1), 5))
    assert np.max(outside) <= 0
    # Rounding alone; then tight where the perturbation is small.
    assert np.max(error[..., 0]) < 3e-3 and np.max(error[..., 1]) < 1e-2
    assert np.median(error[..., 2]) < 0.05


def test_bounds_are_those_of_the_mean_at_radius_0_and_grow_with_it() -> None:
    policy, params, obs = mlp("tanh", 0.8)
    radii = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-4, 3.0, 30)])
    bounds = jax.jit(
        jax.vmap(
            lambda r: jax.vmap(lambda p, o: mean_bounds(p, o, Budget(r, Units(0.0, SCALE))))(params, obs)
        )
    )(radii)
    mean = jax.vmap(policy.apply)(params, obs).mean
    np.testing.assert_allclose(bounds.low[0], mean, atol=3e-3)
    np.testing.assert_allclose(bounds.high[0], mean, atol=3e-3)
    assert np.all(np.diff(bounds.low, axis=0) <= 0) and np.all(np.diff(bounds.high, axis=0) >= 0)


def test_weights_are_those_of_the_clipped_gaussian() -> None:
    mean, std, limit = np.array([-0.3, -0.07, 0.0, 0.02, 0.5]), np.array([0.05, 0.1, 0.03, 0.0, 0.2]), 0.1
    weights = np.asarray(node_weights(jnp.asarray(mean), jnp.asarray(std), limit, 9))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert np.all(weights > -1e-5)
    # The expectation of a function that is linear between the nodes, by a fine sum over quantiles.
    nodes = np.linspace(-limit, limit, 9)
    values = np.sin(60 * nodes)
    quantiles = scipy.stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    moves = np.clip(mean[:, None] + std[:, None] * quantiles, -limit, limit)
    np.testing.assert_allclose(weights @ values, np.interp(moves, nodes, values).mean(-1), atol=1e-4)
    for low, high in ((-0.02, 0.03), (0.06, 0.2), (-0.3, -0.1)):
        between = jnp.float32(low), jnp.float32(high)
        found = chance_between(*between, jnp.asarray(mean), std=jnp.asarray(std), limit=limit)
        np.testing.assert_allclose(found, np.mean((moves > low) & (moves < high), axis=-1), atol=1e-4)


def test_interpolation_is_linear_and_constant_outside() -> None:
    nodes = np.array([-1.0, 0.0, 2.0], np.float32)
    weights = tents(jnp.asarray(nodes), jnp.array([-3.0, -1.0, -0.25, 0.0, 0.5, 7.0]))
    expected = [[1, 0, 0], [1, 0, 0], [0.25, 0.75, 0], [0, 1, 0], [0, 0.75, 0.25], [0, 0, 1]]
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_mesh_covers_the_disc() -> None:
    points = polar_points(12, 3)
    assert points.shape == (37, 2)
    np.testing.assert_allclose(np.linalg.norm(points[-12:], axis=-1), 1, rtol=1e-6)
    # The chords of the outermost shell, pushed outwards as the relaxed attacker has them, touch the circle.
    outer = points[-12:] / math.cos(math.pi / 12)
    middles = (outer + np.roll(outer, -1, axis=0)) / 2
    np.testing.assert_allclose(np.linalg.norm(middles, axis=-1), 1, rtol=1e-6)


# A short task: eight steps, and a coarse grid for it.
ENV = Navigation2D(NavigationConfig(horizon=8))
PLAN = PlanConfig(spacing=0.05, middle=0.4, growth=1.5, directions=8, mesh_directions=16, between=5)
GOALS = jnp.array([[0.3, -0.2], [-0.1, 0.25]])


def feedback(gain: float, std: float) -> Policy:
    """Goes a share of the way to a target, which is its parameter."""
    scale = ENV.config.action_scale

    def apply(target: jax.Array, obs: jax.Array) -> Gaussian:
        move = jnp.clip(gain * (target - obs), -ENV.config.max_move, ENV.config.max_move)
        return Gaussian(scale * move, jnp.full((2,), math.log(scale * std)))

    return Policy(lambda key: jnp.zeros(2), apply)


NOISY = feedback(0.5, 0.03)


@functools.cache
def planned(num_trajectories: int = 300):
    """Plans and episodes of the noisy policy for any radius."""
    return jax.jit(
        lambda radius: planned_returns(
            *(GOALS, jax.random.key(0), GOALS, Budget(radius)),
            env=ENV,
            policy=NOISY,
            num_trajectories=num_trajectories,
            config=PLAN,
        )
    )


def returns_under(attack: Attack, radius: float) -> np.ndarray:
    """Returns of the noisy policy `[2, K]`."""

    def one(goal: jax.Array, key: jax.Array) -> jax.Array:
        sizes = {"num_trajectories": 300, "env": ENV, "policy": NOISY, "attack": attack, "is_query": True}
        return episode_returns(collect(goal, (), key, goal, budget=Budget(radius), **sizes))

    return np.asarray(jax.jit(jax.vmap(one))(GOALS, jax.random.split(jax.random.key(3))))


@functools.partial(jax.jit, static_argnames=("policy", "env"))
def value_of(radius: jax.Array, goal: jax.Array, *, policy: Policy, env: Navigation2D) -> jax.Array:
    choose = tried_choices(goal, Budget(radius), policy=policy, config=PLAN)
    return plan_value(solve(choose, goal, env=env, config=PLAN), jnp.zeros(2))


def standard_error(returns: np.ndarray) -> np.ndarray:
    return np.asarray(returns).std(axis=-1, ddof=1) / returns.shape[-1] ** 0.5


def test_one_step_by_hand() -> None:
    # From the origin to the goal (0.3, 0) at full gain: an offset of (0.5, 0) shows the goal 0.2 behind. The
    # move is clipped to -0.1, which leaves 0.4. One of (0.25, 0) lets it move by 0.05, which leaves 0.25.
    env, goal = Navigation2D(NavigationConfig(horizon=1)), jnp.array([0.3, 0.0])
    for radius, expected in ((0.0, -0.2), (0.25, -0.25), (0.5, -0.4)):
        value = value_of(jnp.float32(radius), goal, policy=feedback(1.0, 1e-7), env=env)
        np.testing.assert_allclose(value, expected, atol=1e-3)


def test_an_episode_that_ends_forgoes_the_rest() -> None:
    # The goal is one exact move away, and noise too small to miss it: the first step ends the episode.
    goal = jnp.array([0.1, -0.05])
    value = value_of(jnp.float32(0.0), goal, policy=feedback(1.0, 1e-4), env=ENV)
    # The distance is linear in pieces of 0.014, so it misses the kink by at most that.
    np.testing.assert_allclose(value, 0.0, atol=0.014 * 2**0.5)
    # Half of the noise is clipped at the edge of a move, which lies within the goal's box.
    chance = chance_between(
        jnp.float32(0.09), jnp.float32(0.11), jnp.float32(0.1), std=jnp.float32(0.05), limit=0.1
    )
    np.testing.assert_allclose(chance, 1 - scipy.stats.norm.cdf(-0.2), rtol=1e-5)


@pytest.mark.parametrize("radius", [0.0, 0.2])
def test_the_value_is_the_return_of_the_greedy_attack(radius: float) -> None:
    found = planned()(radius)
    # 0.02 for the grid: 1 % of the return.
    error = np.abs(found.returns.mean(axis=-1) - found.estimate)
    assert np.all(error < 0.02 + 4 * standard_error(found.returns)), (error, found.estimate)


def test_radius_0_is_no_attack() -> None:
    clean = returns_under(no_attack(), 0.0)
    error = np.abs(clean.mean(axis=-1) - planned()(0.0).estimate)
    assert np.all(error < 0.02 + 4 * standard_error(clean)), error


@pytest.mark.parametrize(
    ("attack", "radius"), [(l2_noise(), 0.2), (fgsm(NOISY), 0.2 / 2**0.5), (pgd(NOISY), 0.2)]
)
def test_no_attack_of_the_radius_does_more_harm(attack: Attack, radius: float) -> None:
    simple, best = returns_under(attack, radius), planned()(0.2).returns
    margin = simple.mean(axis=-1) - best.mean(axis=-1)
    assert np.all(margin > -4 * np.hypot(standard_error(simple), standard_error(best))), margin


def test_more_radius_does_more_harm() -> None:
    estimates = [planned()(radius).estimate for radius in (0.0, 0.1, 0.2, 0.4)]
    assert np.all(np.diff(estimates, axis=0) < 0)


def test_the_attack_keeps_its_budget() -> None:
    units = Units(jnp.zeros(2), jnp.array([0.5, 2.0]))
    attack, budget = planned_attack(NOISY, ENV, PLAN), Budget(jnp.float32(0.2), units)

    @jax.jit
    def run(goal: jax.Array):
        plan = solve(tried_choices(goal, budget, policy=NOISY, config=PLAN), goal, env=ENV, config=PLAN)
        sizes = {"num_trajectories": 20, "env": ENV, "policy": NOISY, "attack": attack, "is_query": True}
        return plan, collect(goal, plan, jax.random.key(0), goal, budget=budget, **sizes)

    plan, taken = run(GOALS[0])
    fresh = jax.eval_shape(attack.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, plan)
    measured = attack.threat.measure(taken.obs, taken.perturbed_obs, budget)
    np.testing.assert_array_equal(measured.excess, 0)
    assert np.median(measured.size) == pytest.approx(0.2, rel=1e-4)


def test_goals_can_be_mapped_over() -> None:
    def value(goal: jax.Array) -> jax.Array:
        choose = tried_choices(goal, Budget(0.2), policy=NOISY, config=PLAN)
        return solve(choose, goal, env=ENV, config=PLAN).values

    together = jax.jit(jax.vmap(value))(GOALS)
    for goal, values in zip(GOALS, together, strict=True):
        np.testing.assert_allclose(jax.jit(value)(goal), values, rtol=1e-4, atol=1e-5)


def test_the_grid_reaches_as_far_as_the_point() -> None:
    nodes = axis_nodes(ENV, PLAN)
    assert nodes[-1] >= 0.8 and nodes[-2] < 0.8
    np.testing.assert_array_equal(nodes, -nodes[::-1])
    assert np.all(np.diff(nodes) > 0) and 0 in nodes


def test_the_relaxed_value_is_a_lower_bound() -> None:
    policy = make_policy(2, 2, PolicyConfig(hidden_sizes=(8, 8), init_std=0.3))
    params = jax.tree.map(lambda *x: jnp.stack(x), *(random_like(policy.init, seed, 0.7) for seed in (1, 2)))
    sizes = {"env": ENV, "policy": policy, "config": PLAN}

    @jax.jit
    def both(radius: jax.Array):
        budget = Budget(radius)

        def tried(params, goal: jax.Array) -> jax.Array:
            choose = tried_choices(params, budget, policy=policy, config=PLAN)
            return plan_value(solve(choose, goal, env=ENV, config=PLAN), jnp.zeros(2))

        return jax.vmap(tried)(params, GOALS), relaxed_values(params, GOALS, budget, **sizes)

    for radius, gap in ((0.0, 1e-2), (0.1, 0.1), (0.5, 0.5)):
        tried, relaxed = both(jnp.float32(radius))
        assert np.all(relaxed <= tried + 1e-4), radius
        assert np.all(tried - relaxed < gap), (radius, tried - relaxed)


def test_references_at_toy_size() -> None:
    arguments = references.Arguments(radii=(0.0, 0.2), gains=(1.0,), lattice=2, episodes=20, spacing=0.1)
    goals, weights = references.lattice_goals(Navigation2D(), 16)
    assert goals.shape == (36, 2) and weights.sum() == pytest.approx(1)
    rows = references.References(arguments, ENV).rows()
    found = {(row["reference"], row["radius"], row["gain"]): row["return"] for row in rows}
    # From the origin to (0.25, 0.25): 0.354 away, and 0.212, 0.071, then near it.
    known = found["feedback, goal known", 0.0, 1.0]
    assert -0.8 < known < -0.4
    assert found["feedback, goal known", 0.2, 1.0] < known - 0.3
    assert found["zero action, no noise", 0.0, "-"] == pytest.approx(-8 * 0.25 * 2**0.5, rel=1e-4)
    assert found["blind, goal known, no noise", 0.0, "-"] == pytest.approx(-0.2828, rel=1e-2)
