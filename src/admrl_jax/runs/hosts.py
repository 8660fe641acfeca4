"""Several processes that run the same program, one or more per host: joining, and agreeing.

Every process holds the same numbers, so agreement is needed only about what processes see for
themselves: files and signals. With one process every function returns what it was given.
"""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from admrl_jax.core.settings import ConfigError

CLUSTERS = ("auto", "slurm")
"""Job managers from which JAX can read who takes part; `auto` tries all that it knows."""


def join(*, coordinator: str, num_processes: int, process_id: int) -> None:
    """Makes this process one of several; must come before JAX looks for devices.

    Args:
        coordinator: `host:port` where process 0 listens.
        num_processes: of all hosts together.
        process_id: of this one, from 0.

    Raises:
        ConfigError: the numbers make no sense.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"coordinator: {coordinator!r} is not accepted; accepted: host:port")
    if num_processes < 1:
        raise ConfigError(f"num_processes: {num_processes} is not accepted; accepted: at least 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"process_id: {process_id} is not accepted; accepted: from 0 to num_processes - 1 "
            f"({num_processes - 1})"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def join_cluster(name: str) -> None:
    """Like `join`, with what the cluster's job manager says; `name` is one of `CLUSTERS`.

    Raises:
        ConfigError: the name is unknown, or no job manager started this process.
    """
    if name not in CLUSTERS:
        raise ConfigError(f"distributed: {name!r} is not accepted; accepted: off, {', '.join(CLUSTERS)}")
    try:
        jax.distributed.initialize(cluster_detection_method=None if name == "auto" else name)
    except (KeyError, ValueError) as error:
        # What JAX's detection raises: a variable of the job manager is missing, or nothing is found.
        raise ConfigError(f"distributed: {name!r} found no job to join ({error})") from error


def is_first() -> bool:
    """Whether this is process 0, which alone writes the files of a run."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """The first process's value."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest(value: int) -> int:
    """The largest value of any process."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def check_same(text: str, what: str) -> None:
    """Raises `ConfigError` on every process if `text` is not the same on all of them."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    digests = np.reshape(multihost_utils.process_allgather(digest), (-1, digest.size))
    if np.any(digests != digests[0]):
        raise ConfigError(f"{what}: not the same on all {len(digests)} processes")


def gather(tree: Any) -> Any:
    """NumPy arrays with the parts of all devices of all processes."""
    return multihost_utils.process_allgather(tree, tiled=True)
