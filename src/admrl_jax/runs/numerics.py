"""Settings of JAX that decide a run's numbers: kept beside its config, and the same when it goes on."""

import json
from pathlib import Path
from typing import Any

import jax

from admrl_jax.runs.files import write_text

FILE = "jax.json"
FAST = "jax_disable_most_optimizations"
"""Compile fast: sums in another order. The preset `quick` does."""
PRECISION = "jax_default_matmul_precision"
DECIDE = (
    "jax_enable_x64",
    PRECISION,
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
    "jax_high_dynamic_range_gumbel",
    "jax_allow_f16_reductions",
    FAST,
)
"""Settings that change numbers beyond rounding, or by as much as the precision of a product."""


def settings_of_jax() -> dict[str, Any]:
    """Those that decide numbers, as they are now; of those that this version of JAX has."""
    values = jax.config.values
    found = {name: values[name] for name in DECIDE if name in values}
    if found[PRECISION] is None and jax.default_backend() != "cpu":
        found[PRECISION] = "default"
    return as_one(found)


def as_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with one name for products in float32, None: a CPU's own, which accelerators are asked for."""
    is_full = settings.get(PRECISION) in ("highest", "float32")
    return settings | ({PRECISION: None} if is_full else {})


def read_settings(directory: Path) -> dict[str, Any]:
    """Those that a run was computed with.

    Raises:
        ValueError: they cannot be read.
    """
    return as_one(json.loads((directory / FILE).read_text()))


def was_compiled_fast(directory: Path) -> bool:
    """Whether a run's programs were compiled as those of the preset `quick`; False where nobody noted it."""
    return bool(read_settings(directory).get(FAST, False))


def check_settings(directory: Path) -> str:
    """Keeps the settings of a new run, and compares them with those of one that goes on.

    Args:
        directory: of the run.

    Returns:
        `name: saved -> now` for every setting that differs; empty if none does.

    Raises:
        ValueError: what was kept cannot be read.
    """
    path, now = directory / FILE, settings_of_jax()
    if not path.exists():
        write_text(path, json.dumps(now, indent=1) + "\n")
        return ""
    saved = read_settings(directory)
    return "; ".join(
        f"{name}: {saved[name]} -> {value}" for name, value in now.items() if saved.get(name, value) != value
    )
