"""The benchmarks' own arithmetic, and that what they time is what the project runs."""

import fcntl
import functools
import importlib
import json
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from helpers import assert_trees_close, assert_trees_equal

from admrl_jax import training
from admrl_jax.commands import arguments as command_line
from admrl_jax.config import DefenceConfigs, ScheduleConfig
from admrl_jax.core.settings import ConfigError
from admrl_jax.defences.adgan import AdGANTrainingConfig
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.report.compared import differences, points
from admrl_jax.report.results import read_results
from admrl_jax.runs.artefact import load_policy
from admrl_jax.runs.devices import Devices
from benchmarks import (
    accelerator,
    common,
    defences,
    fisher,
    learning,
    limits,
    mjx_solver,
    new_goals,
    outer_step,
    protocol,
    results_table,
    robustness,
    rollout,
    scaling,
    startup,
    sweep,
    train_step,
)
from benchmarks.common import preset_of, time_in_turn
from experiments.navigation_2d import QUICK
from experiments.train import presets_of

RESULTS = Path(__file__).parent.parent / "results"


@pytest.fixture(scope="module")
def cheetah() -> train_step.Step:
    """A tiny outer step on two devices, compiled once."""
    arguments = train_step.Arguments(
        preset="quick", simulator="mujoco", num_tasks=2, num_trajectories=2, horizon=4, num_devices=2
    )
    return train_step.Step(train_step.config_of("halfcheetah_dir", arguments))


def test_pieces_are_those_of_the_outer_step(cheetah: train_step.Step) -> None:
    state = cheetah.init()
    (watched, metrics), (whole, same_metrics) = cheetah.pieces(state), cheetah.whole(state)
    assert_trees_equal((watched.replace(key=()), metrics), (whole.replace(key=()), same_metrics))
    assert set(cheetah.clock.compiling) == {"collect", "learn", "opponent"}
    assert all(mib > 0 for mib in cheetah.clock.mib.values())
    step = functools.partial(training.outer_step, setup=cheetah.setup, defence=cheetah.defence)
    alone = jax.tree.map(lambda x: x[0], cheetah.devices.local(state))
    expected, _ = jax.jit(step)(alone)
    for before, after in zip(jax.tree.leaves(alone.learner), jax.tree.leaves(expected.learner), strict=True):
        assert np.any(before != after)
    found = jax.tree.map(lambda x: x[0], cheetah.devices.local(whole))
    assert_trees_close(found.learner, expected.learner, rtol=1e-3, atol=1e-4)
    assert_trees_close(found.opponent, expected.opponent, rtol=1e-3, atol=1e-4)


def test_an_outer_step_is_timed_with_its_pieces_and_its_physics(cheetah: train_step.Step) -> None:
    rows = {row["part"]: row for row in train_step.measure(cheetah, repeats=2)}
    assert list(rows) == [
        "whole step",
        "engine alone",
        "collect",
        "learn",
        "opponent",
        "engine within the step",
    ]
    assert rows["whole step"]["share"] == 1
    # The C engine is called from within `collect` only.
    assert rows["engine within the step"]["seconds"] > 0
    assert all(rows[part]["compile_s"] > 0 for part in ("collect", "learn", "opponent"))
    assert {(row["env"], row["simulator"], row["horizon"], row["devices"]) for row in rows.values()} == {
        ("halfcheetah_dir", "mujoco", 4, 2)
    }


def test_the_engine_alone_gets_the_tasks_of_the_step(cheetah: train_step.Step) -> None:
    state = cheetah.init()
    cheetah.pieces(state)
    batch = cheetah.clock.results["collect"][0]
    tasks = np.asarray(cheetah.tasks(cheetah.devices.local(state)))
    taken = jax.tree.map(lambda x: np.asarray(x)[0], batch.query.trajectory)
    # The reward is direction x velocity minus control cost; observation 17 is x.
    velocity = np.diff(taken.obs[..., 17]) / 0.05
    cost = 0.05 * np.sum(np.clip(taken.action / 10, -1, 1) ** 2, axis=-1)
    expected = tasks[:, None, None] * velocity - cost[..., :-1]
    np.testing.assert_allclose(taken.reward[..., :-1], expected, atol=2e-3)


