"""Toy runs in processes of their own, and what must be equal between two of them."""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from admrl_jax.runs.files import read_arrays, write_text

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

TOY = (
    "--preset=quick",
    "--seeds=0",
    "--env.horizon=10",
    "--sampling.num-tasks=2",
    "--sampling.num-trajectories=4",
    "--defences.adgan.warmup-steps=2",
    "--schedule.pretrain-steps=6",
    "--schedule.finetune-steps=4",
    "--schedule.chunk-steps=1",
    "--schedule.checkpoint-every=2",
    "--schedule.snapshot-every=2",
    "--eval.num-tasks=2",
    "--eval.num-trajectories=2",
    "--eval.attacker.steps=2",
    "--eval.attacker.num-tasks=2",
    "--eval.attacker.num-trajectories=4",
)


def start(env: str, run_dir: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    """Starts the toy run of an environment in `run_dir`, going on if there is one."""
    command = [sys.executable, "-m", f"experiments.{env}", *TOY, f"--run-dir={run_dir}", *more]
    if (run_dir / "config.json").exists():
        command.append("--resume")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(env: str, run_dir: Path, cache: Path, *more: str) -> str:
    """Runs it to its end and returns what it said."""
    process = start(env, run_dir, cache, *more)
    errors = process.communicate()[1]
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {errors[-3000:]}")
    return errors


def fingerprint(run_dir: Path) -> dict[str, str]:
    """SHA-256 of results, metrics and all arrays: newest checkpoints, policies, attackers, returns, paths."""
    prints = {
        name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest()
        for name in ("results.json", "metrics.csv", "report.md")
    }
    for stage in sorted((run_dir / "checkpoints").iterdir()):
        if stage.name == "damaged":
            continue
        leaves = jax.tree_util.tree_leaves_with_path(read_newest(stage))
        prints[stage.name] = digest_of((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)
    for path in (*run_dir.glob("*.npz"), *run_dir.glob("returns/*.npz")):
        prints[path.relative_to(run_dir).as_posix()] = digest_of(sorted(read_arrays(path).items()))
    return prints


def read_newest(stage: Path) -> Any:
    """The newest checkpoint of a stage, without knowing what it holds, on this process's first device."""
    # Orbax says a page per thread.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    step = max(int(path.name) for path in stage.iterdir() if path.name.isdigit())
    with ocp.training.Checkpointer(str(stage.absolute())) as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        saved = checkpointer.metadata(step).metadata
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        return checkpointer.load(step, like)


def digest_of(arrays: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 of names, types, shapes and bytes of arrays; keys of random numbers are among them."""
    digest = hashlib.sha256()
    for name, x in arrays:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(x) if is_key else x)
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def differences(run_dir: Path, reference: dict[str, str]) -> list[str]:
    """What is not equal bit for bit to the uninterrupted run; rows there twice or missing included."""
    found = fingerprint(run_dir)
    return sorted(name for name in reference | found if reference.get(name) != found.get(name))


def write_result(name: str, result: dict[str, Any]) -> None:
    """Writes `results/<name>.json` with the machine and the versions, and shows it."""
    packages = ("jax", "jaxlib", "orbax-checkpoint", "mujoco", "numpy")
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
    text = json.dumps({**result, "machine": machine}, indent=1) + "\n"
    write_text(RESULTS / f"{name}.json", text)
    print(text)
