"""Functions on several devices: empty arrays do not cross to them, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, Mesh, PartitionSpec

from admrl_jax.core.spreading import spread_over

SAME, SPLIT = PartitionSpec(), PartitionSpec("devices")
EMPTY = np.zeros(0, np.float32)

X = jnp.arange(4.0)


def closed_over(x: jax.Array) -> jax.Array:
    return jnp.concatenate([2 * x, EMPTY])


def closed_over_in_a_loop(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, y: jax.jit(closed_over)(y), x)


def taken(x: jax.Array, empty: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([2 * x, empty["a"]])


def taken_in_parts(x: jax.Array, empty: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.concatenate([x[:, None], empty], axis=1), empty + 1


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
    "closed over": (closed_over, (X,), SPLIT),
    "closed over in a loop": (closed_over_in_a_loop, (X,), SPLIT),
    "taken": (taken, (X, {"a": jnp.zeros(0)}), (SPLIT, SAME)),
    "taken in parts": (taken_in_parts, (X, jnp.zeros((4, 0))), (SPLIT, SPLIT)),
}


def mesh() -> Mesh:
    return jax.make_mesh((2,), ("devices",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))


def inputs_of_shard_maps(jaxpr: Any) -> list[Any]:
    """Shapes and types of everything that goes into a `shard_map`, at any depth."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "shard_map":
            found += [variable.aval for variable in equation.invars]
        found += [aval for inner in jaxprs_in_params(equation.params) for aval in inputs_of_shard_maps(inner)]
    return found


@pytest.mark.parametrize("case", CASES)
def test_empty_arrays_are_made_on_each_device(case: str) -> None:
    # As inputs they crash the compiler of jax 0.11, with MJX on two CPU devices.
    function, arguments, in_specs = CASES[case]
    spread = spread_over(mesh(), function, in_specs, SPLIT)
    inputs = inputs_of_shard_maps(jax.make_jaxpr(spread)(*arguments).jaxpr)
    assert inputs
    assert all(aval.size for aval in inputs)
    halves = [
        function(*jax.tree.map(lambda x, half=half: jnp.split(x, 2)[half], arguments)) for half in (0, 1)
    ]
    expected = jax.tree.map(lambda *x: jnp.concatenate(x), *halves)
    assert_trees_equal(jax.jit(spread)(*arguments), expected)


def test_one_layout_for_all_arguments() -> None:
    spread = spread_over(mesh(), lambda x, y: jax.lax.psum(x + y, "devices"), SAME, SAME)
    np.testing.assert_array_equal(spread(X, X), 4 * X)


def test_keys_pass() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    spread = spread_over(mesh(), jax.vmap(jax.random.uniform), SPLIT, SPLIT)
    np.testing.assert_array_equal(spread(keys), jax.vmap(jax.random.uniform)(keys))
