"""The axis over tasks: blocks of any size give the same, and devices hold their share of the same keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from admrl_jax.core.task_axis import TaskAxis, map_blocks
from admrl_jax.runs.devices import TASKS, Devices

BLOCKS = (0, 1, 2, 4, 6, 7)
"""All, one, a divisor of six, none, all six, and more than there are."""


@pytest.mark.parametrize("block", BLOCKS)
def test_map_blocks_golden(block: int) -> None:
    # Squares of six numbers; 4 does not divide 6 and 7 exceeds it.
    np.testing.assert_array_equal(map_blocks(jnp.square, jnp.arange(6), block), [0, 1, 4, 9, 16, 25])
    np.testing.assert_array_equal(TaskAxis(block).map(jnp.square, jnp.arange(6)), [0, 1, 4, 9, 16, 25])


@pytest.mark.parametrize("block", BLOCKS)
def test_sum_blocks_golden(block: int) -> None:
    # Sum and count of squares, as a tree of sums over whatever entries are given.
    squares = lambda x: {"sum": jnp.sum(x**2), "count": len(x)}  # noqa: E731
    total = TaskAxis(block).sum_blocks(squares, jnp.arange(6))
    np.testing.assert_array_equal(total["sum"], 0 + 1 + 4 + 9 + 16 + 25)
    np.testing.assert_array_equal(total["count"], 6)


@pytest.mark.parametrize("block", BLOCKS)
def test_sum_tasks_golden(block: int) -> None:
    squares = lambda x: {"sum": x**2, "count": jnp.ones(())}  # noqa: E731
    total = TaskAxis(block).sum_tasks(squares, jnp.arange(6))
    np.testing.assert_array_equal(total["sum"], 0 + 1 + 4 + 9 + 16 + 25)
    np.testing.assert_array_equal(total["count"], 6)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_trees_equal_all_at_once(block: int) -> None:
    # What the learners do: a gradient per task, summed, and results of every task.
    rng = np.random.default_rng(0)
    data = {"x": jnp.asarray(rng.normal(size=(6, 4, 3))), "y": jnp.asarray(rng.normal(size=(6, 4)))}
    weights = jnp.asarray(rng.normal(size=3))

    def loss(weights: jax.Array, task: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.square(jnp.tanh(task["x"] @ weights) - task["y"]))

    one = functools.partial(jax.value_and_grad(loss), weights)
    some = jax.value_and_grad(
        lambda weights, block: jnp.sum(jax.vmap(functools.partial(loss, weights))(block))
    )
    each, expected = jax.vmap(one)(data), jax.tree.map(lambda x: jnp.sum(x, 0), jax.vmap(one)(data))
    axis = TaskAxis(block)
    for ours, theirs in (
        (axis.map(one, data), each),
        (axis.sum_tasks(one, data), expected),
        (axis.sum_blocks(functools.partial(some, weights), data), expected),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_one_device_shares_and_sums_nothing() -> None:
    axis, x = TaskAxis(), jnp.arange(6.0)
    assert axis.num_devices == 1
    for function in (axis.share, axis.total, axis.mean, axis.largest):
        np.testing.assert_array_equal(function(x), x)


def test_devices_share_tasks_and_sum_over_all_of_them() -> None:
    devices = Devices(4)
    numbers, key = jnp.arange(8.0), jax.random.key(0)

    def run(numbers: jax.Array, key: jax.Array):
        mine = devices.axis.share({"x": numbers, "y": 10 * numbers})
        keys = jax.random.key_data(devices.axis.split_key(key, 8))
        sums = (
            devices.axis.total(jnp.sum(mine["x"])),
            devices.axis.mean(jnp.mean(mine["y"])),
            devices.axis.largest(jnp.max(mine["x"])),
            jnp.asarray(devices.axis.num_devices),
        )
        return mine, keys, sums

    each, same = PartitionSpec(TASKS), PartitionSpec()
    mine, keys, sums = jax.jit(devices.spread(run, (same, same), (each, each, same)))(numbers, key)
    # Put together again, the parts are the whole: in order, and with the keys of one device.
    np.testing.assert_array_equal(mine["x"], numbers)
    np.testing.assert_array_equal(mine["y"], 10 * numbers)
    np.testing.assert_array_equal(keys, jax.random.key_data(TaskAxis().split_key(key, 8)))
    np.testing.assert_array_equal(sums, [28, 35, 7, 4])
