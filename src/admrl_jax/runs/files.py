"""Atomic file writes: a kill leaves either the old or the new file, whole. Arrays are checked when read."""

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class DamagedFileError(ValueError):
    """A file is not as it was written; the message names it."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; its directory must be there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # Half a file is useless, and a full disk needs the space.
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode())


def stored(path: Path) -> Path:
    """The file itself, or the one that `gzip` made of it (`.gz` behind its name) where only that is there."""
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() and not path.exists() else path


def read_text(path: Path) -> str:
    """The text of a `stored` file, in UTF-8.

    Raises:
        DamagedFileError: it is packed and not as it was written.
        OSError: it is not there or the disk fails.
    """
    path = stored(path)
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content.decode()
    try:
        return gzip.decompress(content).decode()
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged") from error


def write_rows(path: Path, results: Mapping[str, Any]) -> None:
    """`write_bytes` of results in JSON: a line for each of them, and for each row of a table."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        return json.dumps(value)

    lines = [f"{json.dumps(name)}: {text(value)}" for name, value in results.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_arrays(path: Path, **arrays: Any) -> None:
    """`write_bytes` of a compressed `.npz`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Every array of an `.npz`, with the checksums that it holds compared.

    Args:
        path: the file.
        names: of arrays that must be there.

    Raises:
        DamagedFileError: it is not as it was written.
        OSError: it is not there or the disk fails.
    """
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content)) as saved:
            arrays = dict(saved)
    except Exception as error:
        # Flipped bits raised seven types of error, OSError among them, although no disk is read here.
        raise DamagedFileError(f"{path} is damaged") from error
    if not arrays.keys() >= set(names):
        raise DamagedFileError(f"{path} is damaged")
    return arrays


def is_whole(path: Path, *names: str) -> bool:
    """Whether a file is there and holds these arrays; says so where it is damaged."""
    if not path.exists():
        return False
    try:
        read_arrays(path, *names)
    except DamagedFileError as error:
        print(f"{error}; it is measured again", file=sys.stderr)
        return False
    return True
