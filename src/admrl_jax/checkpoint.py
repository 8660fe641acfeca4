"""Checkpoints of a training stage on disk (Orbax). The only file that knows Orbax.

A stage keeps its two newest checkpoints in a directory of its own, named by the step. Saving is
atomic: a checkpoint cut short by a kill is not a checkpoint.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

KEEP = 2


class StageCheckpoints:
    """The checkpoints of one stage; use as a context manager."""

    def __init__(self, directory: Path):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.absolute()),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(self, step: int, state: Any) -> None:
        """Writes `state`, any pytree of arrays; does nothing where the step is there already."""
        if self.latest_step != step:
            self._checkpointer.save(step, state)

    def load(self, step: int, like: Any) -> Any:
        """Reads the checkpoint of `step` with the structure, shapes and dtypes of `like`."""

        def abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._checkpointer.load(step, jax.tree.map(abstract, like))


def read_latest(directory: Path) -> Any:
    """The newest checkpoint of a stage as plain lists, dictionaries and arrays; None if there is none.

    Arrays come to this process's first device, wherever those that wrote them had theirs.
    """
    if not directory.is_dir():
        return None
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.training.Checkpointer(str(directory.absolute())) as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        latest = checkpointer.latest
        if latest is None:
            return None
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        saved = checkpointer.metadata(latest).metadata
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        return checkpointer.load(latest, like)
