"""Bodies that differ from task to task: how they are drawn, and that none leaks into another's simulation."""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from helpers import assert_trees_equal, engine_step

from admrl_jax.envs.random_dynamics import (
    HopperParams,
    HopperParamsConfig,
    Walker2dParams,
    Walker2dParamsConfig,
)
from admrl_jax.envs.registry import make_env
from admrl_jax.simulators import ModelParams, SimState, SimulatorError
from admrl_jax.simulators import mujoco as mujoco_simulator
from admrl_jax.simulators.models import load_model
from admrl_jax.simulators.mujoco import HostEngine, with_params

FAMILIES = {"hopper_params": HopperParamsConfig(), "walker2d_params": Walker2dParamsConfig()}
BASES = (1.5, 1.5, 1.5, 1.3)
"""ProMP's; exponents are uniform in +-3, so factors lie within 1.5^3 = 3.375 and 1.3^3 = 2.197."""


@functools.cache
def family(name: str) -> Any:
    """Walker2d or Hopper on the C engine."""
    return make_env(FAMILIES[name], simulator="mujoco", num_threads=2)


def bodies(name: str, count: int, seed: int = 0) -> ModelParams:
    """Drawn bodies, leading axis `count`."""
    return jax.vmap(family(name).sample_task)(jax.random.split(jax.random.key(seed), count))


def pick(body: ModelParams, index: Any) -> ModelParams:
    """Some of a batch of bodies."""
    return jax.tree.map(lambda x: x[index], body)


@functools.cache
def walk(name: str, num_axes: int):
    """Compiled: qpos and qvel over 5 control steps of one start and bodies with some batch axes."""
    env = family(name)
    actions = 7.0 * jax.random.normal(jax.random.key(5), (5, env.action_size))

    def run(body: ModelParams) -> tuple[jax.Array, jax.Array]:
        def step(state: SimState, action: jax.Array):
            state, _ = env.step(state, action, body)
            return state, (state.qpos, state.qvel)

        return jax.lax.scan(step, env.reset(jax.random.key(6), body)[0], actions)[1]

    for _ in range(num_axes):
        run = jax.vmap(run)
    return jax.jit(run)


@pytest.mark.parametrize("name", FAMILIES)
def test_factors_multiply_the_model_files_numbers(name: str) -> None:
    env, tasks = family(name), bodies(name, 300)
    model = load_model(env.model)
    for field, base, drawn in zip(ModelParams._fields, BASES, tasks, strict=True):
        default, drawn = np.asarray(getattr(model, field), np.float64), np.asarray(drawn, np.float64)
        assert drawn.shape == (300, *default.shape)
        zero = np.broadcast_to(default == 0, drawn.shape)
        np.testing.assert_array_equal(drawn[zero], 0)
        exponent = (np.log(drawn[:, default != 0] / default[default != 0])) / np.log(base)
        assert np.abs(exponent).max() <= 3 + 1e-5, field
        # Uniform in +-3, each entry of its own: deviation 3 / sqrt(3), no correlation.
        np.testing.assert_allclose(exponent.mean(0), 0, atol=0.4, err_msg=field)
        np.testing.assert_allclose(exponent.std(0), np.sqrt(3), rtol=0.12, err_msg=field)
        correlation = np.atleast_2d(np.corrcoef(exponent.T))
        assert np.abs(correlation - np.eye(len(correlation))).max() < 0.3, field
    # The world has no mass, the root no damping.
    assert np.all(np.asarray(tasks.body_mass)[:, 0] == 0) and np.all(np.asarray(tasks.dof_damping)[:, 0] == 0)
    assert np.all(np.asarray(tasks.body_mass)[:, 1:] > 0)


def test_settings_of_the_draw() -> None:
    config = HopperParamsConfig(log_scale_limit=1.0, body_scale_base=2.0, damping_scale_base=4.0)
    env: Any = make_env(config, simulator="mujoco")
    tasks = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(0), 200))
    default = env.simulator.default_params()
    for field, base in (("body_mass", 2), ("body_inertia", 2), ("geom_friction", 2), ("dof_damping", 4)):
        drawn, file = np.asarray(getattr(tasks, field)), np.asarray(getattr(default, field))
        factor = drawn[:, file != 0] / file[file != 0]
        assert 0.9 * base < factor.max() <= base * (1 + 1e-5)
        assert (1 - 1e-5) / base <= factor.min() < 1.1 / base
    same: Any = make_env(dataclasses.replace(config, log_scale_limit=0.0), simulator="mujoco")
    assert_trees_equal(same.sample_task(jax.random.key(0)), default)


