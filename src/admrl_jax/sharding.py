"""Tasks spread over devices and hosts: one mesh axis, the same state everywhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from admrl_jax.checks import ConfigError

TASKS = "tasks"
"""Name of the mesh axis; pass it as `axis_name` to `outer_step` and `evaluate`."""


def task_mesh(num_devices: int = 0) -> Mesh:
    """A mesh with one axis, `TASKS`.

    Args:
        num_devices: 0 takes all devices of all hosts.

    Raises:
        ConfigError: there are not that many, or those of some process would be left out.
    """
    devices = jax.devices()
    if jax.process_count() > 1 and num_devices not in (0, len(devices)):
        raise ConfigError(
            f"num_devices: {num_devices} is not accepted; accepted with {jax.process_count()} processes: "
            f"0 or {len(devices)}, all devices"
        )
    if num_devices > len(devices):
        raise ConfigError(f"num_devices: {num_devices} is not accepted; accepted here: 0 to {len(devices)}")
    return jax.make_mesh((num_devices or len(devices),), (TASKS,), devices=devices[: num_devices or None])


def spread_tasks(function: Callable[..., Any], mesh: Mesh, out_specs: Any = None) -> Callable[..., Any]:
    """Runs `function` on every device of a mesh; inside, `TASKS` is the axis over tasks.

    Args:
        function: takes and returns the same state on every device, as `outer_step` with
            `axis_name=TASKS` does.
        mesh: from `task_mesh`.
        out_specs: where results differ between devices, `PartitionSpec(TASKS)` for them.
    """
    replicated = PartitionSpec()
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=replicated,
        out_specs=replicated if out_specs is None else out_specs,
        # Sums over the axis are written out; the automatic ones would count them twice.
        check_vma=False,
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the same arrays on every device of a mesh; every process must hold the same numbers.

    What is there already is left there.
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(x: jax.Array) -> jax.Array:
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        # `device_put` would compare the numbers of all processes, leaf by leaf.
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def local(tree: Any) -> Any:
    """The copies of replicated arrays on this process's first device."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
