"""Defences: the attack and the radius of every task, how they grow, and that clean tasks are clean."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_policy
from jax.sharding import PartitionSpec

from admrl_jax.attacks.learned.adgan import AdGANConfig
from admrl_jax.attacks.threat import Units
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.core.types import Experience
from admrl_jax.defences.adgan import AdGANTrainingConfig
from admrl_jax.defences.base import Defence, ramp
from admrl_jax.defences.fixed import FGSMTrainingConfig, NoiseConfig
from admrl_jax.defences.registry import DEFENCES
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.runs.devices import TASKS, Devices
from admrl_jax.sampling import SamplingConfig
from admrl_jax.training import Setup, collect_step, init_train_state
from admrl_jax.victims import make_victim

POLICY = tiny_policy()
VICTIM = make_victim(Navigation2D(), POLICY, make_maml_trpo(POLICY))
UNITS = Units(jnp.zeros(2), jnp.ones(2))
RAMPED = {
    "noise": NoiseConfig(radius=0.4, ramp_steps=4, task_share=0.5),
    "fgsm": FGSMTrainingConfig(radius=0.4, ramp_steps=4, task_share=0.5),
    "adgan": AdGANTrainingConfig(
        perturbation_bound=0.4,
        ramp_steps=4,
        task_share=0.5,
        adversary=AdGANConfig(hidden_sizes=(4,), num_epochs=1, num_minibatches=2),
    ),
}


def make(name: str) -> Defence:
    """A defence that grows over four steps and attacks half of the tasks."""
    return DEFENCES[name].make(RAMPED[name], VICTIM)


def test_ramp_golden() -> None:
    np.testing.assert_allclose([ramp(jnp.int32(t), 4) for t in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])
    assert ramp(jnp.int32(0), 0) == 1.0


@pytest.mark.parametrize("name", RAMPED)
def test_every_task_has_its_radius(name: str) -> None:
    defence = make(name)
    state = defence.init(jax.random.key(0), UNITS)
    for step, radius in ((0, 0.1), (2, 0.3), (9, 0.4)):
        exposure = defence.expose(state, jnp.int32(step), UNITS, 6)
        for budget in (exposure.support, exposure.query):
            np.testing.assert_allclose(budget.radius, [radius] * 3 + [0.0] * 3, rtol=1e-6)
            assert budget.units is UNITS


@pytest.mark.parametrize("name", RAMPED)
@pytest.mark.parametrize(("side", "support", "query"), [("support", 1, 0), ("query", 0, 1), ("both", 1, 1)])
def test_one_side_alone_can_be_attacked(name: str, side: str, support: int, query: int) -> None:
    defence = DEFENCES[name].make(dataclasses.replace(RAMPED[name], side=side), VICTIM)
    exposure = defence.expose(defence.init(jax.random.key(0), UNITS), jnp.int32(9), UNITS, 4)
    expected = np.array([0.4, 0.4, 0.0, 0.0])
    np.testing.assert_allclose(exposure.support.radius, support * expected, rtol=1e-6)
    np.testing.assert_allclose(exposure.query.radius, query * expected, rtol=1e-6)
    assert defence.name != make(name).name or side == "both"


@pytest.mark.parametrize(("share", "attacked"), [(1.0, 8), (0.3, 2), (0.2, 2), (0.01, 1)])
def test_shares_are_rounded_to_whole_tasks(share: float, attacked: int) -> None:
    defence = DEFENCES["noise"].make(NoiseConfig(radius=0.4, task_share=share), VICTIM)
    radius = defence.expose((), jnp.int32(0), UNITS, 8).query.radius
    np.testing.assert_allclose(radius, [0.4] * attacked + [0.0] * (8 - attacked))


def test_devices_together_hold_the_radii_of_one() -> None:
    defence, devices = make("noise"), Devices(4)

    def radii(step: jax.Array, axis: TaskAxis) -> jax.Array:
        return defence.expose((), step, UNITS, 8, axis).query.radius

    spread = devices.spread(
        functools.partial(radii, axis=devices.axis), PartitionSpec(), PartitionSpec(TASKS)
    )
    np.testing.assert_array_equal(jax.jit(spread)(jnp.int32(1)), radii(jnp.int32(1), TaskAxis()))


def test_the_clean_share_of_the_tasks_is_clean_and_schedules_count_from_the_start() -> None:
    setup = Setup(
        Navigation2D(NavigationConfig(horizon=5)),
        POLICY,
        make_maml_trpo(POLICY),
        SamplingConfig(num_tasks=4, num_trajectories=3),
    )
    defence = make("fgsm")
    state = init_train_state(jax.random.key(0), setup, defence)
    collect = jax.jit(functools.partial(collect_step, setup=setup, defence=defence))

    def moved(experience: Experience) -> np.ndarray:
        """Largest move of any observation, `[N]`; FGSM moves each by exactly its radius."""
        taken = experience.trajectory
        return np.abs(taken.perturbed_obs - taken.obs).reshape(4, -1).max(-1)

    for step, start, radius in ((0, 0, 0.1), (11, 0, 0.4), (11, 10, 0.2)):
        batch, metrics = collect(state.replace(step=jnp.int32(step), start=jnp.int32(start)))
        for experience in (batch.support, batch.query):
            np.testing.assert_allclose(moved(experience), [radius, radius, 0, 0], rtol=1e-4)
            np.testing.assert_array_equal(
                experience.trajectory.perturbed_obs[2:], experience.trajectory.obs[2:]
            )
        # Every task holds its own budget: a clean one has none to hide in.
        assert metrics["attack/budget_excess"] == 0
        assert 0.4 * radius < metrics["attack/size"] < 0.6 * radius


def test_what_the_registry_builds() -> None:
    made = {name: spec.make(spec.config(), VICTIM) for name, spec in DEFENCES.items()}
    assert all(spec.name == name for name, spec in DEFENCES.items())
    # Names stand for compiled programs: other settings, other names.
    names = [defence.name for defence in made.values()] + [make(name).name for name in RAMPED]
    assert len(set(names)) == len(names)
    for name, defence in made.items():
        state = defence.init(jax.random.key(0), UNITS)
        exposure = defence.expose(state, jnp.int32(0), UNITS, 4)
        clean = name in ("none", "smooth")
        assert bool(np.any(exposure.query.radius > 0)) != clean
        assert (defence.loss_term is not None) == (name == "smooth")
        assert (defence.update is not None) == (name in ("adgan", "population"))
        assert (defence.attack_params is not None) == (defence.trained_attack == "adgan") == (name == "adgan")
    with pytest.raises(ConfigError, match=r"num_minibatches: 8 is not accepted"):
        made["adgan"].check_batch(3, 3)
    made["noise"].check_batch(3, 3)
