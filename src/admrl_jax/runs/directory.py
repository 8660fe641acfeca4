"""A run's directory: its lock, and the config of the run that it holds."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from admrl_jax.config import Config, config_difference, from_dict, to_dict
from admrl_jax.runs.files import stored, write_text
from admrl_jax.runs.numerics import FILE, check_settings

LOCK = ".lock"


class RunError(Exception):
    """A run that cannot start or go on; the message is for the user."""


def read_run(directory: Path, needed: Sequence[str], accepted: str) -> Config:
    """The settings of a run that something is made of.

    Args:
        directory: of the run.
        needed: what has to be in it beside `config.json`.
        accepted: in words, for the message.

    Raises:
        RunError: something is missing, or the settings cannot be read.
    """
    for name in ("config.json", *needed):
        if not stored(directory / name).exists():
            raise RunError(f"run: {directory} has no {name}; accepted: {accepted}")
    try:
        return from_dict(json.loads((directory / "config.json").read_text()))
    except ValueError as error:
        raise RunError(f"run: {directory / 'config.json'} cannot be read: {error}") from error


def open_run(directory: Path, config: Config, *, resume: bool) -> int:
    """Creates or reopens a run directory and locks it.

    Args:
        directory: where the run lives.
        config: what is to be run.
        resume: go on with a run that is there already.

    Returns:
        File descriptor that holds the lock for as long as it is open.

    Raises:
        RunError: the directory cannot be written, is in use, holds a run and `resume` is not
            set, or holds a run of another config or under other settings of JAX.
    """
    config_path = directory / "config.json"
    try:
        if not config_path.exists() and directory.exists() and _foreign_files(directory):
            raise RunError(f"run-dir: {directory} is not empty and holds no run; name another --run-dir")
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise RunError(f"run-dir: {directory} cannot be written ({error.strerror})") from error
    try:
        _lock(lock)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            os.close(lock)
            is_held = error.errno in (errno.EAGAIN, errno.EACCES)
            reason = "is in use by another process" if is_held else f"cannot be locked ({error.strerror})"
            raise RunError(f"run-dir: {directory} {reason}") from error
        print(
            f"run-dir: {directory} is on a file system without locks ({error.strerror}); nothing keeps a "
            "second process out",
            file=sys.stderr,
        )
    try:
        _claim(config_path, config, resume=resume)
        _check_jax(directory)
    except OSError as error:
        os.close(lock)
        raise RunError(f"run-dir: {directory} cannot be written ({error.strerror})") from error
    except RunError:
        os.close(lock)
        raise
    return lock


CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems that know no locks."""


def _lock(file: int) -> None:
    """Locks a file for this process until it is closed; an OSError if another holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _foreign_files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name != LOCK]


def _check_jax(directory: Path) -> None:
    """Refuses to go on under settings of JAX that change numbers."""
    try:
        difference = check_settings(directory)
    except ValueError as error:
        raise RunError(f"run-dir: {directory / FILE} cannot be read: {error}") from error
    if difference:
        raise RunError(f"run-dir: {directory} was computed under other settings of JAX: {difference}")


def _claim(config_path: Path, config: Config, *, resume: bool) -> None:
    """Writes the config of a new run, or refuses a run that is not this one."""
    directory = config_path.parent
    if not config_path.exists():
        write_text(config_path, json.dumps(to_dict(config), indent=2) + "\n")
        return
    try:
        saved = from_dict(json.loads(config_path.read_text()))
    except ValueError as error:
        raise RunError(f"run-dir: {config_path} cannot be read: {error}") from error
    difference = config_difference(saved, config)
    if difference:
        raise RunError(f"run-dir: {directory} holds a run of another config: {difference}")
    if not resume:
        raise RunError(
            f"run-dir: {directory} holds this run already; add --resume to go on, or name another --run-dir"
        )
