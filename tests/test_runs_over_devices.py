"""Runs that do not know each other give the same numbers however they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from admrl_jax.core.lanes import Lanes, lane_mesh


def lane(mine: tuple[jax.Array, jax.Array], shared: jax.Array) -> dict[str, jax.Array]:
    number, key = mine
    return {"sum": number + shared, "drawn": jax.random.uniform(key, (3,)), "key": jax.random.fold_in(key, 1)}


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("at_once", "devices"), [(1, 1), (2, 1), (0, 1), (1, 2), (0, 2), (2, 4)])
def test_every_way_gives_the_runs_in_their_order(count: int, at_once: int, devices: int) -> None:
    lanes = Lanes(at_once, lane_mesh(jax.devices()[:devices]) if devices > 1 else None)
    numbers, keys = jnp.arange(count), jax.random.split(jax.random.key(0), count)
    found = lanes.compile(lane)((numbers, keys), lanes.place(jnp.float32(10)))
    np.testing.assert_array_equal(found["sum"], np.arange(count) + 10)
    np.testing.assert_array_equal(found["drawn"], [jax.random.uniform(key, (3,)) for key in keys])
    wanted = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    assert_trees_equal(jax.random.key_data(found["key"]), jax.random.key_data(wanted))