def test_steps_under_defences_are_compared_with_a_plain_one() -> None:
    arguments = defences.Arguments(
        methods=("maml", "smooth"), preset="quick", num_tasks=2, num_trajectories=2, horizon=4, repeats=3
    )
    plain, smooth = defences.measure("navigation_2d", arguments)
    assert (plain["method"], plain["relative"], plain["tasks"]) == ("maml", 1, 2)
    assert smooth["method"] == "smooth" and smooth["relative"] > 0
    with pytest.raises(ConfigError, match=r"methods: 'mamle' is not known; accepted: maml, .*smooth"):
        defences.measure("navigation_2d", replace(arguments, methods=("mamle",)))


def test_a_sweep_of_attackers_is_the_same_in_a_loop_and_compiles_less() -> None:
    sizes = {"num_tasks": 2, "num_trajectories": 2, "updates": 2, "starts": 1, "seeds": 2}
    arguments = sweep.Arguments(radii=(0.2,), **sizes)
    rows = sweep.measure(RESULTS / "navigation_2d", "adgan", arguments)
    assert [row["attackers"] for row in rows] == [2] * 3
    # One that starts attackers, and one for an update; in a loop for each attacker.
    assert [row["programs"] for row in rows] == [2, 2, 4]
    assert max(row["largest_difference"] for row in rows) < 1e-3


def test_an_outer_step_is_scaled(cheetah: train_step.Step) -> None:
    point = scaling.Point("devices", 2, train_step.Arguments(num_tasks=2, num_trajectories=2, horizon=4))
    row = scaling.measure(point, cheetah, repeats=1)
    assert (row["axis"], row["size"], row["tasks"]) == ("devices", 2, 2)
    assert row["seconds"] > 0 and row["compile_s"] > 0
    assert row["program_mib"] == max(cheetah.clock.mib.values())
    assert row["resident_mib"] > 100