def test_drawing_and_stepping_leave_the_model_file_alone() -> None:
    env = family("hopper_params")
    first, default = bodies("hopper_params", 3), env.simulator.default_params()
    start = env.simulator.init(jnp.asarray(env.simulator.qpos0), jnp.zeros(env.simulator.nv))
    own = jax.jit(lambda: env.simulator.step(start, jnp.full(3, 0.3)))
    before = own()
    for seed in range(5):
        walk("hopper_params", 1)(bodies("hopper_params", 3, seed))
    # Factors never compound: the same key gives the same body, whatever was drawn and simulated before.
    assert_trees_equal(bodies("hopper_params", 3), first)
    assert_trees_equal(env.simulator.default_params(), default)
    assert_trees_equal(own(), before)
    # And a task whose body is the file's own moves like it, up to the float32 of its numbers.
    given = jax.jit(lambda: env.simulator.step(start, jnp.full(3, 0.3), default))()
    np.testing.assert_allclose(given.qpos, before.qpos, atol=1e-5)
    np.testing.assert_allclose(given.qvel, before.qvel, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_bodies_in_one_batch_do_not_leak(name: str) -> None:
    body = bodies(name, 2)
    together = walk(name, 1)(body)
    alone = [walk(name, 0)(pick(body, i)) for i in range(2)]
    for i in range(2):
        assert_trees_equal(jax.tree.map(lambda x, i=i: x[i], together), alone[i])
    assert np.abs(alone[0][0] - alone[1][0]).max() > 1e-2, "another body moves another way"
    # Tasks x trajectories, as in training; every trajectory of a task has the task's body.
    nested = walk(name, 2)(jax.tree.map(lambda x: jnp.stack([x, x[::-1]], axis=1), body))
    for i, j in np.ndindex(2, 2):
        assert_trees_equal(jax.tree.map(lambda x, i=i, j=j: x[i, j], nested), alone[(i + j) % 2])


def test_earlier_bodies_come_back_with_their_bits() -> None:
    # The engine keeps the models of the last batches of bodies.
    first, second = bodies("hopper_params", 4, seed=1), bodies("hopper_params", 4, seed=2)
    run = walk("hopper_params", 1)
    a, b = run(first), run(second)
    assert np.abs(a[0] - b[0]).max() > 1e-2
    assert_trees_equal(run(first), a)
    assert_trees_equal(run(second), b)
    # Fewer bodies than models, in another order; then all of them again.
    order = np.array([3, 1, 3, 3])
    assert_trees_equal(run(pick(first, order)), jax.tree.map(lambda x: x[order], a))
    assert_trees_equal(walk("hopper_params", 0)(pick(second, 2)), jax.tree.map(lambda x: x[2], b))
    assert_trees_equal(run(first), a)


def test_subtree_masses_are_mujocos() -> None:
    # The compiler's own sums are the reference: spoiled, they must come back.
    model = load_model(Walker2dParams.model)
    expected = model.body_subtreemass.copy()
    model.body_subtreemass[:] = -1
    params: Any = ModelParams._make(np.array(getattr(model, name)) for name in ModelParams._fields)
    np.testing.assert_allclose(with_params(model, params).body_subtreemass, expected, rtol=1e-12)
    # And a body of twice the mass gets its own.
    double = with_params(model, params._replace(body_mass=2 * params.body_mass))
    np.testing.assert_allclose(double.body_subtreemass, 2 * expected, rtol=1e-12)
    np.testing.assert_array_equal(model.body_subtreemass, -1, "the copied model is left alone")


def test_models_are_built_once_for_every_batch_of_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two devices share an engine: their batches come in turn, every control step.
    built: list[int] = []

    def counted(*args: Any) -> Any:
        built.append(1)
        return with_params(*args)

    monkeypatch.setattr(mujoco_simulator, "with_params", counted)
    model = load_model(HopperParams.model)
    engine = HostEngine(model, frame_skip=1, num_threads=1)
    batches: list[Any] = [jax.tree.map(np.asarray, bodies("hopper_params", 3, seed)) for seed in range(12)]
    rest = np.zeros((3, model.nv))

    def step(batch: Any) -> None:
        engine_step(engine, np.tile(model.qpos0, (3, 1)), rest, rest, np.zeros((3, 3)), *batch)

    for _ in range(5):
        for batch in batches[:2]:
            step(batch)
    assert len(built) == 2 * 3
    # What is kept is bounded.
    for batch in batches:
        step(batch)
    assert len(engine._variants) == mujoco_simulator.BATCHES_KEPT


def test_every_number_of_a_body_reaches_the_engine() -> None:
    # A hopper that slides along the floor on its foot: each field alone must change what happens next.
    model = load_model(HopperParams.model)
    engine = HostEngine(model, frame_skip=8, num_threads=1)
    default: Any = ModelParams._make(np.array(getattr(model, name))[None] for name in ModelParams._fields)
    qpos, qvel = np.array(model.qpos0)[None], np.zeros((1, model.nv))
    qvel[0, 0] = 1.0
    ctrl = np.full((1, 3), 0.5)

    def step(body: Any) -> np.ndarray:
        state: Any = (qpos, qvel, np.zeros_like(qvel))
        for _ in range(5):
            state = engine_step(engine, *state, ctrl, *body)
        return np.concatenate(state[:2], axis=1)

    before = step(default)
    assert np.all(np.isfinite(before))
    for name in ModelParams._fields:
        after = step(default._replace(**{name: 1.5 * getattr(default, name)}))
        assert np.abs(after - before).max() > 1e-3, name
    np.testing.assert_array_equal(step(default), before)
    # The model that the engine was given is nobody's scratch paper.
    fresh = load_model(HopperParams.model)
    for name in (*ModelParams._fields, "body_subtreemass"):
        np.testing.assert_array_equal(getattr(engine.model, name), getattr(fresh, name))


def test_heavier_bodies_fall_alike_but_are_harder_to_move() -> None:
    # A ball on a falling hinge, without damping or armature: with mass and inertia doubled, gravity does the
    # same and the motor half as much.
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><option timestep="0.002"/><worldbody><body pos="0 0 9"><joint type="slide" axis="0 0 1"/>
        <joint name="hinge" axis="0 1 0"/><geom size="0.1" pos="0.3 0 0" mass="1"/></body></worldbody>
        <actuator><motor joint="hinge"/></actuator></mujoco>"""
    )
    engine = HostEngine(model, frame_skip=1, num_threads=1)
    default: Any = ModelParams._make(np.array(getattr(model, name))[None] for name in ModelParams._fields)
    double = default._replace(body_mass=2 * default.body_mass, body_inertia=2 * default.body_inertia)
    rest, push = np.zeros((1, 2)), np.ones((1, 1))

    def speed(body: Any, ctrl: np.ndarray) -> np.ndarray:
        return engine_step(engine, rest, rest, rest, ctrl, *body)[1][0]

    # One step: 9.81 m/s^2 x 0.002 s, whatever the mass.
    for body in (default, double):
        np.testing.assert_allclose(speed(body, 0 * push)[0], -9.81 * 0.002, rtol=1e-6)
    light, heavy = (speed(body, push) - speed(body, 0 * push) for body in (default, double))
    np.testing.assert_allclose(heavy, light / 2, rtol=1e-6)
    assert abs(light[1]) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_engines_without_bodies_per_task_are_refused(name: str) -> None:
    with pytest.raises(SimulatorError) as error:
        make_env(name, simulator="brax-spring")
    assert str(error.value) == (
        f"simulator: {name} does not run on 'brax-spring'; accepted: auto, mujoco, mjx, mjx-warp"
    )
    # Built by hand on such an engine, it says the same before anything is drawn.
    env = family(name)
    with pytest.raises(
        SimulatorError, match=rf"^simulator: 'other' cannot change .* {name} needs; accepted: auto,"
    ):
        type(env)(env.simulator._replace(name="other", default_params=None), env.config)


def test_the_robots_are_mujocos() -> None:
    for name, kind in (("hopper_params", HopperParams), ("walker2d_params", Walker2dParams)):
        env = family(name)
        assert type(env) is kind
        # 8 physics steps of 0.002 s.
        np.testing.assert_allclose(env.simulator.dt, 0.016, rtol=1e-6)
        assert env.horizon == 200
