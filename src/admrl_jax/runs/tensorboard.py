"""TensorBoard's scalars, where its package is installed."""

# Protocol buffers make their classes when they are imported.
# pyright: reportAttributeAccessIssue=false

import contextlib
import importlib.util
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def is_available() -> bool:
    """Whether the package that writes events is installed (extra `tensorboard`)."""
    return importlib.util.find_spec("tensorboardX") is not None


class EventFile:
    """TensorBoard's scalars, written by the calling thread.

    tensorboardX's `SummaryWriter` writes from a thread of its own; on a full disk that thread dies, and
    the run waits for ever at its full queue.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(
            str(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        )
        self._write(file_version="brain.Event:2")
        # Hides what an interrupted run wrote from this step on.
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def flush(self) -> None:
        """Flushes to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; what could not be written before is not written now either."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
