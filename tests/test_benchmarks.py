"""The benchmarks' own arithmetic, and that what they time is what the project runs."""

import functools
import importlib
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from helpers import assert_trees_close
from jax.sharding import NamedSharding, PartitionSpec

from admrl_jax import envs, training
from admrl_jax.checks import ConfigError
from admrl_jax.env_config import HalfCheetahDirConfig
from admrl_jax.sharding import TASKS, task_mesh
from benchmarks import accelerator, fisher, limits, scaling, train_step
from benchmarks.common import preset_of, time_in_turn


@pytest.fixture(scope="module")
def navigation() -> train_step.Parts:
    arguments = train_step.Arguments(preset="quick", num_tasks=2, num_trajectories=4, horizon=4)
    return train_step.Parts(train_step.config_of("navigation_2d", arguments))


def test_parts_are_those_of_the_outer_step(navigation: train_step.Parts) -> None:
    parts, key = navigation, jax.random.key(7)
    state, tasks = parts.init()
    whole = jax.jit(
        functools.partial(
            training.collect_meta_batch,
            env=parts.env,
            policy=parts.policy,
            attack=parts.adgan.attack,
            support_budget=state.budget,
            query_budget=state.budget,
            config=parts.maml,
        )
    )(state.policy_params, state.adversary.generator_params, key, tasks)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), state.policy_params)
    rollouts = jax.jit(parts.rollouts)
    support = rollouts(params, state, jax.random.split(jax.random.fold_in(key, 0), 2), tasks)
    adapted = jax.jit(parts.adaptation)(params, support)
    query = rollouts(adapted, state, jax.random.split(jax.random.fold_in(key, 1), 2), tasks)
    one_batch = jax.tree.map(lambda x: x[:, 0], whole.support)
    assert_trees_close(support, one_batch, rtol=1e-4, atol=1e-5)
    assert_trees_close(adapted, whole.adapted_params, rtol=1e-4, atol=1e-5)
    assert_trees_close(query, whole.query, rtol=1e-4, atol=1e-5)


