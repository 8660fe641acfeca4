"""Figures look the same everywhere, whatever the user's Matplotlib is set to, and leave it as it was."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults, inside which figures are built and saved.

    A notebook leaves the name of its backend in the environment of the programs it starts, where Matplotlib
    may refuse it. No backend is needed here.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        is_new = "matplotlib" not in sys.modules
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if is_new and backend is not None:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    with matplotlib.rc_context(defaults):  # pyright: ignore[reportArgumentType]
        yield
