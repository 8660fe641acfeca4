"""Tasks spread over devices and hosts: one mesh axis, the same state everywhere."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from admrl_jax.checks import ConfigError

TASKS = "tasks"
"""Name of the mesh axis; pass it as `axis_name` to `outer_step` and `evaluate`."""


def task_mesh(num_devices: int = 0) -> Mesh:
    """A mesh with one axis, `TASKS`.

    Args:
        num_devices: 0 takes all devices of all hosts.

    Raises:
        ConfigError: there are not that many.
    """
    devices = jax.devices()
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
    """Puts the same arrays on every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
