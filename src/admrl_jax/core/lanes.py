"""One function over many runs that do not know each other: starts, candidates, blocks of tasks.

A CPU computes one run at a time on each of its devices, which keeps products of matrices large and compiles
one program for any number of runs. An accelerator computes them all together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from admrl_jax.core.spreading import spread_over

AXIS = "lanes"
"""Name of the mesh axis over runs."""


def lane_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh over devices, for `Lanes`."""
    # Arrays move to where their runs are by themselves.
    return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))


class Lanes(NamedTuple):
    """How runs are computed. The default takes one after the other on one device.

    Attributes:
        at_once: runs computed together on each device; 0 takes all.
        mesh: of `lane_mesh`; None where there is one device.
    """

    at_once: int = 1
    mesh: Mesh | None = None

    def compile(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A function of many runs from a function of one.

        Args:
            function: `(mine, shared) -> result`, of one run.

        Returns:
            `(mine, shared) -> results`, where `mine` and `results` have a leading axis, the runs.
        """
        num_devices = 1 if self.mesh is None else self.mesh.size

        def block(mine: Any, shared: Any) -> Any:
            if jax.tree.leaves(mine)[0].shape[0] > 1:
                return jax.vmap(function, in_axes=(0, None))(mine, shared)
            result = function(jax.tree.map(lambda x: x[0], mine), shared)
            return jax.tree.map(lambda x: x[None], result)

        if self.mesh is not None:
            mine, shared = PartitionSpec(AXIS), PartitionSpec()
            block = spread_over(self.mesh, block, (mine, shared), mine)
        program = jax.jit(block)

        def run(mine: Any, shared: Any) -> Any:
            count = jax.tree.leaves(mine)[0].shape[0]
            each = -(-count // num_devices)
            size = min(self.at_once or each, each) * num_devices
            blocks = []
            for start in range(0, count, size):
                # The last block is filled up with the last run.
                chosen = np.minimum(np.arange(start, start + size), count - 1)
                blocks.append(program(_take(mine, chosen, count), shared))
            if self.mesh is not None:
                blocks = [_to_host(block) for block in blocks]
            return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *blocks)

        return run

    def place(self, shared: Any) -> Any:
        """Puts what all runs read on every device, so that a loop of calls need not."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, shared)
        return jax.device_put(shared, jax.sharding.NamedSharding(self.mesh, PartitionSpec()))


def _to_host(tree: Any) -> Any:
    """Arrays of one device. Joining spread ones would make devices wait for each other in no fixed order."""

    def fetch(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(fetch(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(fetch, jax.block_until_ready(tree))


def _take(tree: Any, chosen: np.ndarray, count: int) -> Any:
    if chosen.size == count:
        return tree
    return jax.tree.map(lambda x: x[chosen], tree)
