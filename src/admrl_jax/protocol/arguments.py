"""The command line of an experiment: what it takes, and one line for what it refuses."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from admrl_jax.config import Config, validate
from admrl_jax.core.settings import ConfigError
from admrl_jax.protocol.run import UNTIL


@dataclass(frozen=True)
class Arguments:
    """What the command line says beside the config."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: str = "paper"
    """paper: the paper's sizes. quick: everything at toy size in under two minutes."""
    run_dir: Path | None = None
    """Where the run is kept. Default: runs/<environment>-<preset>."""
    resume: bool = False
    """Go on with the run that is in the directory."""
    until: str = "report"
    """Last stage: pretrain, finetune or report. With --resume, a later run goes on from there."""
    compilation_cache: str = "auto"
    """Where compiled programs are kept, so that a second run starts at once: a directory, `off`, or
    auto: $JAX_COMPILATION_CACHE_DIR if set, else the user's cache folder."""
    distributed: str = "off"
    """auto or slurm: one of several processes, started by a job manager that JAX knows."""
    coordinator: str = ""
    """host:port of process 0: one of several processes started by hand, each with its own process_id."""
    num_processes: int = 1
    """With coordinator: processes of all hosts together."""
    process_id: int = 0
    """With coordinator: number of this process. Process 0 writes the files."""


@dataclass(frozen=True)
class _Preset:
    preset: str = "paper"


def parse(module: str, summary: str, presets: Mapping[str, Config], argv: Sequence[str]) -> Arguments:
    """Reads and checks a command line.

    Args:
        module: of the experiment, for its help.
        summary: what it is, for its help.
        presets: settings by name; `--preset` chooses, the other flags change them.
        argv: words.

    Raises:
        ConfigError: something is not accepted; names it and says what is.
    """
    with _refusals_in_one_line():
        first, _ = tyro.cli(_Preset, args=argv, return_unknown_args=True, add_help=False)
    if first.preset not in presets:
        raise ConfigError(f"preset: {first.preset!r} is not known; accepted: {', '.join(presets)}")
    with _refusals_in_one_line():
        arguments = tyro.cli(
            Arguments,
            args=argv,
            prog=f"python -m {module}",
            description=summary,
            default=Arguments(config=presets[first.preset], preset=first.preset),
            config=(tyro.conf.AvoidSubcommands,),
        )
    validate(arguments.config)
    if arguments.until not in UNTIL:
        raise ConfigError(f"until: {arguments.until!r} is not known; accepted: {', '.join(UNTIL)}")
    return arguments


@contextlib.contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Turns tyro's box of several lines into a `ConfigError` with the same words."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code != 2:
            raise
        said = " ".join(re.sub("[─-╿]", " ", box.getvalue()).split())
        raise ConfigError(f"command line: {said}") from None