def test_open_loop_does_the_steps_of_the_closed_loop() -> None:
    env: Any = make_env(HalfCheetahDirConfig(horizon=3), simulator="mujoco", num_threads=1)
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
    for devices in (Devices(), Devices(2)):
        last = limits.device_alone(env, tasks, qpos, qvel, ctrl, devices)()
        assert len(last[0].sharding.device_set) == (1 if devices.mesh is None else 2)
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
    [
        ("walker", "paper", "env: 'walker' is not accepted"),
        ("reacher", "fast", "preset: 'fast' is not known"),
    ],
)
def test_unknown_presets_are_named(name: str, preset: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preset_of(name, preset)


def test_ways_to_the_same_direction_agree() -> None:
    arguments = fisher.Arguments(num_tasks=2, num_trajectories=4, hidden_sizes=(4,), num_devices=2, repeats=1)
    rows = fisher.measure("navigation_2d", arguments)
    assert rows[0]["relative"] == 1
    for row in rows:
        if "quarter" in row["way"]:
            assert 0.5 < row["cosine"] < 0.9999, "another matrix, and yet nearly the same direction"
        else:
            assert row["cosine"] == pytest.approx(1, abs=1e-4), row["way"]
    assert rows[-1]["way"] == "over 2 CPU devices, task by task"


def test_products_are_counted_as_often_as_they_run() -> None:
    def program(a: jax.Array, b: jax.Array) -> jax.Array:
        b = jax.lax.scan(lambda b, _: (a @ b, None), b, length=3)[0]
        b = jax.lax.while_loop(lambda b: jnp.sum(b) < 0, lambda b: jax.jit(jnp.matmul)(a, b), b)
        return b @ a

    a, b = jnp.ones((2, 2)), jnp.ones((5, 2)).T
    counts = outer_step.count_products(jax.make_jaxpr(program)(a, b @ jnp.ones((5, 2))).jaxpr, 1, 4)
    assert list(counts.values()) == [3 + 4 + 1]
    run, operands = outer_step.products_alone(counts)
    # Eight products of one and the same pair; the first entry of each is summed up.
    (left, right) = operands[0]
    np.testing.assert_allclose(jax.jit(run)(operands), 8 * (left @ right)[0, 0], rtol=1e-5)


def test_a_trust_region_step_beside_its_products() -> None:
    arguments = outer_step.Arguments(num_tasks=2, num_trajectories=4, hidden_sizes=(4,), repeats=1)
    row = outer_step.measure("navigation_2d", arguments, 1)
    assert (row["tasks"], row["samples"], row["hidden"], row["task_block"]) == (2, 2 * 4 * 100, "4", 1)
    # Ten Fisher products of two tasks, each with more than one matrix product, at the least.
    assert row["products"] > 2 * 10 * 2 and row["line_search_steps"] >= 1
    assert row["ratio"] == row["step_s"] / row["products_s"] > 0


@pytest.mark.parametrize(
    ("name", "simulator"), [("navigation_2d", "closed form"), ("hopper_params", "mujoco")]
)
def test_collection_beside_its_engine(name: str, simulator: str) -> None:
    arguments = rollout.Arguments(num_devices=2, num_threads=1, repeats=1)
    row = rollout.measure(arguments, name, simulator, "fgsm", 2, 3, 30)
    assert row["envs"] == 6 and row["devices"] == 2 and row["steps_per_s"] > 0
    if simulator == "closed form":
        assert row["steps"] == 6 * 30 and row["ratio"] == "-"
    else:
        assert 6 * 3 < row["steps"] < 6 * 30, "robots that have fallen are not simulated"
        assert row["ratio"] == pytest.approx(row["steps_per_s"] / row["raw_steps_per_s"])


def test_which_engines_are_timed() -> None:
    assert rollout.engines("navigation_2d", ("all",)) == ["closed form"]
    assert rollout.engines("reacher", ("mjx",)) == ["mjx"]
    found = rollout.engines("reacher", ("all",))
    assert found[:2] == ["mujoco", "mjx"] and not any(name.startswith("brax") for name in found)


def test_every_stage_of_a_run_is_timed() -> None:
    config = replace(
        QUICK,
        seeds=(0, 1),
        methods=("admrl",),
        env=replace(QUICK.env, horizon=8),
        num_devices=1,
        defences=DefenceConfigs(adgan=AdGANTrainingConfig(warmup_steps=7)),
        schedule=ScheduleConfig(pretrain_steps=10, finetune_steps=5, snapshot_every=5),
        eval=replace(QUICK.eval, attacks=("adgan",), undefended_attacks=(), curve_attacks=("adgan",)),
    )
    *rows, whole = protocol.measure(config, repeats=1)
    # One seed or attacker at a time, of three strengths; clean, and three strengths in three cells by two
    # protocols; four policies in the curves, clean and attacked; and the generator before and after.
    assert [(row["stage"], row["of"], row["runs"], row["lanes"], row["steps"]) for row in rows] == [
        ("pretrain", "maml_trpo", 1, 2, 10),
        ("warmup", "admrl", 1, 2, 7),
        ("finetune", "admrl", 1, 2, 5),
        ("attackers", "adgan", 1, 6, 2),
        ("evaluation", "none", 1, 2, 1 + 4),
        ("evaluation", "adgan", 1, 2, 3 * 3 * 2 + 4 + 2),
    ]
    assert {row["lanes_at_once"] for row in rows[:4]} == {1}
    for row in rows:
        assert row["hours"] == pytest.approx(row["runs"] * row["steps"] * row["step_s"] / 3600)
        assert row["first_s"] > 0 < row["step_s"]
    assert whole["stage"] == "all without the suite"
    assert whole["hours"] == pytest.approx(sum(row["hours"] for row in rows))
    assert protocol.count_cells(config) == 5 + 24


def test_starts_are_timed_cold_and_warm() -> None:
    rows = startup.measure("navigation_2d", startup.Arguments(preset="quick", repeats=1))
    assert [row["start"] for row in rows] == ["cold", "warm"]
    for row in rows:
        assert 0 < row["one_step_s"] < row["to_first_step_s"]
        assert row["start_up_s"] == row["to_first_step_s"] - row["one_step_s"]


# Committed runs.


def test_committed_policies_adapt_to_new_goals() -> None:
    arguments = new_goals.Arguments(run=RESULTS / "navigation_2d", goals=30)
    rows = new_goals.measure("maml", arguments)
    assert [row["seed"] for row in rows] == [*range(10)]
    for row in rows:
        assert row["before"] < row["after"] - 5 * row["standard_error"]
        assert row["direction_bound"] < 0
    # Goals at distances 1, 2 and 6: who walks 2 is 1, 0 and 4 away.
    goals = np.array([[1.0, 0.0], [0.0, -2.0], [6.0, 0.0]])
    assert new_goals.direction_bound(goals, 10) == pytest.approx(-10 * 5 / 3)


def test_learning_is_read_from_packed_metrics() -> None:
    name, pre, post = learning.read_curves(RESULTS / "learning" / "reacher", 90)
    assert name == "reacher" and pre.shape == post.shape and pre.shape[0] == 90
    assert learning.read_curves(RESULTS / "halfcheetah_dir_noise", 90)[2].size == 0, "pre-trained elsewhere"
    row = learning.summarise(name, post, pre, 10)
    assert row["outer steps"] == 90 and row["gain"] > 5 * row["standard error"]
    assert row["gain"] == pytest.approx(post[-10:].mean() - post[:10].mean())
    panels = learning.draw({name: (pre, post), "again": (pre, post)}).axes
    assert [ax.get_title() for ax in panels] == ["reacher", "again"]


def test_clean_and_worst_returns_are_drawn_from_committed_attacks() -> None:
    attacks = robustness.read_attacks(RESULTS)
    of = dict(attacks)
    assert {"halfcheetah_dir", "halfcheetah_dir_hardened", "navigation_2d_hardened"} <= of.keys()
    suites = [
        (x.seeds, x.results["plan"]["suite"]) for run, x in attacks if run == "halfcheetah_dir_hardened"
    ]
    assert suites == [([0, 1, 2], "standard"), ([0, 1, 2, 3, 4], "claim"), ([3, 4], "standard")]
    assert {x.results["plan"]["side"] for _, x in attacks} == {"both"}
    # Of several attacks on a policy the one that left least.
    mine = [x for x in attacks if x[0] == "halfcheetah_dir_hardened"]
    lowest = {(row["seed"], row["radius"]): row for row in robustness.lowest_points(mine)}
    assert len(lowest) == 10 and lowest[2, 0.8]["suite"] == "claim"
    for (seed, radius), row in lowest.items():
        left = [
            r["worst"] for _, x in mine for r in points("", x) if (r["seed"], r["radius"]) == (seed, radius)
        ]
        assert row["worst"] == min(left) and len(left) == (1 if radius == 0.5 else 2)
    compared = robustness.paired_rows(attacks)
    hardened = [x for x in compared if x.run == "halfcheetah_dir_hardened"]
    # A run with an undefended method is compared with that, and with no other run's.
    bases = {x.base for x in compared if x.run == "navigation_2d_noise"}
    assert bases == {"MAML of navigation_2d_noise"}
    assert not hardened, "the suite that MAML met had more attackers"
    new = [x for x in compared if x.run == "navigation_2d_memoryless_3_9"]
    assert [(x.radius, x.worst.seeds, x.failed) for x in new] == [(0.1, 7, 0), (0.2, 7, 4)]
    rows = points("run", of["navigation_2d_hardened"])
    assert len(rows) == 18 and all(row["worst"] < row["clean"] for row in rows)
    tests = of["navigation_2d_hardened"].results["tests"]
    first = next(t for t in tests if t["method"] == "maml" and t["seed"] == 0)
    assert rows[0]["worst"] == pytest.approx(np.mean(first["returns"][first["worst"]]))
    mine = [("run", of["navigation_2d_hardened"])]
    row = next(row for row in map(robustness.as_row, differences(mine)) if row["radius"] == 0.5)
    assert (
        row["difference"] == "MAML, smooth - MAML of run"
        and row["seeds"] == 3
        and row["worst"].startswith("34.")
    )
    panels = {ax.get_title(): ax for ax in robustness.draw(attacks).axes}
    # Six runs share a panel, one in two attacks; a policy with memory has its own.
    assert len(panels["halfcheetah_dir, radius 0.8"].collections) == 20
    assert len(panels["navigation_2d, with memory, radius 0.5"].collections) == 6


def test_the_table_of_results_has_the_numbers_of_the_runs() -> None:
    runs = [read_results(RESULTS / name) for name in ("navigation_2d", "halfcheetah_dir")]
    title, _, header, _, *lines = results_table.results_text(runs).splitlines()
    assert (
        title
        == "Doing nothing returns: `navigation_2d` (seeds 0 to 9) -38.5; `halfcheetah_dir` (seed 0) -0.0."
    )
    strengths = " | ".join(f"adGAN, adaptive, {strength}" for strength in (0.2, 0.5, 0.8))
    assert header == f"| environment | method | clean | {strengths} |", "those of both: 0.1 is of one only"
    cells = [line.strip("| ").split(" | ") for line in lines]
    methods = ["MAML", "Random", "FGSM", "adMRL"]
    assert [row[:2] for row in cells] == [[run["env"], method] for run in runs for method in methods]
    posts = [row["post"] for row in runs[0]["rows"] if (row["method"], row["attack"]) == ("fgsm", "none")]
    assert cells[2][2] == f"{np.mean(posts):.1f} [{min(posts):.1f}, {max(posts):.1f}]"


def test_bounds_of_mjx_are_judged_at_states_that_a_policy_visits() -> None:
    # The reacher has no contacts, so any bound is as good; its program is MJX's smallest.
    arguments = mjx_solver.Arguments(iterations=(2,), line_search=(3,), states=16, repeats=1)
    (row,) = mjx_solver.measure(RESULTS / "learning" / "reacher", arguments)
    assert (row["engine"], row["iterations"], row["line search"]) == ("mjx", 2, 3)
    assert 0 < row["qvel error, median"] <= row["99 %"] <= row["largest"] < 1e-3


def test_returns_for_the_bounds_are_those_of_the_adapted_policy() -> None:
    trained = load_policy(RESULTS / "learning" / "reacher", "pretrain", seed=0)
    sampling = replace(trained.config.sampling, num_trajectories=4)
    setup = training.Setup(trained.env, trained.policy, trained.learner, sampling)
    mean, error = mjx_solver.returns(setup, trained.params)
    _, _, post = learning.read_curves(RESULTS / "learning" / "reacher", 100)
    assert abs(mean - post[-10:].mean()) < 4 * error < 0.5 * abs(post[:10].mean())


# The accelerator script.


@pytest.mark.parametrize("tiny", [True, False])
def test_every_part_of_the_accelerator_script_is_accepted_by_its_command(tiny: bool, tmp_path: Path) -> None:
    for name, part in accelerator.parts(tiny).items():
        module, *options = accelerator.command_of(name, part, tmp_path)[2:]
        if module.startswith("experiments."):
            env = module.removeprefix("experiments.")
            arguments = command_line.parse(module, "", presets_of(env), options)
            assert arguments.run_dir == tmp_path / name and arguments.resume
        else:
            arguments = tyro.cli(importlib.import_module(module).Arguments, args=options)
            assert arguments.json == tmp_path / f"{name}.json"


def test_rollouts_on_an_accelerator_have_800_to_65536_robots() -> None:
    for name, (module, *options) in accelerator.parts(False).items():
        if name.startswith("rollout-") and name != "rollout-attacks":
            arguments = tyro.cli(importlib.import_module(module).Arguments, args=options)
            sizes = [n * k for n, k in zip(arguments.num_tasks, arguments.num_trajectories, strict=True)]
            assert sizes == [800, 4096, 16384, 65536] and len(arguments.horizon) == 4


def test_a_part_that_fails_or_hangs_is_noted_and_left_behind(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    stop = threading.Event()
    hung = accelerator.run_part("slow", sleep, tmp_path, time.monotonic() + 0.2, stop)
    assert hung["end"] == "stopped, the time was up"
    broken = [sys.executable, "-m", "benchmarks.no_such_benchmark"]
    failed = accelerator.run_part("broken", broken, tmp_path, time.monotonic() + 60, stop)
    assert failed["end"] == "exit code 1"
    assert "no_such_benchmark" in (tmp_path / "broken.log").read_text()
    json.dumps([hung, failed])


def test_parts_run_side_by_side_until_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command_of(name: str, part: Any, folder: Path) -> list[str]:
        return [sys.executable, "-c", f"import time; time.sleep({0 if name == 'quick' else 60})"]

    chosen = {name: ["benchmarks.rollout"] for name in ("slow", "quick", "late")}
    monkeypatch.setattr(accelerator, "parts", lambda tiny: chosen)
    monkeypatch.setattr(accelerator, "command_of", command_of)
    written: list[list[str]] = []
    note = lambda folder, summary: written.append([x["part"] for x in summary["parts"]])  # noqa: E731
    monkeypatch.setattr(accelerator, "write_summary", note)
    arguments = accelerator.Arguments(folder=tmp_path, together=2, seconds=1.5)
    ends = {x["part"]: x["end"] for x in accelerator.run_parts(("slow", "quick", "late"), arguments)}
    assert ends == {"quick": "done", "slow": "stopped, the time was up", "late": "stopped, the time was up"}
    assert written[0] == ["quick"], "what has ended is written while others run"
    until, stop = time.monotonic() - 1, threading.Event()
    late = accelerator.run_part("late", ["no such command"], tmp_path, until, stop)
    assert late["end"] == "not begun, the time was up"


def test_one_benchmark_times_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    monkeypatch.setenv(common.LOCK, str(lock))
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with ThreadPoolExecutor(1) as pool:
            timed = pool.submit(time_in_turn, {"a": lambda: None}, 1)
            with pytest.raises(TimeoutError):
                timed.result(timeout=0.3)
            fcntl.flock(held, fcntl.LOCK_UN)
            assert len(timed.result(timeout=30)["a"]) == 1
