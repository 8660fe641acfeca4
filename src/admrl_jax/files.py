"""Atomic file writes: a kill leaves either the old or the new file, whole."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; its directory must be there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # Half a file is no use, and a full disk needs the room.
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode())


def write_arrays(path: Path, **arrays: Any) -> None:
    """`write_bytes` of a compressed `.npz`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())
