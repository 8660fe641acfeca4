"""Tasks spread over (fake) devices give what one device gives."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close
from jax.sharding import PartitionSpec

from admrl_jax import adgan as adgan_lib
from admrl_jax import attacks, envs, evaluation, mapped_axis, training
from admrl_jax.attacks import Budget
from admrl_jax.checks import ConfigError
from admrl_jax.config import AdversaryConfig, MAMLConfig, TrainConfig, TRPOConfig
from admrl_jax.env_config import HalfCheetahDirConfig, NavigationConfig
from admrl_jax.networks import make_policy
from admrl_jax.sharding import TASKS, choose_num_devices, spread_tasks, task_mesh

CONFIG = TrainConfig(
    maml=MAMLConfig(num_tasks=8, num_trajectories=4, task_block=1),
    # Few, well damped iterations: ten at 1e-5 would amplify the rounding of a sum's order.
    trpo=TRPOConfig(cg_iterations=3, cg_damping=0.1),
    adversary=AdversaryConfig(hidden_sizes=(8,), num_minibatches=2),
)
ENVS = {
    "navigation_2d": NavigationConfig(horizon=8),
    "halfcheetah_dir": HalfCheetahDirConfig(horizon=4),
}


def setting(name: str):
    """Environment, policy, adversary, start, and a step that takes the axis."""
    env = envs.make(ENVS[name], num_threads=1)
    policy = make_policy(env.obs_size, env.action_size, hidden_sizes=(8,))
    adgan = adgan_lib.make_adgan(env.obs_size, CONFIG.adversary)
    state = training.init(jax.random.key(0), policy=policy, obs_size=env.obs_size)
    state = state.replace(
        adversary=adgan_lib.init_adversary(jax.random.key(1), adgan, CONFIG.adversary),
        budget=state.budget._replace(radius=jnp.float32(0.1)),
    )
    step = functools.partial(
        training.outer_step, env=env, policy=policy, attack=adgan.attack, config=CONFIG, adgan=adgan
    )
    return env, policy, state, step


@pytest.mark.parametrize("name", list(ENVS))
def test_eight_devices_train_like_one(name: str, x64: None) -> None:
    # Double precision: what is left is the order of sums, not what physics and Adam make of it.
    _, _, state, step = setting(name)
    alone = jax.jit(step)(state)
    mesh = task_mesh(8)
    spread = jax.jit(spread_tasks(functools.partial(step, axis_name=TASKS), mesh))(state)
    for key, value in alone[1].items():
        # The residual is a share of the gradient: its rounding is that of 1, in single precision.
        atol = 1e-6 if key == "train/cg_residual" else 1e-9
        np.testing.assert_allclose(spread[1][key], value, rtol=1e-6, atol=atol, err_msg=key)
    assert spread[1]["train/accepted"] == 1
    assert_trees_close(spread[0].policy_params, alone[0].policy_params, rtol=1e-5, atol=1e-7)
    assert_trees_close(spread[0].adversary, alone[0].adversary, rtol=1e-5, atol=1e-7)
    # Every device holds the same bits.
    for leaf in jax.tree.leaves(spread[0].policy_params):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 8
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def test_meta_test_is_spread_without_changing_an_episode() -> None:
    env, policy, state, _ = setting("navigation_2d")
    tasks = jax.vmap(env.sample_task)(jax.random.split(jax.random.key(5), 8))

    def run(params, tasks, axis_name=None):
        return evaluation.evaluate(
            params,
            (),
            jax.random.key(6),
            tasks,
            env=env,
            policy=policy,
            attack=attacks.fgsm(policy),
            support_budget=Budget(0.1),
            query_budget=Budget(0.1),
            config=CONFIG.maml,
            axis_name=axis_name,
        )

    alone = jax.jit(run)(state.policy_params, tasks)
    one, each = PartitionSpec(), PartitionSpec(TASKS)
    spread = spread_tasks(
        lambda params, tasks: run(params, mapped_axis.share(tasks, TASKS), TASKS),
        task_mesh(4),
        out_specs=evaluation.EvalResult(each, one, one),
    )
    spread = jax.jit(spread)(state.policy_params, tasks)
    np.testing.assert_allclose(spread.returns, alone.returns, rtol=1e-5)
    np.testing.assert_allclose(spread.attack_size, alone.attack_size, rtol=1e-5)
    assert spread.budget_excess == alone.budget_excess == 0


def test_devices_that_nobody_asked_for() -> None:
    # Two on a CPU of whatever number of cores or devices, so that machines agree.
    assert jax.device_count() == 8
    assert choose_num_devices((40, 40, 20)) == 2
    assert choose_num_devices((40, 3)) == 1


def test_a_cpu_is_divided_and_its_parts_wait_for_each_other() -> None:
    # Without the flags XLA aborts a process that is paused for a minute; what the user set stays.
    program = (
        "import os, jax; from admrl_jax.sharding import make_cpu_devices; make_cpu_devices();"
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


def test_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"num_devices: 1000 is not accepted; accepted here: 0 to 8"):
        task_mesh(1000)
