"""The command line that puts runs together."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from admrl_jax.commands.arguments import DIRECTORY, read_flags
from admrl_jax.commands.process import fail
from admrl_jax.core.settings import ConfigError
from admrl_jax.protocol.merge import merge_runs
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.files import DamagedFileError


@dataclass(frozen=True)
class Arguments:
    """Flags of a merge. Before them stand the directories of finished runs."""

    out: Annotated[Path | None, DIRECTORY] = None
    """A new folder."""


def merge_main(module: str, summary: str, argv: Sequence[str] | None = None) -> int:
    """Merges; returns the exit code: 0, or 2 where something is not accepted.

    Args:
        module: name of the module, for messages.
        summary: what it does, for `--help`.
        argv: arguments without the program's name; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    runs = [Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), words)]
    try:
        arguments = read_flags(module, summary, words[len(runs) :], Arguments())
        if arguments.out is None:
            raise ConfigError("out: nothing given; accepted: a new folder")
        report = merge_runs(runs, arguments.out)
    except (ConfigError, RunError, ArtefactError, DamagedFileError) as error:
        return fail(str(error))
    print(f"report: {report}")
    return 0
