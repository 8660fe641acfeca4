"""Attacks and their threat model: exact step sizes, projections, budgets, and what radius 0 means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_like, tiny_policy

from admrl_jax.attacks.base import Attack, Scene, Victim, memoryless
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.noise import L2_NOISE, gaussian_noise
from admrl_jax.attacks.pgd import THREAT_LINF, PGDConfig, divergence, pgd
from admrl_jax.attacks.registry import ATTACKS, make_attack, make_attack_trainer
from admrl_jax.attacks.threat import KNOWLEDGE, NORMS, Budget, Units, make_threat, project_l2
from admrl_jax.core.settings import ConfigError

POLICY = tiny_policy(obs_size=3)
VICTIM = Victim(POLICY, 3, 2)
OBS = jnp.array([[0.3, -1.5, 2.0], [0.0, 1e-3, -40.0], [7.0, 0.25, 0.5]])
SCALE = jnp.array([0.5, 2.0, 0.0])
STUCK = (jnp.array([5.0, 5.0, 5.0]), jnp.array(2))
"""Memory of a sensor that has shown something else and is stuck for two more steps."""


def measure_by(norm: str):
    """A threat model's measurement by its norm alone."""
    return make_threat(label="", norm=norm, strength="", knowledge="none").measure


@functools.cache
def perturber(name: str):
    """One compiled attack on all rows of `OBS`, for any budget."""
    attack = make_attack(name, VICTIM)
    attack_params = random_like(attack.init, 1, size=2.0)
    policy_params = random_like(POLICY.init, 2)
    memory = STUCK if name == "stuck_sensor" else attack.reset(jax.random.key(0))

    @jax.jit
    def perturb(budget: Budget, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(OBS))
        return jax.vmap(attack.perturb, in_axes=(None, None, 0, 0, None, None))(
            attack_params, memory, keys, OBS, Scene(policy_params), budget
        )[0]

    return lambda radius, scale=1.0, seed=0: perturb(
        Budget(jnp.float32(radius), Units(jnp.zeros(3), jnp.broadcast_to(jnp.float32(scale), 3))),
        jax.random.key(seed),
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_radius_zero_changes_nothing(name: str) -> None:
    np.testing.assert_array_equal(perturber(name)(0.0), OBS)
    np.testing.assert_array_equal(perturber(name)(0.0, SCALE), OBS)


@pytest.mark.parametrize("name", ATTACKS)
def test_dimensions_of_scale_zero_never_move(name: str) -> None:
    perturbed = np.asarray(perturber(name)(0.4, SCALE))
    np.testing.assert_array_equal(perturbed[:, 2], OBS[:, 2])
    if name not in ("none", "sensor_dropout", "sensor_delay"):  # these move to what was shown before
        assert np.all(perturbed[:, :2] != OBS[:, :2])


def test_whoever_moves_what_cannot_be_moved_breaks_the_budget() -> None:
    budget = Budget(0.5, Units(jnp.zeros(3), SCALE))
    moved = OBS.at[1, 2].add(0.001)
    for norm, excess in (("l2", np.inf), ("linf", np.inf), ("none", 0)):
        found = measure_by(norm)(OBS, moved, budget).excess
        assert found[1] == excess and np.all(np.delete(found, 1) == 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_its_budget(name: str) -> None:
    for radius, scale in ((0.1, jnp.ones(3)), (0.8, SCALE)):
        budget = Budget(radius, Units(jnp.zeros(3), scale))
        measured = make_attack(name, VICTIM).threat.measure(OBS, perturber(name)(radius, scale), budget)
        np.testing.assert_array_equal(measured.excess, 0)
        if name in ("fgsm", "l2_noise"):  # both use the whole of their budget
            np.testing.assert_allclose(measured.size, radius, rtol=1e-4)


def test_fgsm_moves_every_coordinate_by_exactly_the_radius() -> None:
    perturbed = perturber("fgsm")(0.2)
    up, down = OBS + jnp.float32(0.2), OBS - jnp.float32(0.2)
    assert np.all((perturbed == up) | (perturbed == down))
    scaled = perturber("fgsm")(0.2, SCALE)
    assert np.all((scaled == OBS + 0.2 * SCALE) | (scaled == OBS - 0.2 * SCALE))


def test_fgsm_without_a_gradient_takes_a_random_corner() -> None:
    attack, blind = fgsm(POLICY), jax.tree.map(jnp.zeros_like, random_like(POLICY.init, 0))
    keys = jax.random.split(jax.random.key(0), 32)
    moved = jax.jit(
        jax.vmap(lambda k: attack.perturb((), (), k, jnp.zeros(3), Scene(blind), Budget(0.5))[0])
    )(keys)
    np.testing.assert_array_equal(np.abs(moved), 0.5)
    assert len({tuple(row) for row in np.asarray(moved)}) == 8


def test_fgsm_changes_the_action_more_than_random_corners() -> None:
    params = random_like(POLICY.init, 2)
    clean = POLICY.apply(params, OBS).mean
    corners = OBS + 0.2 * jax.random.rademacher(jax.random.key(3), (64, *OBS.shape), jnp.float32)

    def change(obs: jax.Array) -> np.ndarray:
        return np.linalg.norm(POLICY.apply(params, obs).mean - clean, axis=-1)

    # Saturated coordinates leave little to gain; on average over the rows the attack is the stronger one.
    assert change(perturber("fgsm")(0.2)).mean() > 1.2 * change(corners).mean()


def test_gaussian_noise_has_the_std_it_says() -> None:
    attack = gaussian_noise()
    scale = jnp.array([1.0, 3.0, 0.0])
    noise = jax.vmap(
        lambda k: attack.perturb((), (), k, OBS[0], Scene(()), Budget(0.5, Units(0.0, scale)))[0]
    )(jax.random.split(jax.random.key(0), 20000))
    std = np.array([0.5, 1.5, 0.0])
    noise = np.asarray(noise - OBS[0], np.float64)
    # Standard errors: std / sqrt(2 n) of the standard deviation and std / sqrt(n) of the mean.
    assert np.all(np.abs(noise.std(0) - std) <= 4 * std / 40000**0.5)
    assert np.all(np.abs(noise.mean(0)) <= 4 * std / 20000**0.5)


def test_projection_golden() -> None:
    # |(3, 4)| = 5 is brought to radius 2, a factor of 0.4; shorter vectors and zero stay bitwise.
    x = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(project_l2(x, 2.0)[0], [1.2, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(project_l2(x, 2.0)[1:], x[1:])
    np.testing.assert_array_equal(project_l2(x, 0.0), 0)


def test_projection_keeps_the_norm_below_the_radius() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(500, 7)) * 10.0 ** rng.uniform(-6, 6, (500, 1)), jnp.float32)
    projected = np.asarray(project_l2(x, 0.3), np.float64)
    assert np.linalg.norm(projected, axis=-1).max() <= 0.3 * (1 + 4e-7)  # a few roundings of float32


def test_perturbation_size_golden() -> None:
    # In units of (1, 2) the move (3, 8) is (3, 4): L2 size 5, largest entry 4. The centre does not matter.
    budget = Budget(1.0, Units(jnp.array([100.0, -7.0]), jnp.array([1.0, 2.0])))
    measured = [
        measure_by(norm)(jnp.zeros(2), jnp.array([3.0, 8.0]), budget) for norm in ("l2", "linf", "none")
    ]
    np.testing.assert_allclose([m.size for m in measured], [5, 4, 5], rtol=1e-6)
    # Beyond the radius of 1: 4 and 3 less the slack for rounding near nothing; noise is not bounded.
    np.testing.assert_allclose([m.excess for m in measured], [4, 3, 0], rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_cheating_attack_is_caught(norm: str) -> None:
    threat = make_threat(label="cheat", norm=norm, strength="", knowledge="none")
    cheat = memoryless(lambda a, k, obs, p, b: obs + 1.01 * b.radius * jnp.eye(3)[0], threat)
    budget = Budget(jnp.float32(0.5), Units(jnp.zeros(3), jnp.ones(3)))
    perturbed, _ = cheat.perturb((), (), jax.random.key(0), OBS, Scene(()), budget)
    excess = cheat.threat.measure(OBS, perturbed, budget).excess
    # 1.01 * 0.5 is 0.005 too far, less the slack for rounding.
    np.testing.assert_allclose(excess, 0.005, atol=1e-4)
    assert np.all(excess > 0)
    np.testing.assert_array_equal(measure_by("none")(OBS, OBS + 9, budget).excess, 0)


@pytest.mark.parametrize("norm", ["l2", "linf", "none"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_numbers_have_infinite_excess(norm: str, bad: float) -> None:
    excess = measure_by(norm)(OBS, OBS.at[0, 1].set(bad), Budget(1.0)).excess
    np.testing.assert_array_equal(excess, [np.inf, 0, 0])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rounding_at_a_far_centre_is_forgiven(norm: str) -> None:
    # Near 1000 a float32 has steps of 6e-5, so an honest perturbation of 0.2 arrives rounded by half of that.
    obs = jnp.linspace(1000.0, 1000.3, 64)[:, None] * jnp.ones(2)
    step = 0.2 if norm == "linf" else 0.2 / 2**0.5
    measured = measure_by(norm)(obs, obs + step, Budget(0.2, Units(jnp.full(2, 1000.0), jnp.ones(2))))
    np.testing.assert_array_equal(measured.excess, 0)


def test_raw_perturbation_scales_with_the_radius() -> None:
    perturbed = np.asarray([perturber("adgan")(r) - OBS for r in (0.1, 0.2)])
    np.testing.assert_allclose(perturbed[1], 2 * perturbed[0], atol=2e-5)


def test_radii_may_differ_by_task() -> None:
    # Radii [N] of observations [N, K, O]: the same move of 0.3 breaks one task's budget of 0.1, not 0.5.
    obs = jnp.zeros((2, 3, 2))
    moved = obs.at[..., 0].add(0.3)
    measured = measure_by("l2")(obs, moved, Budget(jnp.array([0.1, 0.5])))
    np.testing.assert_allclose(measured.size, np.full((2, 3), 0.3), rtol=1e-6)
    np.testing.assert_allclose(measured.excess, [[0.2] * 3, [0.0] * 3], atol=1e-5)


def test_units_golden() -> None:
    # (obs - centre) / scale; what has scale 0 is 0 there.
    units = Units(jnp.array([1.0, -2.0, 5.0]), jnp.array([2.0, 0.5, 0.0]))
    np.testing.assert_allclose(units.apply(jnp.array([3.0, -1.0, 9.0])), [1, 2, 0])
    np.testing.assert_allclose(units.shift(jnp.array([3.0, -1.0, 9.0])), [1.5, -2, 0])
    np.testing.assert_array_equal(Units().apply(OBS), OBS)


def mean_action_change(perturbed: jax.Array, obs: jax.Array, params) -> np.ndarray:
    """Mean over observations of the shift of the mean action, in standard deviations, `[]`."""
    before, after = POLICY.apply(params, obs), POLICY.apply(params, perturbed)
    return np.linalg.norm((after.mean - before.mean) * jnp.exp(-before.log_std), axis=-1).mean()


def test_more_gradient_steps_change_the_action_more() -> None:
    params = random_like(POLICY.init, 2)
    obs = jax.random.normal(jax.random.key(4), (256, 3))
    keys = jax.random.split(jax.random.key(5), 256)
    budget = Budget(0.2)

    def perturbed(attack: Attack) -> jax.Array:
        one = lambda key, x: attack.perturb((), (), key, x, Scene(params), budget)[0]  # noqa: E731
        return jax.jit(jax.vmap(one))(keys, obs)

    moved = {steps: perturbed(pgd(POLICY, PGDConfig(steps=steps))) for steps in (1, 3)}
    noise = mean_action_change(perturbed(make_attack("l2_noise", VICTIM)), obs, params)
    one, three = (mean_action_change(moved[steps], obs, params) for steps in (1, 3))
    # One step along the gradient finds most of what noise of the same size misses.
    assert three > 1.1 * one > 1.4 * noise
    assert three > 1.5 * noise
    for x in moved.values():
        measured = L2_NOISE.measure(obs, x, budget)
        np.testing.assert_array_equal(measured.excess, 0)
        # It climbs to the edge of its ball.
        assert np.median(measured.size) > 0.19


def test_ten_steps_do_at_least_as_much_as_one_and_as_fgsm() -> None:
    params = random_like(POLICY.init, 2, size=1.5)
    obs = jax.random.normal(jax.random.key(4), (256, 3))
    keys = jax.random.split(jax.random.key(5), 256)

    def change(attack: Attack) -> np.ndarray:
        one = lambda key, x: attack.perturb((), (), key, x, Scene(params), Budget(0.2))[0]  # noqa: E731
        return mean_action_change(jax.jit(jax.vmap(one))(keys, obs), obs, params)

    linf = {"objective": divergence, "threat": THREAT_LINF}
    ten = PGDConfig(steps=10, step_share=0.3, restarts=3)
    strongest = change(pgd(POLICY, ten, **linf))
    # In the same ball; the way back from a face that was a mistake is worth more than the first step.
    assert strongest > 1.02 * change(pgd(POLICY, PGDConfig(steps=1), **linf))
    assert strongest > 1.02 * change(fgsm(POLICY))
    assert change(pgd(POLICY, ten)) >= change(pgd(POLICY, PGDConfig(steps=1)))


def test_every_attack_in_the_registry_says_what_it_may_and_knows() -> None:
    for name, spec in ATTACKS.items():
        assert spec.name == name and spec.threat.norm in NORMS and spec.threat.knowledge in KNOWLEDGE
        assert spec.threat.label and spec.threat.strength
    labels = [spec.threat.label for spec in ATTACKS.values()]
    assert len(set(labels)) == len(labels)


def test_threats_and_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm: 'l1' is not known; accepted: none, l2, linf"):
        measure_by("l1")
    with pytest.raises(ConfigError, match="knowledge: 'all' is not known; accepted: none, actions, policy, "):
        make_threat(label="", norm="l2", strength="", knowledge="all")
    with pytest.raises(ConfigError, match="attack: 'nosie' is not known; accepted: none, gaussian, "):
        make_attack("nosie", VICTIM)
    with pytest.raises(ConfigError, match="attack: 'fgsm' learns nothing; accepted: critic, snoop, "):
        make_attack_trainer("fgsm", VICTIM)
