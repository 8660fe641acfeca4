"""Where a run is computed: tasks spread over devices and hosts, the same state everywhere."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from admrl_jax.core.lanes import Lanes, lane_mesh
from admrl_jax.core.settings import ConfigError
from admrl_jax.core.spreading import spread_over
from admrl_jax.core.task_axis import TaskAxis

TASKS = "tasks"
"""Name of the mesh axis over tasks."""


CPU_DEVICES = 2
"""Devices made of a CPU's cores by default: one computes while the other waits for physics. A constant,
because sums over another number of parts round differently."""


FOR_EVER = 2**31 - 1
"""Seconds."""


def make_cpu_devices(count: int = CPU_DEVICES) -> None:
    """Divides the CPU into `count` devices, unless `JAX_NUM_CPU_DEVICES` does, before JAX looks for any.

    XLA aborts a process in which one device waits a minute for another, for instance because a run was paused
    or a laptop slept. Here they wait for ever.
    """
    if count == 1:
        return
    for name in ("call_warn_stuck_timeout", "call_terminate_timeout", "timeout"):
        add_xla_flag(f"xla_cpu_collective_{name}_seconds", FOR_EVER)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        # Fails where JAX has looked for devices already; then the existing ones are used.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def start_devices() -> None:
    """Looks for devices. An accelerator's float32 products are then computed in float32.

    By default JAX lets it round their factors to TensorFloat-32 (10 bits) or bfloat16 (7). Whoever set
    `jax_default_matmul_precision` keeps that. A CPU has only one way.

    Raises:
        ConfigError: `JAX_PLATFORMS` asks for devices that JAX does not find.
    """
    asked = jax.config.values["jax_platforms"] or ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        words = " ".join(str(error).split()) or "there is no plugin for it"
        raise ConfigError(f"JAX_PLATFORMS: {asked!r} is not accepted here: {words}") from error
    if jax.default_backend() != "cpu" and jax.config.values["jax_default_matmul_precision"] is None:
        jax.config.update("jax_default_matmul_precision", "highest")


def add_xla_flag(name: str, value: Any) -> None:
    """Sets a flag of XLA, unless the user did, before JAX looks for devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    if f"--{name}" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def compile_fast() -> None:
    """Programs that compile in less than half the time and run slower, before JAX looks for devices.

    For short runs, which spend more time on compiling than on computing.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    # XLA ends a process whose flags it does not know, so only versions that were tried get one.
    if jax.__version_info__[:2] == (0, 10):
        add_xla_flag("xla_cpu_use_fusion_emitters", "false")


def choose_num_devices(task_counts: Sequence[int]) -> int:
    """How many devices tasks are spread over by default.

    All devices of all hosts; on one host the most that divide every number of tasks, and of CPU devices
    `CPU_DEVICES` at most.

    Args:
        task_counts: numbers of tasks that a run computes together.
    """
    available = jax.device_count()
    if jax.process_count() > 1:
        return available
    if jax.default_backend() == "cpu":
        available = min(available, CPU_DEVICES)
    return max(n for n in range(1, available + 1) if all(count % n == 0 for count in task_counts))


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


def make_lanes(num_devices: int = 0, at_once: int = 0) -> Lanes:
    """Runs spread over devices: one at a time on each of a CPU's, all together on an accelerator.

    Args:
        num_devices: 0 takes all; of CPU devices `CPU_DEVICES` at most.
        at_once: runs computed together on each device; 0 chooses.
    """
    is_cpu = jax.default_backend() == "cpu"
    count = num_devices or (min(jax.device_count(), CPU_DEVICES) if is_cpu else jax.device_count())
    return Lanes(at_once or int(is_cpu), None if count == 1 else lane_mesh(jax.devices()[:count]))


class Devices:
    """The devices of a run, and how programs and arrays are placed on them."""

    def __init__(self, num_devices: int = 1, task_block: int = 0):
        """Takes the devices.

        Args:
            num_devices: over which tasks are spread.
            task_block: tasks computed together; 0 chooses one on a CPU (not without `jit`), else all.

        Raises:
            ConfigError: there are not that many devices.
        """
        is_alone = num_devices == 1 and jax.process_count() == 1
        self.mesh = None if is_alone else task_mesh(num_devices)
        # Without `jit`, linear maps of several blocks cannot be put together.
        is_in_blocks = jax.default_backend() == "cpu" and not jax.config.values["jax_disable_jit"]
        block = task_block or int(is_in_blocks)
        self.axis = TaskAxis(block, None if self.mesh is None else TASKS)
        """For pure functions inside a program of `spread`."""

    def spread(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Runs `function` on every device.

        Args:
            function: takes and returns the same state on every device.
            in_specs: how each argument is laid out: `SAME`, or `tasks_at(axis)` where devices hold different
                tasks.
            out_specs: the same for results.
        """
        if self.mesh is None:
            return function
        return spread_over(self.mesh, function, in_specs, out_specs)

    def place(self, tree: Any) -> Any:
        """Puts the same arrays on every device; every process must hold the same numbers.

        Arrays that are there already stay there.
        """
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = NamedSharding(self.mesh, SAME)

        def put(x: Any) -> jax.Array:
            x = jnp.asarray(x)
            if x.sharding.is_equivalent_to(sharding, x.ndim):
                return x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
            # `device_put` would compare the numbers of all processes, leaf by leaf.
            values = np.asarray(x)
            return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

        return jax.tree.map(put, tree)

    def local(self, tree: Any) -> Any:
        """Takes arrays back from `place`: this process's copies, on one device."""
        return tree if self.mesh is None else jax.tree.map(lambda x: x.addressable_data(0), tree)


SAME = PartitionSpec()
"""The same numbers on every device."""


def tasks_at(axis: int) -> PartitionSpec:
    """Tasks spread over devices, at that axis of every array."""
    return PartitionSpec(*(None,) * axis, TASKS)
