"""What every command does to the process it runs in: JAX's settings, its cache, errors and their codes."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

DISK_ERRORS = (
    None,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
)
"""Errors of a disk that is full, cannot be written or is gone; libraries may give no number."""

CHANGED = (
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
"""Settings of JAX that a command changes while it runs."""


@contextlib.contextmanager
def settings_as_found() -> Iterator[None]:
    """Leaves JAX's settings and XLA's flags as they were: a command may be called from a user's program."""
    before = {name: jax.config.values[name] for name in CHANGED}
    flags = os.environ.get("XLA_FLAGS")
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
        else:
            os.environ.pop("XLA_FLAGS", None)


def keep_compiled_programs(choice: str) -> None:
    """Turns on JAX's persistent compilation cache.

    Args:
        choice: a directory, `off`, or `auto`.
    """
    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_enable_compilation_cache", True)
    # A start compiles about a hundred tiny programs, together several seconds, which JAX would not keep.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if choice == "auto":
        if jax.config.values.get("jax_compilation_cache_dir") is not None:
            return
        try:
            caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:
            # A user without a home, as in a container.
            jax.config.update("jax_enable_compilation_cache", False)
            return
        choice = str(caches / "admrl_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", choice)


def fail(message: str, code: int = 2) -> int:
    """Prints one line and returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code
