"""Progress of a stage on the terminal."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

QUIET_SECONDS = 30.0
"""Seconds between progress lines where the output is no terminal."""


class Progress:
    """One live line per stage on a terminal, a line every half minute elsewhere."""

    def __init__(self, stage: str, total: int, done: int = 0, *, shown: bool = True):
        self._console = Console(stderr=True, highlight=False, quiet=not shown)
        self._stage, self._total, self._first = stage, total, done
        self._start = self._last = time.monotonic()
        self._steps_timed = 0
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._is_live = shown and self._console.is_terminal
        if self._is_live:
            self._live.start()
            self._live.update(Text(f"{stage}: compiling"))

    def update(self, done: int, parts: Mapping[str, float | str]) -> None:
        """Shows `done` of the total and some figures."""
        now = time.monotonic()
        if self._steps_timed == 0:
            # The first chunk holds the compilation; the rate is counted from its end.
            self._start, self._first = now, done
        self._steps_timed += 1
        left = ""
        if done > self._first:
            seconds = (now - self._start) / (done - self._first) * (self._total - done)
            left = f"  left {seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"
        shown = "  ".join(
            f"{name} {value if isinstance(value, str) else format(value, '.4g')}"
            for name, value in parts.items()
        )
        line = f"{self._stage}: {done}/{self._total}  {shown}{left}"
        if self._is_live:
            self._live.update(Text(line))
        elif now - self._last > QUIET_SECONDS or done >= self._total:
            self._last = now
            self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Stops the display; the last line stays."""
        if self._is_live:
            self._live.stop()
