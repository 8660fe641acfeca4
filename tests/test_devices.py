"""Tasks spread over (fake) devices give what one device gives."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close

from admrl_jax.attacking import attack_step, init_attacker
from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.fgsm import fgsm
from admrl_jax.attacks.learned.adgan import AdGANConfig
from admrl_jax.attacks.learned.counter_action import CounterActionConfig
from admrl_jax.attacks.registry import make_attack_trainer
from admrl_jax.attacks.threat import Budget, Units
from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.task_axis import TaskAxis
from admrl_jax.defences.adgan import train_against
from admrl_jax.defences.base import Defence
from admrl_jax.defences.smooth import SmoothConfig, smooth_defence
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.envs.navigation import NavigationConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.evaluation import EvalResult, evaluate
from admrl_jax.learners.maml_trpo import MAMLTRPOConfig, make_maml_trpo
from admrl_jax.learners.promp import ProMPConfig, make_promp
from admrl_jax.learners.trpo import TRPOConfig
from admrl_jax.runs.devices import (
    SAME,
    Devices,
    choose_num_devices,
    start_devices,
    task_mesh,
    tasks_at,
)
from admrl_jax.sampling import SamplingConfig, expose
from admrl_jax.training import Setup, init_train_state, outer_step

SAMPLING = SamplingConfig(num_tasks=8, num_trajectories=4)
MAML = MAMLTRPOConfig(trpo=TRPOConfig(cg_iterations=3, cg_damping=0.1))
"""Few, well damped iterations: ten at 1e-5 would amplify the rounding of a sum's order."""
ADVERSARY = AdGANConfig(hidden_sizes=(8,), num_epochs=2, num_minibatches=2)
CONFIGS = {
    "navigation_2d": NavigationConfig(horizon=8),
    "halfcheetah_dir": HalfCheetahDirConfig(horizon=4),
}


def make_setup(name: str, learner: str = "maml_trpo") -> Setup:
    """An environment with a small policy."""
    env = make_env(CONFIGS[name], num_threads=1)
    policy = make_policy(env.obs_size, env.action_size, PolicyConfig(hidden_sizes=(8,)))
    made = make_promp(policy, ProMPConfig()) if learner == "promp" else make_maml_trpo(policy, MAML)
    return Setup(env, policy, made, SAMPLING)


def victim(setup: Setup) -> Victim:
    """What attacks are built against."""
    return setup.victim


def alone_and_spread(step: Callable[..., Any], state: Any) -> tuple[Any, Any]:
    """`step(state, axis=)` on one device, one task at a time, and on eight."""
    devices = Devices(8)
    spread = devices.spread(functools.partial(step, axis=devices.axis), SAME, SAME)
    return jax.jit(functools.partial(step, axis=TaskAxis(1)))(state), jax.jit(spread)(state)


