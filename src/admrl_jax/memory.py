"""How much memory a compiled program needs, how much its device has, and how much work fits at once."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import jax

from admrl_jax import hosts

MACHINE_SHARE = 0.5
"""Part of a machine's memory that one program may take, where a device tells of no memory of its own."""
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


def compile_largest(compile_for: Callable[[int], Any], lanes: int, chosen: int = 0) -> tuple[int, Any]:
    """Compiles for as many lanes at once as fit, halving them until they do; on a CPU one after the other.

    One lane fills a CPU, which takes almost twice as long over products of batches of small matrices as over
    the same products one by one; and each gets the bits that it would get alone.

    Args:
        compile_for: compiles a program that holds so many lanes in memory at a time.
        lanes: how many there are.
        chosen: to hold at most so many, fit or not; 0 leaves it to the device.

    Returns:
        `(lanes at once, program)`. One lane is taken whether it fits or not.
    """
    if not chosen and jax.default_backend() == "cpu":
        chosen = 1
    at_once = min(chosen or lanes, lanes)
    while True:
        program = compile_for(at_once)
        return_unused()
        if chosen or at_once == 1:
            return at_once, program
        # Every process must come to the same answer.
        if not hosts.largest(needed_bytes(program) > available_bytes()):
            return at_once, program
        at_once = -(-at_once // 2)


def return_unused() -> None:
    """Gives memory that was freed back to the system, where the C library can (glibc).

    The compiler leaves several times the memory that a small run needs, and the C library may keep it for
    hours.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