def test_open_loop_does_the_steps_of_the_closed_loop() -> None:
    env = envs.make(HalfCheetahDirConfig(horizon=3), simulator="mujoco", num_threads=1)
    tasks = jnp.array([-1.0, 1.0])
    qpos, qvel = limits.draw_starts(env, jax.random.key(0), tasks, 2)
    action = 20 * jax.random.normal(jax.random.key(1), (2, 2, 3, env.action_size))
    state = jax.vmap(jax.vmap(env.simulator.init))(qpos, qvel)
    step = jax.jit(jax.vmap(jax.vmap(env.step, in_axes=(0, 0, None))))
    with limits.engine_clock() as calls:
        for t in range(3):
            state, _ = jax.block_until_ready(step(state, action[:, :, t], tasks))
    assert len(calls) == 3 and all(seconds > 0 for seconds in calls)
    step(state, action[:, :, 0], tasks)[0].qpos.block_until_ready()
    assert len(calls) == 3, "the clock stops with its block"
    low, high = jnp.asarray(env.simulator.ctrl_range).T
    ctrl = jnp.clip(action / env.config.action_scale, low, high)
    # Any engine's step can be scanned; the C engine's is the one that compiles fast.
    # Controls that come from two devices are spread over them, as the closed loop's are.
    mesh = task_mesh(2)
    spread_ctrl = jax.device_put(ctrl, NamedSharding(mesh, PartitionSpec(TASKS)))
    for last in (
        limits.device_alone(env, tasks, qpos, qvel, ctrl)(),
        limits.device_alone(env, tasks, qpos, qvel, spread_ctrl, mesh)(),
    ):
        np.testing.assert_allclose(last[0], state.qpos, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(last[1], state.qvel, rtol=1e-4, atol=1e-5)


def test_calls_are_timed_in_turn_after_one_warm_up() -> None:
    calls: list[str] = []
    seconds = time_in_turn({name: functools.partial(calls.append, name) for name in "ab"}, repeats=2)
    assert calls == list("ababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_exponent_is_the_power() -> None:
    sizes = (1, 2, 4, 8)
    assert math.isclose(scaling.exponent(sizes, [3.0 * s**2 for s in sizes]), 2.0)
    assert math.isclose(scaling.exponent(sizes, [5.0 / s for s in sizes]), -1.0)
    assert scaling.exponent((4, 4), (1.0, 2.0)) == "-"
    assert scaling.exponent(sizes, (0.0, 1.0, 2.0, 3.0)) == "-"


def test_exponents_are_those_of_the_row_s_own_axis() -> None:
    rows = [
        {"axis": axis, "size": size, "seconds": size**power, "program_mib": 1.0 * size}
        for axis, power in (("tasks", 1), ("devices", -1))
        for size in (1, 2, 4)
    ]
    fitted = {(row["axis"], round(row["seconds_exponent"], 6)) for row in scaling.with_exponents(rows)}
    assert fitted == {("tasks", 1.0), ("devices", -1.0)}


def test_one_size_grows_at_a_time() -> None:
    arguments = scaling.Arguments(factors=(1, 16), num_devices=(1, 4))
    found = [
        (p.axis, p.size, p.step.num_tasks, p.step.num_trajectories, p.step.horizon, p.step.num_devices)
        for p in scaling.points(arguments)
    ]
    assert found == [
        ("tasks", 8, 8, 8, 64, 1),
        ("tasks", 128, 128, 8, 64, 1),
        ("trajectories", 8, 8, 8, 64, 1),
        ("trajectories", 128, 8, 128, 64, 1),
        ("horizon", 64, 8, 8, 64, 1),
        ("horizon", 1024, 8, 8, 1024, 1),
        ("devices", 1, 64, 8, 64, 1),
        ("devices", 4, 64, 8, 64, 4),
    ]
    with pytest.raises(ConfigError, match="axis: 'width' is not known"):
        scaling.points(scaling.Arguments(axis=("width",)))


@pytest.mark.parametrize(
    ("name", "preset", "words"),
    [("walker", "paper", "env: 'walker' is not known"), ("reacher", "fast", "preset: 'fast' is not known")],
)
def test_unknown_presets_are_named(name: str, preset: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preset_of(name, preset)


def test_ways_to_the_same_direction_agree() -> None:
    arguments = fisher.Arguments(num_tasks=2, num_trajectories=4, hidden_sizes=(4,), num_devices=1, repeats=1)
    rows = fisher.measure("navigation_2d", arguments)
    assert rows[0]["relative"] == 1
    for row in rows:
        if "quarter" in row["way"]:
            assert 0.5 < row["cosine"] < 0.9999, "another matrix, and yet nearly the same direction"
        else:
            assert row["cosine"] == pytest.approx(1, abs=1e-4), row["way"]


@pytest.mark.parametrize("tiny", [True, False])
def test_every_part_of_the_accelerator_script_is_accepted_by_its_benchmark(tiny: bool) -> None:
    for module, *options in accelerator.parts(tiny).values():
        arguments_type = importlib.import_module(f"benchmarks.{module}").Arguments
        tyro.cli(arguments_type, args=[*options, "--json=x.json"])


def test_rollouts_on_an_accelerator_have_the_sizes_in_their_names() -> None:
    for name, (module, *options) in accelerator.parts(False).items():
        if name.startswith("rollout-mjx"):
            arguments = tyro.cli(importlib.import_module(f"benchmarks.{module}").Arguments, args=options)
            assert arguments.num_tasks[0] * arguments.num_trajectories[0] == int(name.split("-")[-1])


def test_a_part_that_fails_or_hangs_is_noted_and_left_behind(tmp_path: Path) -> None:
    arguments = accelerator.Arguments(folder=tmp_path, seconds=0.2)
    hung = accelerator.run_part("slow", ["outer_step"], arguments)
    assert hung["end"] == "stopped after 0.2 s"
    arguments = accelerator.Arguments(folder=tmp_path)
    failed = accelerator.run_part("broken", ["no_such_benchmark"], arguments)
    assert failed["end"] == "exit code 1"
    assert "no_such_benchmark" in (tmp_path / "broken.log").read_text()
    json.dumps([hung, failed])
