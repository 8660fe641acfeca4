"""Puts runs that differ in their seeds together: `python -m experiments.merge RUN RUN ... --out DIR`.

Run each seed where and when you like, `python -m experiments.navigation_2d --seeds 3 --run-dir seed3`, as a
job of an array, and merge what is finished: policies, attackers, returns, metrics, and one report of all.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from admrl_jax.core.settings import ConfigError
from admrl_jax.protocol.arguments import DIRECTORY, read_flags
from admrl_jax.protocol.command_line import fail
from admrl_jax.protocol.merge import merge_runs
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.files import DamagedFileError


@dataclass(frozen=True)
class Arguments:
    """Flags of a merge. Before them stand the directories of finished runs."""

    out: Annotated[Path | None, DIRECTORY] = None
    """A new folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Merges; returns the exit code: 0, or 2 where something is not accepted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    runs = [Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), argv)]
    try:
        arguments = read_flags("experiments.merge RUN RUN ...", __doc__ or "", argv[len(runs) :], Arguments())
        if arguments.out is None:
            raise ConfigError("out: nothing given; accepted: a new folder")
        report = merge_runs(runs, arguments.out)
    except (ConfigError, RunError, ArtefactError, DamagedFileError) as error:
        return fail(str(error))
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