def assert_same_metrics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Double precision leaves the order of sums, not what physics and Adam make of it."""
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        # The residual is a share of the gradient: its rounding is that of 1, in single precision.
        atol = 1e-6 if key == "train/cg_residual" else 1e-9
        np.testing.assert_allclose(ours[key], value, rtol=1e-6, atol=atol, err_msg=key)


def assert_same_bits_everywhere(tree: Any) -> None:
    """Every device holds the same bits."""
    for leaf in jax.tree.leaves(tree):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 8
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def against_adgan(setup: Setup) -> Defence:
    """A quarter of the tasks stays clean, on devices of their own."""
    trainer = make_attack_trainer("adgan", victim(setup), ADVERSARY)
    return train_against(trainer, radius=0.1, attack_name="adgan", task_share=0.75)


def smooth(setup: Setup) -> Defence:
    """A loss term, with randomness of its own per task."""
    return smooth_defence(SmoothConfig(query_weight=1.0, support_weight=1.0), victim(setup))


@pytest.mark.parametrize(
    ("name", "learner", "make_defence"),
    [
        ("navigation_2d", "maml_trpo", against_adgan),
        ("halfcheetah_dir", "maml_trpo", against_adgan),
        ("navigation_2d", "maml_trpo", smooth),
        ("navigation_2d", "promp", smooth),
    ],
)
def test_eight_devices_train_like_one(
    name: str, learner: str, make_defence: Callable[[Setup], Defence], x64: None
) -> None:
    setup = make_setup(name, learner)
    defence = make_defence(setup)
    state = init_train_state(jax.random.key(0), setup, defence)
    step = functools.partial(outer_step, setup=setup, defence=defence)
    alone, spread = alone_and_spread(step, state)
    assert_same_metrics(spread[1], alone[1])
    assert spread[1]["train/skipped"] == 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone[0].learner, state.learner)
    assert max(jax.tree.leaves(moved)) > 1e-3
    for part in ("learner", "opponent"):
        assert_trees_close(getattr(spread[0], part), getattr(alone[0], part), rtol=1e-5, atol=1e-7)
    assert_same_bits_everywhere(spread[0].learner)


@pytest.mark.parametrize(
    ("name", "config"),
    [("adgan", ADVERSARY), ("counter_action", CounterActionConfig(hidden_sizes=(8,), num_steps=3))],
)
def test_eight_devices_attack_like_one(name: str, config: Any, x64: None) -> None:
    setup = make_setup("navigation_2d")
    trainer = make_attack_trainer(name, victim(setup), config)
    inputs = Units(jnp.zeros(2), jnp.full(2, 0.3))
    state = init_attacker(
        jax.random.key(1),
        trainer.init(jax.random.key(2), inputs),
        trainer=trainer,
        budget=Budget(jnp.asarray(0.2), Units(jnp.zeros(2), jnp.ones(2))),
    )
    meta_params = setup.policy.init(jax.random.key(3))

    def step(state: Any, axis: TaskAxis) -> Any:
        return attack_step(state, meta_params, setup=setup, trainer=trainer, axis=axis)

    alone, spread = alone_and_spread(step, state)
    assert_same_metrics(spread[1], alone[1])
    assert spread[1]["adversary/skipped"] == 0
    np.testing.assert_allclose(spread[0].strongest_return, alone[0].strongest_return, rtol=1e-6)
    assert np.isfinite(alone[0].strongest_return) != trainer.is_offline
    before, ours, theirs = (trainer.params(x.trainer).network for x in (state, spread[0], alone[0]))
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), theirs, before))) > 1e-4
    assert_trees_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert_same_bits_everywhere(ours)


def test_meta_test_is_spread_without_changing_an_episode() -> None:
    setup, devices = make_setup("navigation_2d"), Devices(4)
    params = setup.policy.init(jax.random.key(0))
    tasks = jax.vmap(setup.env.sample_task)(jax.random.split(jax.random.key(5), 8))
    attack = fgsm(setup.policy)

    def run(params: Any, tasks: jax.Array, axis: TaskAxis = TaskAxis()) -> EvalResult:
        tasks = axis.share(tasks)
        exposure = expose(attack, (), Budget(0.1), num_tasks=len(tasks))
        return evaluate(params, jax.random.key(6), tasks, exposure, setup=setup, axis=axis)

    alone = jax.jit(run)(params, tasks)
    spread = devices.spread(
        functools.partial(run, axis=devices.axis), SAME, EvalResult(tasks_at(0), SAME, SAME, SAME)
    )
    spread = jax.jit(spread)(params, tasks)
    np.testing.assert_allclose(spread.returns, alone.returns, rtol=1e-5)
    np.testing.assert_allclose(spread.attack_size, alone.attack_size, rtol=1e-5)
    assert spread.budget_excess == alone.budget_excess == 0
    assert spread.diverged == alone.diverged == 0


def test_arrays_placed_on_all_devices_come_back_as_they_were() -> None:
    devices = Devices(8)
    tree = {"x": jnp.arange(3.0), "key": jax.random.key(7), "count": np.int32(4)}
    placed = devices.place(tree)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(placed))
    # What is there already stays there.
    assert devices.place(placed)["x"] is placed["x"]
    back = devices.local(placed)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(back))
    np.testing.assert_array_equal(back["x"], tree["x"])
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))
    assert back["count"] == 4


def test_zero_chooses_one_task_at_a_time_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, expected in (("cpu", 1), ("gpu", 0), ("tpu", 0)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert Devices(1).axis == TaskAxis(expected)
        assert Devices(1, task_block=8).axis == TaskAxis(8)


def test_devices_that_nobody_asked_for() -> None:
    # Two on a CPU of whatever number of cores or devices, so that machines agree.
    assert jax.device_count() == 8
    assert choose_num_devices((40, 40, 20)) == 2
    assert choose_num_devices((40, 3)) == 1


def test_a_cpu_is_divided_and_its_parts_wait_for_each_other() -> None:
    # Without the flags XLA aborts a process that is paused for a minute; what the user set stays.
    program = (
        "import os, jax; from admrl_jax.runs.devices import make_cpu_devices; make_cpu_devices();"
        "print(jax.device_count(), os.environ['XLA_FLAGS'])"
    )
    own = "--xla_cpu_collective_timeout_seconds=7"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= {"XLA_FLAGS": own, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    count, *flags = done.stdout.split()
    assert count == "2", done.stderr
    names = ("call_warn_stuck_timeout", "call_terminate_timeout")
    assert flags == [own, *(f"--xla_cpu_collective_{name}_seconds={2**31 - 1}" for name in names)]


def test_accelerators_are_all_used_that_divide_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_num_devices((40, 16)) == 8
    assert choose_num_devices((40, 40, 20)) == 5
    assert choose_num_devices((7, 40)) == 1
    # All of all hosts, or the run is refused.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert choose_num_devices((40, 40, 20)) == 8


@pytest.mark.parametrize(
    ("backend", "chosen", "expected"),
    [("cpu", None, None), ("gpu", None, "highest"), ("gpu", "bfloat16", "bfloat16")],
)
def test_accelerators_multiply_in_float32_unless_told(
    backend: str, chosen: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    before = jax.config.values["jax_default_matmul_precision"]
    try:
        jax.config.update("jax_default_matmul_precision", chosen)
        start_devices()
        assert jax.config.values["jax_default_matmul_precision"] == expected
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"num_devices: 1000 is not accepted; accepted here: 0 to 8"):
        task_mesh(1000)
