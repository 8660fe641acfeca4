"""Checkpoints of a training stage on disk (Orbax). The only file that knows Orbax.

A stage keeps its two newest checkpoints in a directory of its own, named by the step. Saving is
atomic: a checkpoint cut short by a kill is not a checkpoint. Orbax does not check what it reads, so
a manifest, written last, holds the SHA-256 of every file and what run the checkpoint belongs to.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from admrl_jax.config import Config, config_difference, from_dict, to_dict
from admrl_jax.core.settings import ConfigError
from admrl_jax.runs import hosts
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.files import write_text

KEEP = 2
SCHEMA = 3
"""Version of what a checkpoint holds; changes when the training state's structure does."""
MANIFEST = "manifest.json"


class StageCheckpoints:
    """The checkpoints of one stage; use as a context manager.

    Opening it moves damaged checkpoints out of the way, into `damaged/` beside the stage, and says so.

    Raises:
        RunError: a checkpoint belongs to another run.
    """

    def __init__(self, directory: Path, config: Config):
        self.directory, self._config = directory, config
        refused: RunError | None = None
        if hosts.is_first():
            try:
                _set_damaged_aside(directory, config)
            except RunError as error:
                refused = error
        # The others look at the directory only once the first has tidied it.
        if hosts.from_first(int(refused is not None)):
            raise refused or RunError(f"checkpoint: process 0 refuses what is in {directory}")
        self._log_level = _silence_orbax()
        self._alias = _Alias(directory)
        self._checkpointer = ocp.training.Checkpointer(
            self._alias.path,
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        # After a failed save, closing fails with the same error again.
        with contextlib.suppress(*((Exception,) if exc[0] else ())):
            self._checkpointer.close()
        self._alias.close()
        logging.getLogger("absl").setLevel(self._log_level)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    @property
    def starts(self) -> set[int]:
        """Steps from which the stage can go on: those of its checkpoints, and 0 while none was deleted."""
        steps = {int(checkpoint.step) for checkpoint in self._checkpointer.checkpoints}
        return steps | ({0} if len(steps) < KEEP else set())

    def save(self, step: int, state: Any) -> None:
        """Writes `state`, any pytree of arrays; does nothing where the stage is saved that far already.

        Raises:
            OSError: the disk is full or cannot be written; earlier checkpoints are as they were.
        """
        if (self.latest_step or 0) >= step:
            return
        try:
            self._checkpointer.save(step, state)
        except ValueError as error:
            # The array library's errors give the cause only as text.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self.directory / str(step))) from error
        self._check_readable(step, state)
        if hosts.is_first():
            _write_manifest(self.directory / str(step), self._config)

    def _check_readable(self, step: int, state: Any) -> None:
        """Reads back what was written: without a manifest it would be no checkpoint."""
        path = self.directory / str(step)
        try:
            found = self.load(step, state)
        except OSError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"checkpoint: {path} cannot be read back: {reason}") from error
        if not all(map(_same_bits, jax.tree.leaves(state), jax.tree.leaves(found))):
            raise RunError(f"checkpoint: {path} does not hold what was written")

    def load(self, step: int, like: Any) -> Any:
        """Reads the checkpoint of `step` with the structure, shapes and dtypes of `like`."""

        def abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._checkpointer.load(step, jax.tree.map(abstract, like))


PLAIN_PATH = re.compile(r"[A-Za-z0-9_./=,+@-]*")
"""Paths that Orbax takes as they are; in others it sees patterns and addresses of clouds."""


class _Alias:
    """A path without odd characters to a directory, for as long as it is needed.

    Attributes:
        path: of the directory, or of a link to its parent.
    """

    def __init__(self, directory: Path):
        self.path, self._folder = str(directory.absolute()), None
        if not PLAIN_PATH.fullmatch(self.path):
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.mkdtemp(prefix="admrl_jax-")
            link = Path(self._folder, "run")
            link.symlink_to(directory.parent.absolute(), target_is_directory=True)
            self.path = str(link / directory.name)

    def close(self) -> None:
        """Removes the link."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _same_bits(x: jax.Array, y: jax.Array) -> bool:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    return np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _silence_orbax() -> int:
    """Turns Orbax's log off: errors also come as exceptions. Returns the level before."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    return level


def _checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a stage, newest first."""
    if not directory.is_dir():
        return []
    paths = [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(paths, key=lambda path: int(path.name), reverse=True)


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its manifest, by relative path."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {
        path.relative_to(checkpoint).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in (MANIFEST, MANIFEST + ".tmp")
    }


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_manifest(checkpoint: Path, config: Config) -> None:
    # Orbax's markers name the folder they were written in; only that they are there matters, and a run
    # that is handed on should not tell where it was made.
    for marker in checkpoint.rglob("commit_success.txt"):
        write_text(marker, "Checkpoint commit was successful\n")
    content = {"schema": SCHEMA, "config": to_dict(config), "files": _hashes(checkpoint)}
    write_text(checkpoint / MANIFEST, json.dumps({"sha256": _digest(content), **content}, indent=1) + "\n")


def _read_manifest(checkpoint: Path) -> dict[str, Any] | str:
    """What the manifest says, or what is wrong with the checkpoint."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return f"it has no {MANIFEST}"
    try:
        content = json.loads(path.read_bytes())
        if content.pop("sha256") != _digest(content):
            raise ValueError("digest")
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} is not as it was written"
    found = _hashes(checkpoint)
    for name, digest in content["files"].items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is not as it was written"
    return content


def hand_on(stage: Path, target: Path, config: Config) -> None:
    """Copies a stage's checkpoints to a run with other settings, which they then belong to.

    Args:
        stage: directory of the stage.
        target: where they go.
        config: of the run that goes on from them.

    Raises:
        RunError: a checkpoint is damaged.
    """
    for path in _checkpoints(stage):
        content = _read_manifest(path)
        if isinstance(content, str):
            raise RunError(f"checkpoint: {path} is damaged: {content}; --resume of its run mends that")
        shutil.copytree(path, target / path.name)
        _write_manifest(target / path.name, config)


def _set_damaged_aside(directory: Path, config: Config) -> None:
    """Moves damaged checkpoints out of the way and says which; refuses those of another run."""
    damaged, good = [], []
    for path in _checkpoints(directory):
        content = _read_manifest(path)
        if isinstance(content, str):
            damaged.append((path, content))
            continue
        _check_origin(path, content, config)
        good.append(path)
    for path, reason in damaged:
        aside = directory.parent / "damaged" / f"{directory.name}-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        os.replace(path, aside)
        start = f"step {good[0].name}" if good else "the start of the stage"
        print(
            f"checkpoint {path} is damaged or was never finished: {reason}; moved to {aside}, "
            f"going on from {start}",
            file=sys.stderr,
        )


def _check_origin(path: Path, content: dict[str, Any], config: Config) -> None:
    if content["schema"] != SCHEMA:
        raise RunError(
            f"checkpoint: {path} was written by another version of the code: "
            f"schema {content['schema']} -> {SCHEMA}"
        )
    try:
        difference = config_difference(from_dict(content["config"]), config)
    except ConfigError as error:
        difference = str(error)
    if difference:
        raise RunError(f"checkpoint: {path} belongs to another config: {difference}")
