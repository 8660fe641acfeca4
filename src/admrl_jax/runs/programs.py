"""The compiled programs of a run, the memory that they need, and how much work fits at once."""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from admrl_jax.runs import hosts
from admrl_jax.runs.devices import SAME, Devices

MACHINE_SHARE = 0.5
"""Part of the machine's memory that one program may take, where a device reports no memory of its own."""
DEVICE_SHARE = 0.9
"""Part of what JAX may take of an accelerator's memory."""


def needed_bytes(compiled: Any) -> int:
    """Bytes per device of a compiled program, by the compiler's own account; 0 where it gives none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes + analysis.argument_size_in_bytes


def available_bytes() -> int:
    """Bytes that a program may take of each device of this process."""
    device = jax.local_devices()[0]
    own = (device.memory_stats() or {}).get("bytes_limit")
    if own:
        return int(DEVICE_SHARE * own)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(MACHINE_SHARE * machine / jax.local_device_count())


class Program(NamedTuple):
    """A function to compile.

    Attributes:
        name: equal names, equal functions.
        function: of arrays; it sees this device's tasks.
        in_specs: how its arguments are laid out, see `Devices.spread`.
        out_specs: how its results are.
    """

    name: str
    function: Callable[..., Any]
    in_specs: Any = SAME
    out_specs: Any = SAME


class Programs:
    """Compiled programs of a run, each compiled once and found again by name and shapes of arguments."""

    def __init__(self, devices: Devices):
        self._devices = devices
        self._compiled: dict[Any, Any] = {}

    def run(self, program: Program, *arguments: Any) -> Any:
        """Calls a program, compiled and spread over the devices.

        Args:
            program: what to call.
            arguments: arrays laid out as its `in_specs` say, on all devices or on this process's first one.
        """
        if jax.config.values["jax_disable_jit"]:
            # Step by step, for somebody who looks for an error: what is compiled ahead cannot be.
            return self._devices.spread(program.function, program.in_specs, program.out_specs)(*arguments)
        return self._get(program, arguments)(*arguments)

    def needed_bytes(self, program: Program, *arguments: Any) -> int:
        """Bytes per device that `run` needs; the program is compiled if it is not yet.

        Args:
            program: what would be called.
            arguments: of the call.
        """
        return 0 if jax.config.values["jax_disable_jit"] else needed_bytes(self._get(program, arguments))

    def _get(self, program: Program, arguments: Sequence[Any]) -> Any:
        leaves, structure = jax.tree.flatten(tuple(arguments))
        key = (program.name, structure, tuple((x.shape, x.dtype) for x in leaves))
        if key not in self._compiled:
            spread = self._devices.spread(program.function, program.in_specs, program.out_specs)
            self._compiled[key] = jax.jit(spread).lower(*arguments).compile()
            return_unused()
        return self._compiled[key]


def choose_at_once(lanes: int, fits: Callable[[int], bool], chosen: int = 0) -> int:
    """How many lanes to compute at once, a divisor of all; on a CPU one after the other.

    One lane fills a CPU, where products of batches of small matrices take almost twice as long as the same
    products one by one. One by one, each lane also gets the bits that it would get alone.

    Args:
        lanes: how many there are.
        fits: whether the programs for this many lanes fit into memory; asked from all lanes down.
        chosen: at most this many, whether they fit or not; 0 leaves it to the device.
    """
    if not chosen and jax.default_backend() == "cpu":
        chosen = 1
    divisors = [n for n in range(lanes, 0, -1) if lanes % n == 0 and (not chosen or n <= chosen)]
    if chosen:
        return divisors[0]
    # Every process must come to the same answer.
    return next((n for n in divisors[:-1] if not hosts.largest(not fits(n))), 1)


def return_unused() -> None:
    """Returns freed memory to the system, where the C library can (glibc).

    The compiler leaves several times the memory that a small run needs, and the C library may keep it for
    hours.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
